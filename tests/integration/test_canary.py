"""No token and no secret is ever in a log, an answer, a health page or a command line.

Sessions and sends go well and wrong in every way that a judge knows, with tokens and
secrets that can be recognised; then all that came out is searched for them.
"""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Generator, Iterable
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus

from twisted.internet import reactor
from twisted.internet.defer import Deferred, inlineCallbacks
from twisted.internet.threads import deferToThread
from twisted.logger import LogLevel, eventAsText, globalLogPublisher

from tests.integration.support.validated_service import HOST, ValidatedServiceTestCase, sleep
from tests.support import fake_unit
from tests.support.fake_unit import PASSWORD, USERNAME, Fault, Token, answers, answers_at_once
from tests.support.harness import Client as MemoryClient
from tests.support.processes import TwistdProcess
from tests.support.websocket_client import WebSocketClient
from topicsvc.logs import as_json
from topicsvc.validators.http_client import basic
from topicsvc.validators.wrappers import outage_log

LIVE = "canary-live-PEFzc2VydGlvbg=="
READER = "canary-reader-VGVzdA=="
UNKNOWN = "canary-unknown+/="
LIMITED = "canary-no-rights"

SECRETS = (
    "canary-",
    quote("canary-unknown+/=", safe=""),
    PASSWORD,
    quote_plus(PASSWORD),
    b64encode(LIVE.encode()).decode()[:16],
    basic(USERNAME, PASSWORD).removeprefix("Basic "),
)

FAULTS: tuple[tuple[Fault, str], ...] = (
    (answers_at_once, "*"),
    (answers(500, LIVE.encode(), X_Token=LIVE), "*"),
    (answers(401, LIVE.encode(), WWW_Authenticate=f'Bearer error="{LIVE}"'), "*"),
    (answers(307, Location=f"http://127.0.0.1:1/?{LIVE}"), "*"),
    (answers(200, LIVE.encode()), "POST"),
    (answers(200, json.dumps({"active": LIVE}).encode()), "POST"),
    (answers(207, f"<!DOCTYPE x [<!ENTITY a '{LIVE}'>]><x>&a;</x>".encode()), "PROPFIND"),
    (answers(200, Allow=LIVE), "OPTIONS"),
    (fake_unit.parrots, "*"),
    (fake_unit.drops_every_connection, "*"),
    (fake_unit.never_answers, "*"),
)

SEND_PATH = "/box1/col/topic/name"
WEBSOCKET_PATH = "/__topic/box1/col.topic.name"

Test = Generator[Deferred[Any], Any, None]


class CanaryTestCase(ValidatedServiceTestCase):
    check_timeout = 0.3

    @inlineCallbacks
    def setUp(self) -> Test:
        yield super().setUp()
        soon = int(reactor.seconds()) + 3600
        self.unit.tokens[LIVE] = Token(soon)
        self.unit.tokens[READER] = Token(soon, may="OPTIONS, GET")
        self.unit.tokens[LIMITED] = Token(soon, reads_properties=False)

    def assert_clean(self, what: str, text: str) -> None:
        for secret in SECRETS:
            self.assertNotIn(secret, text, what)

    def assert_judged(self) -> None:
        """The tokens did go where they belong, so there was something to be found."""
        seen = {headers["authorization"] for _, _, headers in self.unit.requests}
        for token in (LIVE, READER, UNKNOWN, LIMITED):
            self.assertIn(f"Bearer {token}", seen)
        self.assertIn(basic(USERNAME, PASSWORD), seen)


class LogTests(CanaryTestCase):
    """In this process, where every event can be seen, those below the log's level too."""

    @inlineCallbacks
    def test_no_event_holds_a_secret(self) -> Test:
        events: list[dict[str, Any]] = []
        globalLogPublisher.addObserver(events.append)
        self.addCleanup(globalLogPublisher.removeObserver, events.append)
        self.patch(outage_log, "LOG_INTERVAL", 0)  # every outage has its line
        self.start(self.settings("cache = 1\nrecheck = 1"))
        for fault, method in FAULTS:
            self.unit.recovers()
            lasting = yield self.live_session()
            self.unit.has(fault, method)
            for token in (LIVE, READER, UNKNOWN, LIMITED):
                outcome = yield self.present(token)
                self.assert_clean("a reply", outcome.text)
                for answer in (yield self.send(token)):
                    self.assert_clean("an answer", answer)
            lasting.present(UNKNOWN)
            # A check that nobody asked for may have closed it before.
            while not (frames := lasting.frames()):
                yield sleep(0.002)
            for _, payload in frames:
                self.assert_clean("a reply", payload.decode("latin-1"))
            lasting.disconnect()
        self.unit.recovers()
        revoked = self.connect()
        revoked.present(LIVE)
        yield self.reply(revoked)
        del self.unit.tokens[LIVE]
        text, _ = yield self.reply(revoked)
        self.assertIn("Token inactive", text)
        self.assert_judged()
        self.assertIn("tokens cannot be validated", " ".join(map(eventAsText, events)))
        self.assertGreater(len([e for e in events if e.get("log_level") == LogLevel.info]), 20)
        for event in events:
            self.assert_clean("an event", eventAsText(event))
            self.assert_clean("an event's fields", repr(event))
            self.assert_clean("an event as JSON", as_json(event))

    @inlineCallbacks
    def live_session(self) -> Generator[Deferred[Any], Any, MemoryClient]:
        """A client whose token was granted.

        A check that the last fault spoiled may still be under way, and be shared.
        """
        while True:
            client = self.connect()
            client.present(LIVE)
            text, _ = yield self.reply(client)
            if "Success" in text:
                return client

    @inlineCallbacks
    def send(self, token: str) -> Generator[Deferred[Any], Any, list[str]]:
        """Send over HTTP, well and wrong; return all that was answered."""
        texts = []
        for method, path, headers, body in (
            ("POST", SEND_PATH, {"Authorization": f"Bearer {token}"}, b"1"),
            ("POST", SEND_PATH, {"Authorization": f"Bearer {token}"}, b"no json"),
            ("OPTIONS", SEND_PATH, {"Authorization": f"Bearer {token}"}, b""),
            ("POST", f"{SEND_PATH}?access_token={token}", {}, b"1"),
            ("GET", f"{WEBSOCKET_PATH}?access_token={token}", {}, b""),
            ("DELETE", SEND_PATH, {"Authorization": f"Bearer {token}"}, b""),
        ):
            client = self.connect_http()
            text = client.request(method, path, headers, body)
            while not client.status:
                yield sleep(0.005)
                text = client.read_answer()
            texts.append(f"{client.status} {client.headers} {text.decode()}")
            client.disconnect()
        return texts


class ProcessTests(CanaryTestCase):
    """A service of its own: its log, its answers, its admin pages, its command line."""

    twistd: tuple[str, ...] = ()

    def assert_log(self, text: str) -> None:
        """There was something to be found in the log."""
        self.assertIn("tokens cannot be validated", text)
        self.assertRegex(text, r"session \d+ of \S+ on /cell1/box1/col/topic/name begins")
        self.assertIn("Token inactive; ", text)

    @inlineCallbacks
    def test_nothing_that_comes_out_holds_a_secret(self) -> Test:
        file = self.directory / "topicsvc.toml"
        file.write_text(f"""
            listen = ["tcp:0:interface=127.0.0.1"]
            admin = "tcp:0:interface=127.0.0.1"
            unit_url = "https://unit1.example/"
            [validator]
            kind = "personium"
            url = "{self.unit_url}"
            cell_urls = "path"
            username = "{USERNAME}"
            password_file = "{self.secret_file().absolute()}"
            timeout = {self.check_timeout}
            recheck = 1
            [limits]
            failed_tokens_per_minute = 0
        """)
        service = yield deferToThread(
            TwistdProcess,
            "--config",
            str(file.absolute()),
            directory=self.directory,
            twistd=self.twistd,
        )
        self.addCleanup(lambda: deferToThread(service.stop))
        listen, admin = service.ports
        for fault, method in FAULTS:
            self.unit.recovers()
            self.unit.has(fault, method)
            for token in (LIVE, READER, UNKNOWN, LIMITED):
                for text in (yield deferToThread(_use, listen, token)):
                    self.assert_clean("an answer", text)
        for path in ("/", "/health/live", "/health/ready", "/metrics", f"/?{LIVE}"):
            text = yield deferToThread(_fetch, admin, "GET", path)
            self.assert_clean(path, text)
            if path == "/metrics":
                self.assertIn('\ntopicsvc_sessions_ended_total{reason="token_inactive"}', text)
                self.assertNotIn("cell1", text)
        self.assert_judged()
        command = Path(f"/proc/{service.child.pid}/cmdline").read_text()
        self.assertIn("topicsvc.toml", command)
        self.assert_clean("the command line", command)
        yield deferToThread(service.stop)
        self.assert_log(service.text)
        self.assert_clean("the log", service.text)


class JsonTests(ProcessTests):
    """The same with the log as JSON: every line is an object."""

    twistd = ("--logger", "topicsvc.logs.json_lines")

    def assert_log(self, text: str) -> None:
        records = [json.loads(line) for line in text.splitlines()]
        super().assert_log("\n".join(record["message"] for record in records))
        ends = [record for record in records if "reason" in record and "session" in record]
        self.assertEqual(
            {record["reason"] for record in ends},
            {"Client closed", "Token inactive", "Service unavailable"},
        )
        self.assertEqual(len({record["session"] for record in ends}), len(ends))
        for record in ends:
            self.assertEqual(record["topic"], "/cell1/box1/col/topic/name")


def _use(port: int, token: str) -> Iterable[str]:
    """What a client gets to read, over WebSocket and HTTP."""
    session = WebSocketClient(port, HOST, f"{WEBSOCKET_PATH}?access_token={token}")
    session.send(json.dumps({"AccessToken": token}))
    texts = [session.recv()]
    session.close()
    for method, headers in (
        ("POST", {"Authorization": f"Bearer {token}"}),
        ("OPTIONS", {"Authorization": f"Bearer {token}"}),
        ("POST", {}),
    ):
        texts.append(_fetch(port, method, f"{SEND_PATH}?access_token={token}", headers))
    return texts


def _fetch(port: int, method: str, path: str, headers: dict[str, str] | None = None) -> str:
    connection = HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        body = "1" if method == "POST" else None
        connection.request(method, path, body, {"Host": HOST, **(headers or {})})
        answer = connection.getresponse()
        return f"{answer.status} {answer.headers} {answer.read().decode()}"
    finally:
        connection.close()

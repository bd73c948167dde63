"""No token and no secret appears in a log, a response, an admin page or a command line.

Clients subscribe and send with recognisable tokens, while the validator fails in many ways. The
complete output of the service is then searched for the tokens and secrets.
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

VALID = "canary-valid-PEFzc2VydGlvbg=="
READER = "canary-reader-VGVzdA=="
UNKNOWN = "canary-unknown+/="
NO_RIGHTS = "canary-no-rights"

SECRETS = (
    "canary-",
    quote("canary-unknown+/=", safe=""),
    PASSWORD,
    quote_plus(PASSWORD),
    b64encode(VALID.encode()).decode()[:16],
    basic(USERNAME, PASSWORD).removeprefix("Basic "),
)

FAULTS: tuple[tuple[Fault, str], ...] = (
    (answers_at_once, "*"),
    (answers(500, VALID.encode(), X_Token=VALID), "*"),
    (answers(401, VALID.encode(), WWW_Authenticate=f'Bearer error="{VALID}"'), "*"),
    (answers(307, Location=f"http://127.0.0.1:1/?{VALID}"), "*"),
    (answers(200, VALID.encode()), "POST"),
    (answers(200, json.dumps({"active": VALID}).encode()), "POST"),
    (answers(207, f"<!DOCTYPE x [<!ENTITY a '{VALID}'>]><x>&a;</x>".encode()), "PROPFIND"),
    (answers(200, Allow=VALID), "OPTIONS"),
    (fake_unit.echoes_request, "*"),
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
        self.unit.tokens[VALID] = Token(soon)
        self.unit.tokens[READER] = Token(soon, may="OPTIONS, GET")
        self.unit.tokens[NO_RIGHTS] = Token(soon, reads_properties=False)

    def assert_clean(self, what: str, text: str) -> None:
        for secret in SECRETS:
            self.assertNotIn(secret, text, what)

    def assert_tokens_were_used(self) -> None:
        """The unit has received all tokens, so the service did have them."""
        seen = {headers["authorization"] for _, _, headers in self.unit.requests}
        for token in (VALID, READER, UNKNOWN, NO_RIGHTS):
            self.assertIn(f"Bearer {token}", seen)
        self.assertIn(basic(USERNAME, PASSWORD), seen)


class LogTests(CanaryTestCase):
    """The service runs in this process, where log events below the log level are visible too."""

    @inlineCallbacks
    def test_no_event_holds_a_secret(self) -> Test:
        events: list[dict[str, Any]] = []
        globalLogPublisher.addObserver(events.append)
        self.addCleanup(globalLogPublisher.removeObserver, events.append)
        self.patch(outage_log, "LOG_INTERVAL", 0)  # log each outage
        self.start(self.settings("cache = 1\nrecheck = 1"))
        for fault, method in FAULTS:
            self.unit.recover()
            session = yield self.active_session()
            self.unit.inject(fault, method)
            for token in (VALID, READER, UNKNOWN, NO_RIGHTS):
                outcome = yield self.present(token)
                self.assert_clean("a reply", outcome.text)
                for response in (yield self.send(token)):
                    self.assert_clean("a response", response)
            session.present(UNKNOWN)
            # A recheck may have closed the session before.
            while not (frames := session.frames()):
                yield sleep(0.002)
            for _, payload in frames:
                self.assert_clean("a reply", payload.decode("latin-1"))
            session.disconnect()
        self.unit.recover()
        revoked = yield self.active_session()
        del self.unit.tokens[VALID]
        text, _ = yield self.reply(revoked)
        self.assertIn("Token inactive", text)
        self.assert_tokens_were_used()
        self.assertIn("tokens cannot be validated", " ".join(map(eventAsText, events)))
        self.assertGreater(len([e for e in events if e.get("log_level") == LogLevel.info]), 20)
        for event in events:
            self.assert_clean("an event", eventAsText(event))
            self.assert_clean("an event's fields", repr(event))
            self.assert_clean("an event as JSON", as_json(event))

    @inlineCallbacks
    def active_session(self) -> Generator[Deferred[Any], Any, MemoryClient]:
        """Return a client with an active session.

        The first attempts may share a check that started during the last fault.
        """
        while True:
            client = self.connect()
            client.present(VALID)
            text, _ = yield self.reply(client)
            if "Success" in text:
                return client

    @inlineCallbacks
    def send(self, token: str) -> Generator[Deferred[Any], Any, list[str]]:
        """Send valid and invalid requests; return the responses."""
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
    """A twistd process: its log, its responses, its admin pages, its command line."""

    twistd: tuple[str, ...] = ()

    def assert_log(self, text: str) -> None:
        """The log has lines about outages, sessions and invalid tokens."""
        self.assertIn("tokens cannot be validated", text)
        self.assertRegex(
            text, r"session \d+ of \S+ on /cell1/box1/col/topic/name \(token .+\) begins"
        )
        self.assertRegex(text, r"Token inactive \(.+\); ")

    @inlineCallbacks
    def test_no_output_holds_a_secret(self) -> Test:
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
            self.unit.recover()
            self.unit.inject(fault, method)
            for token in (VALID, READER, UNKNOWN, NO_RIGHTS):
                for text in (yield deferToThread(_use, listen, token)):
                    self.assert_clean("a response", text)
        for path in ("/", "/health/live", "/health/ready", "/metrics", f"/?{VALID}"):
            text = yield deferToThread(_fetch, admin, "GET", path)
            self.assert_clean(path, text)
            if path == "/metrics":
                self.assertIn('\ntopicsvc_sessions_ended_total{reason="token_inactive"}', text)
                self.assertNotIn("cell1", text)
        self.assert_tokens_were_used()
        command = Path(f"/proc/{service.child.pid}/cmdline").read_text()
        self.assertIn("topicsvc.toml", command)
        self.assert_clean("the command line", command)
        yield deferToThread(service.stop)
        self.assert_log(service.text)
        self.assert_clean("the log", service.text)


class JsonTests(ProcessTests):
    """The same with a JSON log: each line is an object."""

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
    """Return all replies and responses that a client gets with a token."""
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
    connection = HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        body = "1" if method == "POST" else None
        connection.request(method, path, body, {"Host": HOST, **(headers or {})})
        response = connection.getresponse()
        return f"{response.status} {response.headers} {response.read().decode()}"
    finally:
        connection.close()

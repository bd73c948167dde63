"""``topicsvc doctor``: each check with a correct and with a faulty environment."""

from __future__ import annotations

import json
import os
import subprocess
from datetime import timedelta
from email.utils import formatdate
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred, inlineCallbacks
from twisted.internet.endpoints import serverFromString
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase
from twisted.web.server import Site

from tests.integration.support.activemq_server import ActiveMQ, need_activemq
from tests.integration.support.redis_server import Redis
from tests.support.certificates import Authority
from tests.support.fake_unit import (
    PASSWORD,
    USERNAME,
    FakeUnit,
    Token,
    adds_header,
    answers,
    never_answers,
)
from tests.support.jwt_issuer import AUDIENCE, FakeIssuer
from tests.support.processes import TOPICSVC, TwistdProcess, environment, free_port
from topicsvc.topics import TopicAddress
from topicsvc.validators.local import make_key, sign_token, write_key

TOPIC = TopicAddress("cell1", "box1", ("col",), "name")
FAR = 2**31


def days(number: int) -> timedelta:
    """So many days and one hour."""
    return timedelta(days=number, hours=1)


class DoctorTestCase(TestCase):
    timeout = 400

    def setUp(self) -> Any:
        self.directory = Path(self.mktemp()).absolute()
        self.directory.mkdir()
        self.key = make_key()
        write_key(self.directory / "key", self.key)
        self.validator = f'kind = "local"\nkey_file = "{self.directory / "key"}"'
        self.broker = 'kind = "memory"'
        self.listen = [f"tcp:{free_port()}:interface=127.0.0.1"]
        self.admin = ""
        self.more = ""

    def file(self, name: str, text: str) -> Path:
        path = self.directory / name
        path.write_text(text)
        return path

    def configuration(self) -> Path:
        return self.file(
            "topicsvc.toml",
            f"""
            listen = {json.dumps(self.listen)}
            {self.admin}
            unit_url = "https://unit1.example/"
            [validator]
            {self.validator}
            [broker]
            {self.broker}
            {self.more}
            """,
        )

    def token(self, *may: str, expires_at: int = FAR) -> str:
        return sign_token(self.key, None, [TOPIC.path], may or ("receive", "send"), expires_at)

    def doctor(
        self, token: str | None = None, by: str = "file", has_topic: bool = True
    ) -> Deferred[list[str]]:
        """Run the command and check its exit code; fires with its output lines.

        Args:
            token: the token; None: without a topic.
            by: how the command gets the token: "file" or "environment".
            has_topic: whether a topic is given with the token.
        """
        command = [*TOPICSVC, "doctor", "--config", str(self.configuration())]
        variables = environment()
        if token is not None:
            command += ["--topic", TOPIC.path] * has_topic
            if by == "file":
                command += ["--token-file", str(self.file("token", token))]
            else:
                variables["TOPICSVC_TOKEN"] = token

        def run() -> list[str]:
            done = subprocess.run(
                command, capture_output=True, text=True, env=variables, timeout=200, check=False
            )
            lines = done.stdout.splitlines()
            has_failed = any(line.startswith("FAIL") for line in lines)
            self.assertEqual(done.returncode, int(has_failed), done.stdout + done.stderr)
            self.assertNotIn("Traceback", done.stderr)
            self.assertEqual(done.stderr.count("\n"), int(has_failed), done.stderr)
            for secret in filter(None, (token, PASSWORD)):
                self.assertNotIn(secret, done.stdout + done.stderr)
            return lines

        return deferToThread(run)

    def assert_found(self, lines: list[str], level: str, what: str, words: str) -> None:
        for line in lines:
            if line.startswith(f"{level:<4}  {what}") and words in line:
                return
        self.fail(f"no {level} {what} with {words!r} in:\n" + "\n".join(lines))


class LocalTests(DoctorTestCase):
    @inlineCallbacks
    def test_all_checks_pass(self) -> Any:
        for by in ("file", "environment"):
            lines = yield self.doctor(self.token(), by)
            self.assertEqual({line[:4] for line in lines}, {"ok  "}, lines)
            for what, words in (
                ("settings", "topicsvc.toml"),
                (f"listen {self.listen[0]}", "free"),
                ("broker", "memory"),
                ("validator", "validated locally"),
                ("clock", ""),
                ("files", "enough for"),
                ("token", "it may receive and send, for"),
                ("subscribe", TOPIC.path),
                ("send", TOPIC.path),
                ("receive", "has arrived"),
            ):
                self.assert_found(lines, "ok", what, words)

    @inlineCallbacks
    def test_tokens_with_fewer_rights(self) -> Any:
        lines = yield self.doctor(self.token("receive"))
        self.assertIn("subscribe", lines[-1])
        lines = yield self.doctor(self.token("send"))
        self.assertIn("send", lines[-1])
        lines = yield self.doctor(self.token(expires_at=1))
        self.assert_found(
            lines, "FAIL", "token", f"rejected for {TOPIC.path}: it has expired; the client must"
        )
        lines = yield self.doctor(self.token("nothing"))
        self.assert_found(lines, "FAIL", "token", "valid, but it may neither receive")
        self.assert_found(lines, "FAIL", "token", 'on this topic: "may" has no right; ')
        self.more = "[send]\nenabled = false"
        lines = yield self.doctor(self.token())
        self.assert_found(lines, "warn", "send", "send.enabled")

    @inlineCallbacks
    def test_invalid_settings(self) -> Any:
        self.listen = ["tcp:99999"]
        self.more = "[stop]\ndrain = -1"
        lines = yield self.doctor()
        self.assert_found(lines, "FAIL", "settings", "listen: 'tcp:99999'")
        self.assert_found(lines, "FAIL", "settings", "stop.drain")

    @inlineCallbacks
    def test_too_few_open_files(self) -> Any:
        self.more = "[limits]\nconnections = 1000000"
        lines = yield self.doctor()
        self.assert_found(lines, "FAIL", "files", "limits.connections needs 1000256")

    @inlineCallbacks
    def test_ports_in_use(self) -> Any:
        authority = Authority(self.directory)
        key, cert = authority.issue("unit1.example", "*.unit1.example", lifetime=days(100))
        pair = f"privateKey={key}:certKey={cert}"
        sockets = mkdtemp()  # short enough for the path of a UNIX socket
        self.addCleanup(rmtree, sockets)
        plain = [self.port(), self.port("haproxy:"), f"unix:{sockets}/socket"]
        tls = [
            f"{prefix}ssl:{free_port()}:{pair}:interface=127.0.0.1" for prefix in ("", "haproxy:")
        ]
        self.listen = [*plain, *tls]
        self.admin = f'admin = "{self.port()}"'
        service = TwistdProcess("--config", str(self.configuration()), directory=self.directory)
        self.addCleanup(service.stop)
        lines = yield self.doctor()
        for text in plain:
            self.assert_found(lines, "ok", f"listen {text}", "in use; a service answers there")
        self.assert_found(lines, "ok", "admin tcp:", "in use; a service answers there")
        for text in tls:
            self.assert_found(
                lines, "ok", f"listen {text}", "in use; a service answers there over TLS"
            )
        self.assert_found(lines, "ok", "certificate for unit1.example", "100 days left")
        authority.issue("unit1.example", "*.unit1.example", lifetime=days(100))
        self.listen = tls
        lines = yield self.doctor()
        for text in tls:
            self.assert_found(
                lines, "warn", f"listen {text}", "another certificate than the one on disk"
            )
        self.listen = [
            f"{plain[0].replace('tcp:', 'ssl:')}:{pair}",
            f"haproxy:{plain[0]}",
            plain[1].removeprefix("haproxy:"),
        ]
        lines = yield self.doctor()
        self.assert_found(lines, "FAIL", "listen ssl:", "does not answer")
        self.assert_found(
            lines, "FAIL", "listen haproxy:tcp:", "does not accept the PROXY protocol"
        )
        self.assert_found(lines, "FAIL", "listen tcp:", "does not answer")

    def port(self, prefix: str = "") -> str:
        return f"{prefix}tcp:{free_port()}:interface=127.0.0.1"

    @inlineCallbacks
    def test_ports_that_cannot_be_opened(self) -> Any:
        if os.geteuid() == 0:
            self.listen = ["tcp:80:interface=192.0.2.1"]  # an address of no machine
            words = "assign requested address"
        else:
            self.listen = ["tcp:80:interface=127.0.0.1"]
            words = "CAP_NET_BIND_SERVICE"
        lines = yield self.doctor()
        self.assert_found(lines, "FAIL", "listen", words)


class UnitTests(DoctorTestCase):
    """Fixture: a unit that validates tokens."""

    @inlineCallbacks
    def setUp(self) -> Any:
        super().setUp()
        self.unit = FakeUnit(reactor, [TOPIC])
        self.unit.tokens["valid-token"] = Token(int(reactor.seconds()) + 3600)
        site: Site = self.unit.site()
        site.noisy = False
        port = yield serverFromString(reactor, "tcp:0:interface=127.0.0.1").listen(site)
        self.addCleanup(port.stopListening)
        self.password = self.file("password", PASSWORD)
        self.validator = (
            f'kind = "personium"\nurl = "http://localhost:{port.getHost().port}/"\n'
            f'cell_urls = "path"\nusername = "{USERNAME}"\npassword_file = "{self.password}"\n'
            "timeout = 20"
        )

    @inlineCallbacks
    def test_all_checks_with_a_unit(self) -> Any:
        lines = yield self.doctor("valid-token")
        self.assert_found(lines, "ok", "validator", "rejects an invalid token")
        self.assert_found(lines, "ok", "clock", "s from http://localhost:")
        self.assert_found(lines, "ok", "receive", "has arrived")
        lines = yield self.doctor("unknown")
        self.assert_found(lines, "FAIL", "token", ": its server says that it is not active")

    @inlineCallbacks
    def test_a_wrong_password(self) -> Any:
        self.password.write_text("another")
        lines = yield self.doctor("valid-token")
        words = "status 400: wrong credentials; are username and password the unit's?"
        self.assert_found(lines, "FAIL", "validator", words)
        self.assert_found(lines, "FAIL", "token", words)

    @inlineCallbacks
    def test_the_wrong_style_of_cell_urls(self) -> Any:
        self.unit.inject(answers(400, b'{"code":"PR400-CM-0005"}'))
        lines = yield self.doctor("valid-token")
        self.assert_found(lines, "FAIL", "validator", "is cell_urls the unit's style?")

    @inlineCallbacks
    def test_a_token_that_may_send_and_not_read_the_collection(self) -> Any:
        token = self.unit.tokens["valid-token"]
        token.reads_properties, token.may = False, "OPTIONS, POST, PUT"
        lines = yield self.doctor("valid-token")
        self.assert_found(lines, "ok", "token", "it may send, for")
        self.assert_found(lines, "ok", "send", TOPIC.path)
        token.may = "OPTIONS, GET"
        lines = yield self.doctor("valid-token")
        self.assert_found(lines, "FAIL", "token", "valid, but it may neither receive")

    @inlineCallbacks
    def test_an_unknown_cell(self) -> Any:
        lines = yield self.doctor()
        self.assert_found(lines, "warn", "validator", "has no cell topicsvc-doctor")

    @inlineCallbacks
    def test_a_unit_that_fails_or_does_not_exist(self) -> Any:
        self.unit.inject(answers(500))
        lines = yield self.doctor()
        self.assert_found(lines, "FAIL", "validator", "status 500")
        self.validator = self.validator.replace("localhost", "nowhere.invalid")
        lines = yield self.doctor()
        self.assert_found(lines, "FAIL", "validator", "")
        self.assert_found(lines, "warn", "clock", "gives no time")

    @inlineCallbacks
    def test_a_unit_that_does_not_respond(self) -> Any:
        self.validator = self.validator.replace("timeout = 20", "timeout = 2")
        self.unit.inject(never_answers)
        lines = yield self.doctor()
        self.assert_found(lines, "FAIL", "validator", "no answer within 2")
        self.assert_found(lines, "ok", "files", "")

    @inlineCallbacks
    def test_cell_hosts_that_cannot_be_resolved(self) -> Any:
        self.validator = self.validator.replace('"path"', '"host"')
        lines = yield self.doctor()
        self.assert_found(lines, "warn", "validator", "DNS has no host for cell")
        self.assert_found(lines, "ok", "clock", "")

    @inlineCallbacks
    def test_clocks_that_differ(self) -> Any:
        for apart, level, words in ((-20, "warn", "s ahead of"), (300, "FAIL", "s behind")):
            date = formatdate(reactor.seconds() + apart, usegmt=True).encode()
            self.unit.inject(adds_header("date", date), "GET")
            lines = yield self.doctor()
            self.assert_found(lines, level, "clock", words)


class JwtTests(DoctorTestCase):
    """Issuers of JWTs, and each rule for a token by name."""

    @inlineCallbacks
    def setUp(self) -> Any:
        yield super().setUp()
        self.issuer = FakeIssuer(reactor.seconds())
        site = self.issuer.site()
        port = yield serverFromString(reactor, "tcp:0:interface=127.0.0.1").listen(site)
        self.addCleanup(port.stopListening)
        self.issuer.issuer = f"http://127.0.0.1:{port.getHost().port}"
        self.validator = f"""kind = "jwt"
            [[validator.issuers]]
            issuer = "{self.issuer.issuer}"
            audience = ["{AUDIENCE}"]
            [[validator.rules]]
            scope = "news"
            topics = ["/cell1/*"]
            may = ["receive"]
        """

    @inlineCallbacks
    def test_a_good_token_meets_every_rule(self) -> Any:
        lines = yield self.doctor(self.issuer.token(sub="canary"))
        self.assertEqual({line[:4] for line in lines}, {"ok  "}, lines)
        algorithms = "RS256, RS384, RS512, PS256, PS384, PS512"
        for what, words in (
            (f"issuer {self.issuer.issuer}", f"1 keys at {self.issuer.issuer}/jwks"),
            (f"issuer {self.issuer.issuer}", f"for {algorithms}"),
            ("clock", "at most 5 s"),
            ("token, iss", self.issuer.issuer),
            ("token, signature", 'the key "a", RS256'),
            ("token, aud", f'allowed: "{AUDIENCE}"'),
            ('token, rule scope "news"', "met; may receive: /cell1/*"),
            ("token, rights", f"on {TOPIC.path} it may receive"),
            ("token", "it may receive, for"),
            ("subscribe", TOPIC.path),
        ):
            self.assert_found(lines, "ok", what, words)
        self.assertNotIn("canary", "".join(lines))

    @inlineCallbacks
    def test_each_rule_that_a_token_fails_is_named(self) -> Any:
        token = self.issuer.token(header={"typ": "JWT"}, aud=["account"], exp=1)
        lines = yield self.doctor(token, has_topic=False)
        for what, words in (
            ("token, typ", 'typ is "JWT"; allowed (token_types): "at+jwt"'),
            ("token, aud", f'aud is ["account"]; allowed: "{AUDIENCE}"'),
            ("token, exp", "in the past"),
        ):
            self.assert_found(lines, "FAIL", what, words)
        self.assert_found(lines, "ok", "token, signature", "")

    @inlineCallbacks
    def test_an_issuer_that_cannot_be_used(self) -> Any:
        self.issuer.members["issuer"] = "https://other.example"
        lines = yield self.doctor()
        self.assert_found(lines, "FAIL", "issuer", 'its issuer is "https://other.example"')
        self.issuer.members.clear()
        self.issuer.published = [{"kty": "oct", "kid": "x"}]
        lines = yield self.doctor()
        self.assert_found(lines, "warn", "issuer", 'not used: key "x"')
        self.assert_found(lines, "FAIL", "issuer", "no token can be validated")

    @inlineCallbacks
    def test_a_clock_that_differs(self) -> Any:
        self.issuer.inject(adds_header("Date", formatdate(1).encode()), "/jwks")
        lines = yield self.doctor()
        self.assert_found(lines, "FAIL", "clock", "run NTP")


class BrokerTests(DoctorTestCase):
    @inlineCallbacks
    def test_a_broker_with_a_valid_and_with_a_wrong_password(self) -> Any:
        need_activemq()
        server = ActiveMQ(("topicsvc", "right"))
        self.addCleanup(server.remove)
        yield server.start()
        password = self.file("broker-password", "right")
        self.broker = (
            f'kind = "activemq"\nendpoint = "tcp:127.0.0.1:{server.stomp}"\n'
            f'username = "topicsvc"\npassword_file = "{password}"'
        )
        lines = yield self.doctor(self.token())
        self.assert_found(lines, "ok", "broker", "connected")
        self.assert_found(lines, "ok", "receive", "has arrived")
        password.write_text("wrong")
        lines = yield self.doctor()
        self.assert_found(lines, "FAIL", "broker", "invalid")

    @inlineCallbacks
    def test_a_redis_that_does_not_tell_its_identity(self) -> Any:
        server = Redis("user app on >right ~* &* +@all -info")
        self.addCleanup(server.remove)
        yield server.start()
        password = self.file("broker-password", "right")
        self.broker = f'{server.settings}\nusername = "app"\npassword_file = "{password}"'
        lines = yield self.doctor()
        self.assert_found(lines, "ok", "broker", "connected")
        self.assert_found(lines, "warn", "broker", "allow the user the command INFO")

    @inlineCallbacks
    def test_a_broker_that_does_not_run(self) -> Any:
        port = free_port()
        for broker, where in (
            (f'kind = "activemq"\nendpoint = "tcp:127.0.0.1:{port}"', f"tcp:127.0.0.1:{port}"),
            (f'kind = "redis"\nurl = "redis://127.0.0.1:{port}"', f"127.0.0.1:{port}"),
        ):
            self.broker = broker
            lines = yield self.doctor()
            self.assert_found(
                lines,
                "FAIL",
                "broker",
                f"{where}: Connection was refused by other side: 111: Connection refused; check",
            )

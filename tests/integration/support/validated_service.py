"""A service whose validator uses real sockets; its clients are in memory."""

from __future__ import annotations

import os
from collections.abc import Generator
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred, inlineCallbacks
from twisted.internet.endpoints import serverFromString
from twisted.internet.task import LoopingCall, deferLater
from twisted.trial.unittest import TestCase
from twisted.web.server import Site

from tests.integration.support.run_delay import run_delay
from tests.support.fake_unit import PASSWORD, USERNAME, FakeUnit, Token, Trap
from tests.support.harness import Client
from topicsvc import config
from topicsvc.scheduling.work_budget import WorkBudget
from topicsvc.service import TopicService
from topicsvc.settings import Config, LimitSettings
from topicsvc.topics import TopicAddress
from topicsvc.web.handshake import UpgradeResource
from topicsvc.web.send import SendResource
from topicsvc.web.site import TopicSite, TopicTree

TOPIC = TopicAddress("cell1", "box1", ("col",), "name")
HOST = "cell1.unit1.example"
REPLY_TIMEOUT = 60.0
"""Seconds in which a reply must arrive."""

TIMEOUT = 1.0
"""Seconds that one token check may take."""

MAX_GROWTH = 5_000_000
"""Bytes by which the memory may grow during one token check."""

MAX_DELAY = 0.5
"""Seconds by which a reply may exceed `TIMEOUT`, without those in which this process waited for a
processor."""

SUCCESS = ("Success", None)
TOKEN_INACTIVE = ('"Reason":"Token inactive"', 1008)
SERVICE_UNAVAILABLE = ('"Reason":"Service unavailable"', 1013)


@dataclass
class Outcome:
    """What one client has received for its token.

    Attributes:
        text: the reply.
        code: code of the close frame; None: there was none.
        seconds: time between the token and the reply, without that in which this process waited
            for a processor.
        growth: largest growth of this process, in bytes.
    """

    text: str
    code: int | None
    seconds: float
    growth: int


def resident() -> int:
    """Resident memory of this process, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no VmRSS")


def sleep(seconds: float) -> Deferred[None]:
    return deferLater(reactor, seconds)


class ValidatedServiceTestCase(TestCase):
    """Fixture: a fake unit and a trap on ports of their own, and a service that uses the unit."""

    timeout = 600
    scheme = "http"
    check_timeout = TIMEOUT
    unit_host: str | None = None

    @inlineCallbacks
    def setUp(self) -> Generator[Deferred[Any], Any, None]:
        self.directory = Path(self.mktemp())
        self.directory.mkdir()
        self.clock = reactor
        self.trap = Trap()
        self.unit = FakeUnit(reactor, [TOPIC], self.unit_host)
        self.unit.tokens["valid-token"] = Token(int(reactor.seconds()) + 3600)
        self.unit_port = yield self.serve(self.unit.site())
        self.trap_port = yield self.serve(Site(self.trap))
        self._port = 50000

    def tearDown(self) -> None:
        self.assertEqual(self.trap.requests, [], "the trap has received a token")

    @inlineCallbacks
    def serve(self, site: Site) -> Generator[Deferred[Any], Any, Any]:
        site.noisy = False
        port = yield serverFromString(reactor, self.endpoint()).listen(site)
        self.addCleanup(port.stopListening)
        return port

    def endpoint(self) -> str:
        return "tcp:0:interface=127.0.0.1:backlog=1024"

    @property
    def unit_url(self) -> str:
        return f"{self.scheme}://localhost:{self.unit_port.getHost().port}/"

    def secret_file(self, name: str = "password", secret: str = PASSWORD) -> Path:
        file = self.directory / name
        file.write_text(secret + "\n", "utf-8")
        return file

    def settings(self, more: str = "") -> Config:
        """The settings of a configuration file."""
        return config.load(f"""
            listen = ["tcp:0"]
            unit_url = "https://unit1.example/"
            [validator]
            kind = "personium"
            url = "{self.unit_url}"
            cell_urls = "path"
            username = "{USERNAME}"
            password_file = "{self.secret_file()}"
            timeout = {self.check_timeout}
            {more}
        """)

    def start(self, settings: Config) -> None:
        """Create a service and start all of it except its ports."""
        self.service = TopicService(settings, reactor)
        self.websocket_server = self.service.websocket_server
        # All clients of a test have one address.
        self.service.limits.settings = LimitSettings(
            unauthenticated_per_address=0, failed_tokens_per_minute=0
        )
        self.service.broker.startService()
        self.service._validators.start()
        self.websocket_server.startService()
        unit = settings.unit
        validators = self.service._validators
        broker, hub = self.service.broker, self.service._hub
        send = SendResource(
            unit,
            validators.send_validator,
            broker,
            lambda: hub.is_full,
            reactor.seconds,
            False,
            100,
            self.service.refused_sends,
            validators.rights_validator,
        )
        upgrade = UpgradeResource(unit, self.websocket_server.new_connection)
        # A test connects many clients within one reactor iteration.
        budget = self.websocket_server.context.budget = WorkBudget(reactor, inf)
        self.site = TopicSite(
            TopicTree(unit, upgrade, send),
            reactor,
            100000,
            self.service.limits,
            self.websocket_server.context.slow_consumers,
            budget,
        )
        self.addCleanup(self.stop)

    @inlineCallbacks
    def stop(self) -> Generator[Deferred[Any], Any, None]:
        for member in list(self.websocket_server._wheel):
            member.transport.lose(ConnectionError("end of the test"))
        self.websocket_server.stopService()
        yield self.service._validators.stop()
        yield self.service.broker.stopService()
        yield sleep(0.01)

    def next_port(self) -> int:
        self._port += 1
        return self._port

    def connect_http(self) -> Client:
        return Client(self)  # type: ignore[arg-type]

    def connect(self) -> Client:
        client = self.connect_http()
        self.assertEqual(client.upgrade(host=HOST), 101)
        return client

    @inlineCallbacks
    def reply(self, client: Client) -> Generator[Deferred[Any], Any, tuple[str, int | None]]:
        """Wait for the next reply; fires with it and the code of the close frame after it."""
        end = reactor.seconds() + REPLY_TIMEOUT
        while not (frames := client.frames()):
            self.assertLess(reactor.seconds(), end, "no reply")
            yield sleep(0.002)
        code = None
        for opcode, payload in frames[1:]:
            self.assertEqual(opcode, 8)
            code = int.from_bytes(payload[:2], "big")
        return frames[0][1].decode(), code

    @inlineCallbacks
    def present(self, token: str = "valid-token") -> Generator[Deferred[Any], Any, Outcome]:
        """A new client presents a token; fires with the outcome."""
        client = self.connect()
        before, most = resident(), 0

        def measure() -> None:
            nonlocal most
            most = max(most, resident())

        measure()
        measuring = LoopingCall(measure)
        measuring.start(0.01)
        begun, delay = reactor.seconds(), run_delay()
        client.present(token)
        text, code = yield self.reply(client)
        seconds = reactor.seconds() - begun - (run_delay() - delay)
        yield sleep(0.05)  # memory that is used after the reply counts as well
        measuring.stop()
        client.disconnect()
        return Outcome(text, code, seconds, most - before)

    def assert_outcome(self, what: str, outcome: Outcome, reply: tuple[str, int | None]) -> None:
        self.assertIn(reply[0], outcome.text, what)
        self.assertEqual(outcome.code, reply[1], what)
        self.assertLess(outcome.seconds, TIMEOUT + MAX_DELAY, what)
        self.assertLess(outcome.growth, MAX_GROWTH, what)
        if os.environ.get("TOPICSVC_FIGURES"):
            print(
                f"\n    {self.scheme} {what}: {outcome.seconds:.3f} s, "
                f"{outcome.growth / 1e6:+.2f} MB, {outcome.text}, {outcome.code}"
            )

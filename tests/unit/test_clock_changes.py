"""If the time of day is set back or forward by an hour, durations stay the same."""

from __future__ import annotations

from twisted.internet.selectreactor import SelectReactor
from twisted.internet.task import Clock, LoopingCall
from twisted.trial.unittest import SynchronousTestCase

from tests.support.fakes import FakeValidator, WallClock
from tests.support.harness import SEND_PATH, Client, ServiceTestCase
from tests.support.raw_client import token_request
from topicsvc.process import setup
from topicsvc.settings import LimitSettings
from topicsvc.topics import TopicAddress
from topicsvc.validators.wrappers.cache import GrantCache
from topicsvc.websocket.server import CLOSE_TIMEOUT

HOUR = 3600.0
PING = 9


class MonotonicClockTests(SynchronousTestCase):
    """A real reactor whose two clocks are controlled by the test."""

    def setUp(self) -> None:
        self.monotonic = 77.0
        self.wall = 1_500_000_000.0
        self.patch(setup.time, "monotonic", lambda: self.monotonic)
        self.patch(SelectReactor, "seconds", lambda _: self.wall)
        self.reactor = SelectReactor()
        for waker in list(self.reactor._internalReaders):
            self.addCleanup(waker.connectionLost, None)

    def pass_time(self, seconds: float) -> None:
        self.monotonic += seconds
        self.wall += seconds
        self.reactor.runUntilCurrent()

    def test_the_clock_continues_and_cannot_be_set(self) -> None:
        for _ in range(2):
            setup.use_monotonic_clock(self.reactor)
            self.assertEqual(self.reactor.seconds(), 1_500_000_000)
            self.wall -= HOUR
        self.pass_time(5)
        self.assertEqual(self.reactor.seconds(), 1_500_000_005)

    def test_timers_use_the_monotonic_clock(self) -> None:
        for jump in (-HOUR, HOUR):
            called: list[str] = []
            before = self.reactor.callLater(10, called.append, "before")
            setup.use_monotonic_clock(self.reactor)
            self.reactor.callLater(10, called.append, "after")
            looping = LoopingCall(called.append, "looping")
            looping.clock = self.reactor
            looping.start(10, now=False)
            self.wall += jump
            self.pass_time(9)
            self.assertEqual(called, [])
            self.assertAlmostEqual(self.reactor.timeout(), 1)
            self.assertAlmostEqual(before.getTime() - self.reactor.seconds(), 1)
            self.pass_time(1)
            self.assertEqual(sorted(called), ["after", "before", "looping"])
            looping.stop()
            self.wall -= jump


class SetBackTests(ServiceTestCase):
    """The time of day is set back by `jump` in each test; `SetForwardTests` sets it forward."""

    recheck = 120.0
    limits_settings = LimitSettings(failed_tokens_per_minute=1, messages_per_minute=3)
    jump = -HOUR

    def pings(self, client: Client) -> int:
        """How many pings the client got since the last call."""
        return [opcode for opcode, _ in client.frames()].count(PING)

    def test_pings_keep_their_interval(self) -> None:
        client = self.subscribe(lifetime=10 * HOUR)
        for _ in range(3):
            self.wall.jump(self.jump)
            self.advance(60)
            self.assertEqual(self.pings(client), 1)

    def test_the_token_timeout_keeps_its_length(self) -> None:
        client = self.connect()
        self.wall.jump(self.jump)
        self.advance(59)
        self.assertEqual(client.frames(), [])
        self.advance(1)
        client.assert_closed(1008, "Token timeout")

    def test_the_close_timeout_keeps_its_length(self) -> None:
        client = self.connect()
        self.advance(60)
        self.wall.jump(self.jump)
        self.advance(CLOSE_TIMEOUT - 1)
        self.assertIsNone(client.transport.lost)
        self.advance(1)
        self.assertIsNotNone(client.transport.lost)

    def test_the_request_timeout_keeps_its_length(self) -> None:
        client = self.client()
        client.transport.protocol.dataReceived(b"GET / HT")
        self.wall.jump(self.jump)
        self.advance(9)
        self.assertFalse(client.transport.disconnecting)
        self.advance(1)
        self.assertTrue(client.transport.disconnecting)

    def test_a_session_expires_by_the_time_of_day(self) -> None:
        client = self.subscribe(lifetime=100)
        expires_at = self.now + 100
        self.wall.jump(self.jump / 30)
        self.deliver()
        if self.jump > 0:
            client.assert_nothing()
            self.advance(60)
            client.assert_closed(1008, "Session expired")
            return
        self.assertEqual(len(client.texts()), 1)
        self.advance(expires_at - self.now - 1)
        client.frames()
        self.deliver()
        self.assertEqual(len(client.texts()), 1)
        self.advance(1)
        self.deliver()
        client.assert_nothing()

    def test_replies_have_the_time_of_day(self) -> None:
        self.wall.jump(self.jump)
        self.subscribe()

    def test_rechecks_keep_their_interval(self) -> None:
        self.subscribe(lifetime=10 * HOUR)
        for count in (1, 2):
            self.wall.jump(self.jump)
            self.advance(self.recheck)
            self.assertEqual(len(self.rechecker.checks), count)
            self.rechecker.last.grant(self.now + 10 * HOUR)

    def test_an_address_is_blocked_for_a_minute(self) -> None:
        client = self.connect()
        client.present("wrong")
        self.validator.last.refuse()
        self.assertGreater(self.limits.token_attempts.blocked_for("192.0.2.7"), 59)
        self.wall.jump(self.jump)
        self.advance(50)
        self.assertAlmostEqual(self.limits.token_attempts.blocked_for("192.0.2.7"), 10)
        self.advance(10)
        self.assertEqual(self.limits.token_attempts.blocked_for("192.0.2.7"), 0)

    def test_the_message_rate_is_measured_by_durations(self) -> None:
        client = self.subscribe(lifetime=10 * HOUR)
        for number in range(2):
            client.present(f"token{number}")
            self.validator.last.grant(self.now + 10 * HOUR)
        client.frames()
        self.wall.jump(self.jump)
        client.send_frame(1, token_request("one more"))
        client.assert_closed(1008, "Too many messages")

    def test_the_token_of_a_send_expires_by_the_time_of_day(self) -> None:
        client = self.client()
        expires_at = self.now + 600
        client.request("POST", SEND_PATH, {"Authorization": "Bearer x"}, b"1")
        self.wall.jump(self.jump)
        self.validator.last.grant(expires_at)
        client.read_answer()
        self.assertEqual(client.status, 401 if self.jump > 0 else 200)


class SetForwardTests(SetBackTests):
    jump = HOUR


class GrantCacheTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.wall = WallClock(self.clock, 1_500_000_000)
        self.inner = FakeValidator()
        self.validator = GrantCache(self.inner, self.clock, self.wall, 30)
        self.expires_at = self.wall() + 600
        self.reaches_validator()
        self.inner.last.grant(self.expires_at)

    def reaches_validator(self) -> bool:
        """Validate a token; returns whether the cache asked the validator."""
        before = len(self.inner.checks)
        self.validator.validate("a", TopicAddress("cell1", "box1", ("col",), "name"))
        return len(self.inner.checks) > before

    def test_the_cache_time_keeps_its_length_if_the_time_of_day_is_set_back(self) -> None:
        self.wall.jump(-HOUR)
        self.clock.advance(29)
        self.assertFalse(self.reaches_validator())
        self.clock.advance(1)
        self.assertTrue(self.reaches_validator())

    def test_a_cached_grant_expires_by_the_time_of_day(self) -> None:
        self.wall.jump(599)
        self.assertFalse(self.reaches_validator())
        self.wall.jump(1)
        self.assertTrue(self.reaches_validator())

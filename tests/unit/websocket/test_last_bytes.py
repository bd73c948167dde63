"""The bytes that a session sends, whatever happens to it and however its client reads."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from twisted.trial.unittest import SynchronousTestCase

from tests.support.flow_transport import KINDS, flow_client, make_queue
from tests.support.harness import SENDER, TOPIC, ServiceTestCase
from topicsvc.interfaces import Message
from topicsvc.settings import SessionSettings
from topicsvc.websocket import connection

LIFETIME = 5
CLOSE = 8
ENDS = ["revoked", "stop", "broker lost", "invalid", "protocol", "closed", "too many"]
TEXT = 1


class _Service(ServiceTestCase):
    settings = SessionSettings(send_queue=100_000, ping_interval=10)
    recheck = 3600.0

    def runTest(self) -> None: ...


def split_frames(data: bytes) -> list[tuple[int, int, bytes]]:
    """Start, opcode and payload of each frame of a server; the last one may be incomplete."""
    frames, at = [], 0
    while at < len(data):
        start = at
        opcode, size = data[at] & 0x0F, data[at + 1] if at + 1 < len(data) else 0
        at += 2
        if size > 125:
            width = 2 if size == 126 else 8
            size, at = int.from_bytes(data[at : at + width], "big"), at + width
        frames.append((start, opcode, data[at : at + size]))
        at += size
    return frames


class SessionMachine(RuleBasedStateMachine):
    """A session with a client that reads slowly or fast, and all that may happen to it.

    Attributes:
        kind: the kind of the send queue.
        limit: position in the outgoing bytes from which on no data message may start; None: any.
        steps: deliveries and reads; the session does not end before some of them.
    """

    kind = ""

    def __init__(self) -> None:
        super().__init__()
        self.service = _Service()
        self.service.setUp()
        self._patch = patch.object(
            connection,
            "make_send_queue",
            lambda transport, *rest: make_queue(self.kind, transport, *rest),
        )
        self._patch.start()
        self.limit: int | None = None
        self.is_revoked = False
        self.steps = 0

    def teardown(self) -> None:
        self._patch.stop()
        self.service.advance(30)
        self.service.tearDown()

    @initialize()
    def subscribe(self) -> None:
        service = self.service
        self.client = flow_client(service, self.kind)
        self.transport: Any = self.client.transport
        self.client.upgrade()
        self.transport.flush()
        self.client.read_answer()
        assert self.client.status == 101
        self.session = self.transport.protocol
        self.transport.taken.clear()
        self.client.present("first-token")
        service.validator.last.grant(service.now + LIFETIME)
        service.broker.confirm()
        self.transport.room = 0

    @rule(size=st.sampled_from([100, 20_000]), count=st.integers(1, 3))
    def deliver(self, size: int, count: int) -> None:
        self.steps += 1
        for _ in range(count):
            self.service.broker.deliver(Message(TOPIC, SENDER, b'"%s"' % (b"x" * size)))
        self.service.iterate()

    @rule(size=st.sampled_from([100, 400, 1000, 30_000, 90_000]))
    def read(self, size: int) -> None:
        self.steps += 1
        self.transport.room = 0
        self.transport.read_more(size)
        self.service.iterate()

    @rule(payload=st.sampled_from([b"a", b"b"]))
    def ping(self, payload: bytes) -> None:
        self.client.send_frame(9, payload)

    @rule()
    def present_another_token(self) -> None:
        self.client.present("next-token")

    @property
    def has_check(self) -> bool:
        return not self.service.validator.last.result.called

    @precondition(lambda self: self.has_check)
    @rule(result=st.sampled_from(["granted", "soon over", "refused", "unavailable"]))
    def decide(self, result: str) -> None:
        check = self.service.validator.last
        if result == "refused":
            self._revoke(check.refuse)
        elif result == "unavailable":
            check.be_unavailable()
        else:
            check.grant(self.service.now + (1 if result == "soon over" else 2 * LIFETIME))

    def _revoke(self, refuse: Any) -> None:
        """The session's token is no longer valid, so no data may follow."""
        before = len(self.transport.taken)
        refuse()
        if not self.is_revoked:
            self.is_revoked, self.limit = True, before

    @rule(seconds=st.sampled_from([0.5, 2, LIFETIME]))
    def wait(self, seconds: float) -> None:
        """Pings, the end of deadlines, and the expiry."""
        before = len(self.transport.taken)
        self.service.advance(seconds)
        if self.is_revoked:
            return
        is_expired = self.service.now >= self.session._session._expires_at
        if is_expired and self.limit is None:
            self.limit = before

    @invariant()
    def a_later_grant_allows_data_again(self) -> None:
        if not self.is_revoked and self.service.now < self.session._session.deliver_until:
            self.limit = None

    @precondition(lambda self: self.steps > 5)
    @rule(end=st.sampled_from(ENDS))
    def end(self, end: str) -> None:
        """The token is revoked, the service stops, or the client closes or breaks a rule."""
        if end == "revoked":
            if self.session.recheck():
                self._revoke(self.service.rechecker.last.refuse)
        elif end == "stop":
            self.service.websocket_server.stopService()
        elif end == "broker lost":
            self.service.broker.lose_subscriptions()
        elif end == "too many":
            for _ in range(200):
                self.client.send_frame(9, b"")
        else:
            opcode = {"invalid": 1, "protocol": 3, "closed": CLOSE}[end]
            self.client.send_frame(opcode, b"\x03\xe8" if opcode == CLOSE else b"")
        self.service.iterate()

    @invariant()
    def nothing_follows_a_close_frame(self) -> None:
        frames = split_frames(bytes(self.transport.taken))
        assert CLOSE not in [opcode for _, opcode, _ in frames[:-1]], frames

    @invariant()
    def no_data_starts_after_the_expiry_or_the_revocation(self) -> None:
        if self.limit is not None:
            for start, opcode, payload in split_frames(bytes(self.transport.taken)):
                if start >= self.limit and opcode == TEXT:
                    assert payload.startswith(b'{"Response"'), (start, payload[:40])


class LastBytesTests(SynchronousTestCase):
    """Issue: a pong followed the close frame; data left after the expiry."""

    def run_machine(self, kind: str) -> None:
        machine = type("Machine", (SessionMachine,), {"kind": kind})
        run_state_machine_as_test(
            machine,
            settings=settings(
                max_examples=150,
                stateful_step_count=30,
                deadline=None,
                suppress_health_check=list(HealthCheck),
            ),
        )

    def test_nothing_follows_a_close_frame_and_no_data_the_expiry_over_tcp(self) -> None:
        self.run_machine(KINDS[0])

    def test_nothing_follows_a_close_frame_and_no_data_the_expiry_over_tls(self) -> None:
        self.run_machine(KINDS[1])

    def test_nothing_follows_a_close_frame_and_no_data_the_expiry_in_the_fallback(self) -> None:
        self.run_machine(KINDS[2])

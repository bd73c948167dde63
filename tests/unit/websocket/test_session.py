"""The session's state machine: properties that hold for any order of inputs.

Each row of the state table is tested through a whole connection, in test_connection.
"""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tests.support.fakes import INJECTED
from topicsvc.interfaces import Grant
from topicsvc.websocket.session import Begin, Close, Join, Reply, Session, State, Validate

TOKEN = b'{"AccessToken":"x"}'

inputs = st.lists(
    st.tuples(
        st.sampled_from(
            ["token", "nonsense", "binary", "granted", "no right", "refused", "undecided",
             "failed", "joined", "heartbeat", "timeout", "lost", "close"]
        ),
        st.floats(0, 5),
        st.floats(-1, 20),
    ),
    max_size=40,
)  # fmt: skip


def apply(session: Session, event: str, now: float, lifetime: float) -> list[object]:
    """Call the method of `event`; return its effects."""
    match event:
        case "token":
            return session.received(TOKEN, False, now)
        case "nonsense":
            return session.received(b"hello", False, now)
        case "binary":
            return session.received(TOKEN, True, now)
        case "granted":
            return session.granted(Grant("me", now + lifetime, True, False), now)
        case "no right":
            return session.granted(Grant("me", now + lifetime, False, True), now)
        case "refused":
            return session.refused(now, INJECTED)
        case "heartbeat":
            return session.check_expiry(now)
        case "timeout":
            return session.token_timeout()
        case "lost":
            session.lost()
            return []
        case "close":
            return session.close(1001, "Going away")
        case _:
            return getattr(session, event)(now)


class SessionTests(SynchronousTestCase):
    @given(inputs)
    def test_invariants_hold_for_any_order_of_events(
        self, events: list[tuple[str, float, float]]
    ) -> None:
        session, now = Session(), 1000.0
        requests = replies = 0
        pending: str | None = None  # the request in progress
        for event, pause, lifetime in events:
            now += pause
            # Results come only for requests in progress; closing a session cancels them.
            if event in ("granted", "no right", "refused") and pending != "validate":
                continue
            if event == "joined" and pending != "join":
                continue
            if event in ("undecided", "failed") and pending is None:
                continue
            was_closed = session.state is State.CLOSED
            if event in ("token", "nonsense", "binary") and not was_closed:
                requests += 1
            if event in ("granted", "no right", "refused", "undecided", "failed", "joined"):
                pending = None
            effects = apply(session, event, now, lifetime)
            if was_closed:
                self.assertEqual(effects, [])
            for effect in effects:
                if isinstance(effect, Validate):
                    self.assertIsNone(pending, "one check at a time")
                    pending = "validate"
                elif isinstance(effect, Join):
                    self.assertIsNone(pending)
                    pending = "join"
                elif isinstance(effect, Begin):
                    self.assertIs(effect, effects[0], "a session starts before its Success")
                elif isinstance(effect, Reply):
                    replies += 1
                else:
                    self.assertIs(effect, effects[-1], "no effect follows a close")
                    self.assertIs(session.state, State.CLOSED)
            self.assertEqual(
                any(isinstance(effect, Close) for effect in effects) or was_closed
                or event == "lost",
                session.state is State.CLOSED,
            )  # fmt: skip
            self.assertLessEqual(replies, requests)
            if session.state is not State.ACTIVE:
                self.assertEqual(session.deliver_until, 0)
            if session.state is State.CLOSED:
                pending = None

    @given(st.text())
    def test_any_text_is_a_token_message_or_gets_one_reply_and_a_close(self, text: str) -> None:
        effects = Session().received(text.encode("utf-8", "surrogatepass"), False, 0)
        if not isinstance(effects[0], Validate):
            reply, close = effects
            self.assertIsInstance(reply, Reply)
            self.assertEqual(close, Close(1008, "Invalid message"))

    def test_results_after_the_close_have_no_effect(self) -> None:
        session = Session()
        session.received(TOKEN, False, 0)
        session.lost()
        self.assertEqual(session.granted(Grant("me", 60, True, True), 0), [])
        self.assertEqual(session.joined(0), [])
        self.assertEqual(session.refused(0, INJECTED), [])
        self.assertEqual(session.undecided(0), [])
        self.assertEqual(session.failed(0), [])
        self.assertIs(session.state, State.CLOSED)

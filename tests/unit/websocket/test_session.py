"""The rule book by itself: whatever happens, in whatever order, its promises hold.

Each row of its table is tested through a whole connection, in test_websocket.
"""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from topicsvc.interfaces import Grant
from topicsvc.websocket.session import Begin, Close, Join, Reply, Session, State, Validate

TOKEN = b'{"AccessToken":"x"}'

inputs = st.lists(
    st.tuples(
        st.sampled_from(
            ["token", "nonsense", "binary", "granted", "no right", "refused", "undecided",
             "failed", "joined", "beat", "timeout", "lost", "close"]
        ),
        st.floats(0, 5),
        st.floats(-1, 20),
    ),
    max_size=40,
)  # fmt: skip


def play(session: Session, event: str, now: float, life: float) -> list[object]:
    """Let one thing happen."""
    match event:
        case "token":
            return session.received(TOKEN, False, now)
        case "nonsense":
            return session.received(b"hello", False, now)
        case "binary":
            return session.received(TOKEN, True, now)
        case "granted":
            return session.granted(Grant("me", now + life, True, False), now)
        case "no right":
            return session.granted(Grant("me", now + life, False, True), now)
        case "beat":
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


class PromiseTests(SynchronousTestCase):
    @given(inputs)
    def test_whatever_happens(self, events: list[tuple[str, float, float]]) -> None:
        session, now = Session(), 1000.0
        requests = replies = 0
        asked: str | None = None  # the question that is under way, if any
        for event, pause, life in events:
            now += pause
            # Answers come only to questions; a closed session's are cancelled.
            if event in ("granted", "no right", "refused") and asked != "validate":
                continue
            if event == "joined" and asked != "join":
                continue
            if event in ("undecided", "failed") and asked is None:
                continue
            was_closed = session.state is State.CLOSED
            if event in ("token", "nonsense", "binary") and not was_closed:
                requests += 1
            if event in ("granted", "no right", "refused", "undecided", "failed", "joined"):
                asked = None
            effects = play(session, event, now, life)
            if was_closed:
                self.assertEqual(effects, [])
            for effect in effects:
                if isinstance(effect, Validate):
                    self.assertIsNone(asked, "one check at a time")
                    asked = "validate"
                elif isinstance(effect, Join):
                    self.assertIsNone(asked)
                    asked = "join"
                elif isinstance(effect, Begin):
                    self.assertIs(effect, effects[0], "it begins before it is told so")
                elif isinstance(effect, Reply):
                    replies += 1
                else:
                    self.assertIs(effect, effects[-1], "nothing follows a close")
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
                asked = None

    @given(st.text())
    def test_any_text_gets_one_reply_and_a_close_or_is_a_token(self, text: str) -> None:
        effects = Session().received(text.encode("utf-8", "surrogatepass"), False, 0)
        if not isinstance(effects[0], Validate):
            reply, close = effects
            self.assertIsInstance(reply, Reply)
            self.assertEqual(close, Close(1008, "Invalid message"))

    def test_an_answer_that_comes_too_late_changes_nothing(self) -> None:
        session = Session()
        session.received(TOKEN, False, 0)
        session.lost()
        self.assertEqual(session.granted(Grant("me", 60, True, True), 0), [])
        self.assertEqual(session.joined(0), [])
        self.assertEqual(session.refused(0), [])
        self.assertEqual(session.undecided(0), [])
        self.assertEqual(session.failed(0), [])
        self.assertIs(session.state, State.CLOSED)

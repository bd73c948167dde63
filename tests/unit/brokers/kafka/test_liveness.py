from __future__ import annotations

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from topicsvc.brokers.kafka.liveness import BEAT, BEAT_WHEN_AWAY, LivenessProbe
from topicsvc.errors import BrokerUnavailable

WAIT = 4.0
NOTICED = 20


class LifeTests(SynchronousTestCase):
    """Fixture: a broker that answers, is on_silence, or says no."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.questions: list[Deferred[None]] = []
        self.heard: list[str] = []
        self.answers = True
        self.refuses = False
        self.refusal: Exception = BrokerUnavailable("refused")
        self.life = LivenessProbe(
            self.clock,
            self.ask,
            lambda: self.heard.append("on_up"),
            lambda why: self.heard.append(f"on_down: {why}"),
            lambda why: self.heard.append(f"on_silence: {why}"),
        )
        self.addCleanup(self.stop)

    def stop(self) -> None:
        self.life.stop()
        self.answers = True
        self.clock.advance(WAIT)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def ask(self) -> Deferred[None]:
        question: Deferred[None] = Deferred()
        self.questions.append(question)
        if self.refuses:
            question.errback(self.refusal)
        elif self.answers:
            question.callback(None)
        else:
            self.clock.callLater(WAIT, question.errback, BrokerUnavailable("timed out"))
        return question

    def pass_time(self, seconds: float) -> None:
        for _ in range(round(seconds * 4)):
            self.clock.advance(0.25)

    def test_it_is_up_with_the_first_answer(self) -> None:
        self.assertFalse(self.life.is_up)
        self.life.start()
        self.assertTrue(self.life.is_up)
        self.assertEqual(self.heard, ["on_up"])

    def test_it_asks_all_the_time_and_says_nothing_of_it(self) -> None:
        self.life.start()
        self.pass_time(10 * BEAT)
        self.assertEqual(len(self.questions), 11)
        self.assertEqual(self.heard, ["on_up"])

    def test_one_silence_is_nothing_two_are_a_loss_noticed_in_time(self) -> None:
        self.life.start()
        self.answers = False
        self.pass_time(BEAT + WAIT)
        self.assertTrue(self.life.is_up)
        self.pass_time(NOTICED - BEAT - WAIT)
        self.assertFalse(self.life.is_up)
        self.assertEqual(self.heard[1], "on_down: timed out")

    def test_a_pause_of_ours_is_no_loss(self) -> None:
        self.life.start()
        self.answers = False
        self.pass_time(BEAT)
        self.answers = True
        self.clock.advance(3600)
        self.pass_time(BEAT)
        self.assertEqual(self.heard, ["on_up"])

    def test_a_doubt_is_looked_into_at_once(self) -> None:
        self.life.start()
        self.refuses = True
        self.life.suspect()
        self.clock.advance(0)
        self.assertEqual(self.heard, ["on_up", "on_down: refused"])

    def test_a_doubt_that_was_wrong_is_forgotten(self) -> None:
        self.life.start()
        self.life.suspect()
        self.clock.advance(0)
        self.assertEqual(len(self.questions), 2)
        self.refuses = True
        self.pass_time(BEAT)
        self.assertEqual(self.heard, ["on_up"])
        self.pass_time(BEAT_WHEN_AWAY)
        self.assertEqual(self.heard, ["on_up", "on_down: refused"])

    def test_it_is_asked_often_while_it_is_away_and_its_return_is_seen(self) -> None:
        self.refuses = True
        self.life.start()
        self.pass_time(10)
        self.assertEqual(set(self.heard), {"on_silence: refused"})
        self.assertEqual(len(self.questions), 1 + 10 / BEAT_WHEN_AWAY)
        self.refuses = False
        self.pass_time(BEAT_WHEN_AWAY)
        self.assertEqual(self.heard[-1], "on_up")
        self.life.suspect()
        self.pass_time(BEAT)
        self.assertTrue(self.life.is_up)

    def test_a_fault_of_ours_is_logged_and_counts_as_silence(self) -> None:
        self.life.start()
        self.refusal = RuntimeError("said the test")
        self.refuses = True
        self.pass_time(BEAT + BEAT_WHEN_AWAY)
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 2)
        self.assertEqual(self.heard[-1], "on_down: said the test")

    def test_nothing_is_said_after_the_stop(self) -> None:
        self.answers = False
        self.life.start()
        self.life.stop()
        self.pass_time(10)
        self.assertEqual(self.heard, [])
        self.assertFalse(self.life.is_up)

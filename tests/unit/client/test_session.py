"""The state machine of a client, where the scripted servers do not reach."""

from __future__ import annotations

import json
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from topicsvc.client.rules.effects import (
    CancelGap,
    Connect,
    Disconnect,
    Effect,
    End,
    Gap,
    GapFound,
    GetToken,
    Ping,
    Send,
    StateChanged,
)
from topicsvc.client.rules.messages import Message
from topicsvc.client.rules.session import GRACE, PING_AFTER, Policy, Session


def granted(**members: Any) -> str:
    reply = {"Response": "AccessToken", "Result": "Success", "ExpiresIn": 3600, "Timestamp": 1}
    return json.dumps({**reply, **members})


def data(number: int) -> str:
    return json.dumps({"From": None, "Body": number, "Position": f"a.{number}"})


class SessionTestCase(SynchronousTestCase):
    """Fixture: a session that is live at position a.0, at time 0; 2 messages fill it."""

    def setUp(self) -> None:
        policy = Policy(buffer=2)
        self.session = Session(recover=True, since=None, random=lambda: 0.5, policy=policy)
        self.session.start(0.0)
        self.session.token(0.0, "t1")
        self.session.opened(0.0)
        self.receive(granted(Position="a.0", Missed=False, Heartbeat=60))

    def receive(self, *texts: str, now: float = 0.0) -> list[Effect]:
        self.session.heard(now)
        return [effect for text in texts for effect in self.session.received(now, text)]

    def take(self, now: float = 0.0) -> Any:
        item = self.session.take(now)
        return item.body if isinstance(item, Message) else item


class PaceTests(SessionTestCase):
    def test_nothing_more_is_read_until_half_of_the_buffer_is_taken(self) -> None:
        self.receive(data(1))
        self.assertFalse(self.session.is_full)
        self.receive(data(2))
        self.assertTrue(self.session.is_full)
        self.receive(data(3))  # had arrived already
        self.assertEqual(self.take(), 1)
        self.assertTrue(self.session.is_full)
        self.assertEqual(self.take(), 2)
        self.assertFalse(self.session.is_full)
        self.assertEqual([self.take(), self.take()], [3, None])

    def test_silence_does_not_count_while_nothing_is_read(self) -> None:
        self.receive(data(1), data(2))
        self.assertEqual(self.session.look(1000.0), [])
        self.take(1000.0)
        self.assertEqual(self.session.look(1000.0 + 60 + GRACE - 0.1), [])
        [disconnect, changed] = self.session.look(1000.0 + 60 + GRACE)
        self.assertEqual((disconnect, changed), (Disconnect(), StateChanged("waiting")))

    def test_the_reply_to_a_token_is_not_missed_while_nothing_is_read(self) -> None:
        self.session.refresh(0.0)
        self.session.token(0.0, "t2")
        self.receive(data(1), data(2))
        self.assertEqual(self.session.look(100.0), [])
        self.take(100.0)
        self.assertEqual(self.session.look(114.9), [])
        self.assertIn(Disconnect(), self.session.look(115.0))

    def test_a_new_connection_is_given_up_also_while_messages_wait(self) -> None:
        self.receive(data(1), data(2))
        self.session.closed(10.0, 1006, "")
        self.assertEqual(self.session.look(10.25), [StateChanged("connecting"), Connect()])
        self.assertIn(Disconnect(), self.session.look(20.25))

    def test_the_position_is_that_of_the_last_message_that_was_taken(self) -> None:
        """And the next connection goes on behind the last one that has arrived."""
        self.receive(data(1), data(2))
        self.take()
        self.assertEqual(self.session.position, "a.1")
        self.session.closed(0.0, 1006, "")
        self.session.look(0.25)
        [send] = self.session.opened(0.5)
        self.assertEqual(send, Send('{"AccessToken":"t1","Since":"a.2"}'))
        self.take()
        self.assertEqual(self.session.position, "a.2")

    def test_a_heartbeat_behind_waiting_messages_counts_when_they_are_taken(self) -> None:
        self.receive(data(1), '{"Position":"a.9"}')
        self.assertEqual(self.session.position, "a.0")
        self.take()
        self.assertEqual(self.session.position, "a.9")


class GapTests(SessionTestCase):
    def test_messages_before_a_gap_are_taken_before_it(self) -> None:
        self.receive(data(1))
        gap = Gap("a.1", "b.5")
        effects = self.receive(granted(Position="b.5", Missed=True, Heartbeat=60), data(6))
        self.assertEqual(effects, [GapFound(gap)])
        self.assertEqual([self.take(), self.take(), self.take()], [1, gap, None])
        self.assertEqual(self.session.position, "a.1")
        self.session.gap_handled()
        self.assertEqual(self.session.position, "b.5")
        self.assertEqual(self.take(), 6)

    def test_a_second_gap_replaces_one_that_waits_and_what_follows_it(self) -> None:
        self.receive(data(1))
        self.receive(granted(Position="b.5", Missed=True, Heartbeat=60), data(6))
        self.receive(granted(Position="c.1", Missed=True, Heartbeat=60))
        self.assertEqual([self.take(), self.take()], [1, Gap("a.1", "c.1")])

    def test_a_second_gap_ends_the_handling_of_the_first(self) -> None:
        self.receive(granted(Position="b.5", Missed=True, Heartbeat=60))
        self.take()
        effects = self.receive(granted(Position="c.1", Missed=True, Heartbeat=60))
        self.assertEqual(effects, [CancelGap(), GapFound(Gap("a.0", "c.1"))])
        self.assertEqual(self.take(), Gap("a.0", "c.1"))

    def test_a_gap_that_failed_is_replaced_without_being_cancelled(self) -> None:
        self.receive(granted(Position="b.5", Missed=True, Heartbeat=60))
        self.take()
        self.session.gap_failed(0.0)
        self.assertIsNone(self.take())
        effects = self.receive(granted(Position="c.1", Missed=True, Heartbeat=60))
        self.assertEqual(effects, [GapFound(Gap("a.0", "c.1"))])
        self.assertEqual(self.take(), Gap("a.0", "c.1"))

    def test_the_result_of_a_handling_that_was_cancelled_does_not_count(self) -> None:
        """An application may go on after the cancellation."""
        for end in (self.session.gap_handled, lambda: self.session.gap_failed(1.0)):
            with self.subTest(end=end):
                self.receive(granted(Position="b.5", Missed=True, Heartbeat=60))
                self.assertIsInstance(self.take(), Gap)
                effects = self.receive(data(6), data(7), data(8))
                self.assertEqual(effects, [CancelGap(), GapFound(Gap("a.0", "a.8"))])
                end()
                self.assertEqual((self.take(), self.session.position), (None, "a.0"))
                self.session.look(0.25)
                self.assertEqual(self.take(), Gap("a.0", "a.8"))

    def test_positions_that_stay_switched_off_are_no_further_gap(self) -> None:
        self.receive(granted(Position=None, Missed=True, Heartbeat=60))
        self.take()
        self.session.gap_handled()
        self.assertEqual(self.receive(granted(Position=None, Missed=True, Heartbeat=60)), [])


class SilenceTests(SessionTestCase):
    def test_without_positions_a_ping_is_sent_and_its_answer_awaited(self) -> None:
        self.receive(granted())
        self.assertEqual(self.session.look(PING_AFTER - 0.1), [])
        self.assertEqual(self.session.look(PING_AFTER), [Ping()])
        self.assertEqual(self.session.look(PING_AFTER + GRACE - 0.1), [])
        self.session.heard(PING_AFTER + GRACE - 0.1)
        self.assertEqual(self.session.look(PING_AFTER + GRACE), [])
        later = 2 * PING_AFTER + GRACE - 0.1
        self.assertEqual(self.session.look(later), [Ping()])
        self.assertIn(Disconnect(), self.session.look(later + GRACE))
        self.assertEqual(
            str(self.session.end), "nothing has arrived for 75 s: the connection is dead"
        )


class TokenTests(SessionTestCase):
    def test_a_renewal_that_is_answered_after_the_expiry_ends_the_connection(self) -> None:
        self.receive(granted(ExpiresIn=10, Position="a.0", Missed=False, Heartbeat=60))
        self.assertEqual(self.session.look(7.0), [GetToken("expiring")])
        self.session.token(9.0, "t2")
        self.assertEqual(self.session.look(11.0), [])
        reply = '{"Response":"AccessToken","Result":"Error","Reason":"Service unavailable"}'
        effects = self.receive(reply, now=12.0)
        self.assertEqual(effects, [Disconnect(), StateChanged("waiting")])

    def test_a_refusal_that_nobody_asked_for_ends_the_connection(self) -> None:
        reply = '{"Response":"AccessToken","Result":"Error","Reason":"Service unavailable"}'
        self.assertEqual(self.receive(reply), [Disconnect(), StateChanged("waiting")])
        self.assertEqual(self.session.end, End(1013, "Service unavailable"))

    def test_an_application_without_a_token_is_failed(self) -> None:
        self.session.refresh(0.0)
        effects = self.session.no_token("signed out")
        self.assertEqual(effects, [Disconnect(), StateChanged("failed")])
        self.assertEqual(str(self.session.end), "signed out")

"""The test of the delivery contract, the same for every broker.

Delivery is at most once, in the broker's order for each topic, and complete: each message that the
broker accepts after ``subscribe`` has fired is delivered.
"""

from __future__ import annotations

from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults, inlineCallbacks
from twisted.internet.task import deferLater

from topicsvc.interfaces import Broker, Mark, Message, TopicLog
from topicsvc.topics import TopicAddress

MESSAGES = 200


class Inbox:
    """Collects the messages of a subscription."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self._waiting: list[tuple[int, Deferred[None]]] = []

    def __call__(self, message: Message) -> None:
        self.messages.append(message)
        for waiting in [each for each in self._waiting if len(self.messages) >= each[0]]:
            self._waiting.remove(waiting)
            waiting[1].callback(None)

    def holds(self, count: int) -> Deferred[None]:
        """Fire when this number of messages has arrived."""
        arrived: Deferred[None] = Deferred()
        if len(self.messages) >= count:
            arrived.callback(None)
        else:
            self._waiting.append((count, arrived))
        return arrived

    @property
    def bodies(self) -> list[bytes]:
        return [message.body for message in self.messages]


class BrokerContract:
    """Mix into a trial TestCase that has a running broker in ``self.broker``.

    ``self.name`` is part of the topic names. It must differ between the tests that share a broker.
    """

    broker: Broker
    name = "contract"
    delivers_while_paused = False
    """Whether the broker cannot keep messages while it is paused."""

    def topic(self, name: str = "name") -> TopicAddress:
        return TopicAddress("cell1", "box1", (self.name, "col"), name)

    def message(self, body: bytes, name: str = "name", sender: str | None = None) -> Message:
        return Message(self.topic(name), sender or "https://cell2.unit1.example/", body)

    @inlineCallbacks
    def test_messages_accepted_after_the_confirmation_arrive(self) -> Any:
        inbox = Inbox()
        subscription = yield self.broker.subscribe(self.topic(), inbox)
        yield self.broker.publish(self.message(b"1"))
        yield inbox.holds(1)
        self.assertEqual(inbox.messages, [self.message(b"1")])
        yield subscription.stop()

    @inlineCallbacks
    def test_order_is_kept_and_no_message_is_delivered_twice(self) -> Any:
        inbox = Inbox()
        subscription = yield self.broker.subscribe(self.topic("order"), inbox)
        bodies = [b"%d" % number for number in range(MESSAGES)]
        accepted = [self.broker.publish(self.message(body, "order")) for body in bodies]
        yield from accepted
        yield inbox.holds(MESSAGES)
        yield self.broker.publish(self.message(b'"last"', "order"))
        yield inbox.holds(MESSAGES + 1)
        self.assertEqual(inbox.bodies, [*bodies, b'"last"'])
        yield subscription.stop()

    @inlineCallbacks
    def test_body_and_sender_are_kept(self) -> Any:
        inbox = Inbox()
        subscription = yield self.broker.subscribe(self.topic("body"), inbox)
        bodies = [
            b'{"hoge":"testmessage", "flag":true}',
            b"[1,2.50,1e400,12345678901234567890]",
            '"\N{GRINNING FACE} \N{HIRAGANA LETTER A} \xe9 \x7f"'.encode(),
            b'"\\u0000 \\ud83d\\ude00 \\ud800"',
            b'{"a":1,"a":2}',
            b"null",
        ]
        for body in bodies:
            yield self.broker.publish(self.message(body, "body", "https://c.unit1.example/"))
        yield inbox.holds(len(bodies))
        self.assertEqual(inbox.bodies, [self.expected_body(body) for body in bodies])
        self.assertEqual({each.sender for each in inbox.messages}, {"https://c.unit1.example/"})
        yield subscription.stop()

    def expected_body(self, body: bytes) -> bytes:
        """The body that is delivered; a broker may change it."""
        return body

    @inlineCallbacks
    def test_messages_of_another_topic_are_not_delivered(self) -> Any:
        mine, other = Inbox(), Inbox()
        one = yield self.broker.subscribe(self.topic("mine"), mine)
        two = yield self.broker.subscribe(self.topic("other"), other)
        yield self.broker.publish(self.message(b"1", "mine"))
        yield self.broker.publish(self.message(b"2", "other"))
        yield mine.holds(1)
        yield other.holds(1)
        self.assertEqual((mine.bodies, other.bodies), ([b"1"], [b"2"]))
        yield one.stop()
        yield two.stop()

    @inlineCallbacks
    def test_each_subscription_of_a_topic_gets_the_message(self) -> Any:
        first, second = Inbox(), Inbox()
        one = yield self.broker.subscribe(self.topic("shared"), first)
        two = yield self.broker.subscribe(self.topic("shared"), second)
        yield self.broker.publish(self.message(b"1", "shared"))
        yield first.holds(1)
        yield second.holds(1)
        self.assertEqual((first.bodies, second.bodies), ([b"1"], [b"1"]))
        yield one.stop()
        yield two.stop()

    @inlineCallbacks
    def test_no_message_arrives_after_stop_which_may_be_called_twice(self) -> Any:
        stopped, other = Inbox(), Inbox()
        one = yield self.broker.subscribe(self.topic("stop"), stopped)
        two = yield self.broker.subscribe(self.topic("stop"), other)
        stopping = one.stop()
        yield self.broker.publish(self.message(b"1", "stop"))
        yield stopping
        yield one.stop()
        yield other.holds(1)
        self.assertEqual(stopped.messages, [])
        yield two.stop()

    @inlineCallbacks
    def test_a_topic_can_be_subscribed_again(self) -> Any:
        for body in (b"1", b"2", b"3"):
            inbox = Inbox()
            subscription = yield self.broker.subscribe(self.topic("again"), inbox)
            yield self.broker.publish(self.message(body, "again"))
            yield inbox.holds(1)
            self.assertEqual(inbox.bodies, [body])
            yield subscription.stop()

    @inlineCallbacks
    def test_messages_accepted_during_a_pause_arrive_after_it(self) -> Any:
        inbox = Inbox()
        subscription = yield self.broker.subscribe(self.topic("paused"), inbox)
        self.broker.pause()
        self.broker.pause()
        bodies = [b"%d" % number for number in range(MESSAGES)]
        for body in bodies:
            yield self.broker.publish(self.message(body, "paused"))
        yield deferLater(reactor, 0.1)
        self.assertEqual(inbox.bodies, bodies if self.delivers_while_paused else [])
        self.assertTrue(self.broker.is_up)
        self.broker.resume()
        self.broker.resume()
        yield self.broker.publish(self.message(b'"last"', "paused"))
        yield inbox.holds(MESSAGES + 1)
        self.assertEqual(inbox.bodies, [*bodies, b'"last"'])
        yield subscription.stop()

    @inlineCallbacks
    def test_it_is_settled_when_all_accepted_messages_are_delivered(self) -> Any:
        inbox = Inbox()
        subscription = yield self.broker.subscribe(self.topic("settled"), inbox)
        for is_paused in (False, True):
            if is_paused:
                self.broker.pause()
            for number in range(MESSAGES):
                yield self.broker.publish(self.message(b"%d" % number, "settled"))
            if is_paused:
                self.assertEqual(self.broker.is_settled, self.delivers_while_paused)
                self.broker.resume()
            while not self.broker.is_settled:
                yield deferLater(reactor, 0)
            self.assertEqual(len(inbox.bodies), MESSAGES * (1 + is_paused))
        yield subscription.stop()

    @inlineCallbacks
    def test_a_subscriber_may_pause_it(self) -> Any:
        inbox = Inbox()

        def take(message: Message) -> None:
            inbox(message)
            self.broker.pause()
            reactor.callLater(0, self.broker.resume)

        subscription = yield self.broker.subscribe(self.topic("full"), take)
        bodies = [b"%d" % number for number in range(MESSAGES)]
        yield from [self.broker.publish(self.message(body, "full")) for body in bodies]
        yield inbox.holds(MESSAGES)
        self.assertEqual(inbox.bodies, bodies)
        yield subscription.stop()

    @inlineCallbacks
    def test_an_exception_of_one_subscriber_does_not_affect_the_others(self) -> Any:
        def fail(_: Message) -> None:
            raise RuntimeError("simulated")

        inbox = Inbox()
        one = yield self.broker.subscribe(self.topic("faulty"), fail)
        two = yield self.broker.subscribe(self.topic("faulty"), inbox)
        yield self.broker.publish(self.message(b"1", "faulty"))
        yield inbox.holds(1)
        yield deferLater(reactor, 0)
        self.assertGreaterEqual(len(self.flushLoggedErrors(RuntimeError)), 1)
        yield one.stop()
        yield two.stop()


class LogContract:
    """What a broker that keeps a log promises, beside `BrokerContract`.

    A position is a place in the log: the epoch, and for each lane the id behind which data begins.
    From a place that is in the log, exactly the messages behind it follow, once and in order.

    Mix into a TestCase that has a running broker in ``self.broker``.
    """

    broker: Broker
    log_name = "log"
    """Part of the topic names."""

    def make_other(self) -> Any:
        """Fires with another running broker, as of another process."""
        raise NotImplementedError

    def topic_of(self, name: str) -> TopicAddress:
        return TopicAddress("cell1", "box1", (self.log_name, "col"), name)

    def send_to(self, name: str, *bodies: bytes) -> Any:
        """Send messages; fires when all are accepted."""
        topic, sender = self.topic_of(name), "https://cell2.unit1.example/"
        sent = [self.broker.publish(Message(topic, sender, body)) for body in bodies]
        return gatherResults(sent)

    @inlineCallbacks
    def join(self, name: str, broker: Broker | None = None) -> Any:
        """Subscribe to a topic; fires with what arrives there."""
        inbox = Inbox()
        yield (broker or self.broker).subscribe(
            self.topic_of(name), inbox, None, self.unexpected_gap
        )
        return inbox

    def unexpected_gap(self, log: TopicLog | None) -> None:
        raise AssertionError(f"nothing was lost, but messages may be missing: {log}")

    def recall(self, name: str, broker: Broker | None = None) -> Any:
        recalled = (broker or self.broker).recall(self.topic_of(name))
        assert recalled is not None, "it keeps no log"
        return recalled

    def assert_log(self, log: TopicLog, messages: list[Message]) -> None:
        """The log has these messages, as they were delivered, in the order of each lane."""
        kept = [message for message, _ in log.messages]
        for lane in range(len(log.start)):
            marks = [each.mark for each in kept if each.mark and each.mark.lane == lane]
            expected = [each.mark for each in messages if each.mark and each.mark.lane == lane]
            assert marks == expected, (marks, expected)
        by_mark = {each.mark: each for each in messages}
        assert [by_mark[each.mark] for each in kept] == kept
        assert len(kept) == len(messages)

    def end(self, log: TopicLog) -> tuple[str, ...]:
        """The place behind all messages of a log."""
        place = list(log.start)
        for message, _ in log.messages:
            assert message.mark is not None
            place[message.mark.lane] = message.mark.id
        return tuple(place)

    @inlineCallbacks
    def test_each_message_has_a_mark_of_its_own(self) -> Any:
        inbox = yield self.join("marks")
        yield self.send_to("marks", *(b"%d" % number for number in range(MESSAGES)))
        yield inbox.holds(MESSAGES)
        marks = {each.mark for each in inbox.messages}
        assert len(marks) == MESSAGES, "some marks are equal"
        for mark in marks:
            assert isinstance(mark, Mark) and mark.id.isascii() and mark.id.isprintable()
            assert not set(mark.id) & set("._ "), mark

    @inlineCallbacks
    def test_the_log_has_the_messages_that_were_delivered(self) -> Any:
        inbox = yield self.join("delivered")
        yield self.send_to("delivered", b"1", b"2", b"3")
        yield inbox.holds(3)
        log = yield self.recall("delivered")
        self.assert_log(log, inbox.messages)
        assert log.epoch.isascii() and not set(log.epoch) & set("._ ")
        ages = [age for _, age in log.messages]
        assert all(0 <= age < 60 for age in ages), ages

    @inlineCallbacks
    def test_messages_from_before_the_subscription_are_in_the_log(self) -> Any:
        first = yield self.join("before")
        yield self.send_to("before", b"1", b"2")
        yield first.holds(2)
        other = yield self.make_other()
        yield self.join("before", other)
        self.assert_log((yield self.recall("before", other)), first.messages)

    @inlineCallbacks
    def test_an_empty_topic_has_a_place_and_the_first_message_follows_it(self) -> Any:
        inbox = yield self.join("empty")
        empty = yield self.recall("empty")
        assert not empty.messages
        yield self.send_to("empty", b"1")
        yield inbox.holds(1)
        log = yield self.recall("empty")
        assert (log.epoch, log.start) == (empty.epoch, empty.start)
        self.assert_log(log, inbox.messages)

    @inlineCallbacks
    def test_the_log_and_what_follows_have_no_hole_and_nothing_twice(self) -> Any:
        """Also while messages are sent without a pause."""
        inbox = yield self.join("flood")
        bodies = [b"%d" % number for number in range(2 * MESSAGES)]
        sending = self.send_to("flood", *bodies)
        logs = []
        for part in range(5):
            yield inbox.holds(part * MESSAGES // 4)
            recalled = self.recall("flood")
            recalled.addCallback(lambda log: logs.append((log, len(inbox.messages))))
            yield recalled
        yield sending
        yield inbox.holds(len(bodies))
        for log, delivered in logs:
            self.assert_log(log, inbox.messages[:delivered])
        assert len({mark.mark for mark in inbox.messages}) == len(bodies)

    @inlineCallbacks
    def test_every_process_has_the_same_log(self) -> Any:
        other = yield self.make_other()
        mine = yield self.join("same")
        theirs = yield self.join("same", other)
        yield self.send_to("same", *(b"%d" % number for number in range(20)))
        yield mine.holds(20)
        yield theirs.holds(20)
        one = yield self.recall("same")
        two = yield self.recall("same", other)
        assert (one.epoch, one.start, self.end(one)) == (two.epoch, two.start, self.end(two))
        self.assert_log(two, mine.messages)
        marks = {each.body: each.mark for each in mine.messages}
        assert marks == {each.body: each.mark for each in theirs.messages}

    @inlineCallbacks
    def test_a_quiet_topic_keeps_its_place(self) -> Any:
        inbox = yield self.join("quiet")
        yield self.send_to("quiet", b"1")
        yield inbox.holds(1)
        first = yield self.recall("quiet")
        second = yield self.recall("quiet")
        assert (first.epoch, self.end(first)) == (second.epoch, self.end(second))

    @inlineCallbacks
    def test_topics_have_different_epochs(self) -> Any:
        epochs = set()
        for name in ("one", "two"):
            yield self.join(name)
            log = yield self.recall(name)
            epochs.add(log.epoch)
        assert len(epochs) == 2

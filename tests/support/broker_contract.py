"""The test of the delivery contract, the same for every broker.

Delivery is at most once, in the broker's order for each topic, and complete: each message that the
broker accepts after ``subscribe`` has fired is delivered.
"""

from __future__ import annotations

from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred, inlineCallbacks
from twisted.internet.task import deferLater

from topicsvc.interfaces import Broker, Message
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

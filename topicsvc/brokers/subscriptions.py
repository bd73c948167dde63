"""Adapter: who listens to what at a broker that is asked once for each topic.

A topic is asked for when its first listener comes, and let go a few seconds after the last,
so that who comes back at once costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import count
from typing import ClassVar

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from topicsvc.errors import BrokerUnavailable
from topicsvc.interfaces import Message, Subscription
from topicsvc.scheduling.deadlines import Deadlines
from topicsvc.topics import TopicAddress

__all__ = ["LINGER", "Deliver", "Lost", "Subscriptions", "TopicSubscription"]

LINGER = 5.0
"""Seconds for which a topic stays subscribed after its last listener."""

Deliver = Callable[[Message], None]
Lost = Callable[[], None]


class Subscriptions:
    """The book of all topics.

    Args:
        clock: tells and keeps the time.
        name: what the broker calls a topic.
        ask: called with a topic that is to be asked for; it must `new_id` it.
        let_go: called with a topic that was asked for and that nobody listens to any more.
    """

    def __init__(
        self,
        clock: IReactorTime,
        name: Callable[[TopicAddress], str],
        ask: Callable[[TopicSubscription], None],
        let_go: Callable[[TopicSubscription], None],
    ) -> None:
        self._name = name
        self._ask = ask
        self._let_go = let_go
        self._numbers = count(1)
        self._topics: dict[TopicAddress, TopicSubscription] = {}
        self._by_id: dict[str, TopicSubscription] = {}
        self._idle = Deadlines[TopicSubscription](clock, LINGER, self._drop)

    def __len__(self) -> int:
        return len(self._topics)

    def __iter__(self) -> Iterator[TopicSubscription]:
        return iter(tuple(self._topics.values()))

    def is_live(self, address: TopicAddress) -> bool:
        """Whether the broker brings what it accepts for the topic of that address."""
        topic = self._topics.get(address)
        return topic is not None and topic.is_live

    def subscribe(
        self, address: TopicAddress, deliver: Deliver, lost: Lost | None
    ) -> Deferred[Subscription]:
        """See `topicsvc.interfaces.Broker`; fires when the topic is confirmed."""
        topic = self._topics.get(address)
        if topic is None:
            topic = self._topics[address] = TopicSubscription(address, self._name(address))
            self._ask(topic)
        self._idle.cancel(topic)
        subscription = _Subscription(self, topic, deliver, lost)
        if topic.is_live:
            topic.listeners[subscription] = None
            return succeed(subscription)

        def withdraw(_: Deferred[Subscription]) -> None:
            subscription.stop()

        confirmed: Deferred[Subscription] = Deferred(withdraw)
        topic.waiting[subscription] = confirmed
        return confirmed

    def leave(self, topic: TopicSubscription, subscription: _Subscription) -> None:
        """`subscription` has ended."""
        topic.listeners.pop(subscription, None)
        topic.waiting.pop(subscription, None)
        if topic.listeners or topic.waiting:
            return
        if topic.id:
            self._idle.start(topic)
        elif self._topics.get(topic.address) is topic:
            del self._topics[topic.address]

    def new_id(self, topic: TopicSubscription) -> str:
        """Note that `topic` is asked for; returns the question's id.

        It is new each time, so that what comes for an older one is told apart.
        """
        self._by_id.pop(topic.id, None)
        topic.id = str(next(self._numbers))
        self._by_id[topic.id] = topic
        return topic.id

    def by_id(self, id_: str) -> TopicSubscription | None:
        """The topic whose newest question that was; None: it is of the past."""
        return self._by_id.get(id_)

    def confirm(self, topic: TopicSubscription) -> None:
        """From now on the broker brings all that it accepts for `topic`."""
        topic.is_live = True
        waiting, topic.waiting = topic.waiting, {}
        topic.listeners.update(dict.fromkeys(waiting))
        for subscription, confirmed in waiting.items():
            confirmed.callback(subscription)

    def refuse(self, topic: TopicSubscription, why: BrokerUnavailable) -> None:
        """The broker does not serve `topic`: whoever waits or listens hears of it."""
        waiting, topic.waiting = topic.waiting, {}
        listeners = tuple(topic.listeners)
        self._idle.cancel(topic)
        self._drop(topic)
        for confirmed in waiting.values():
            confirmed.errback(why)
        for subscription in listeners:
            subscription.tell_lost()

    def fail(self, topics: Iterable[TopicSubscription], why: BrokerUnavailable) -> None:
        """What was asked of the broker is void: those who wait hear it, listeners stay."""
        for topic in topics:
            self._idle.cancel(topic)
            self._by_id.pop(topic.id, None)
            waiting = topic.forget()
            if not topic.listeners:
                del self._topics[topic.address]
            for confirmed in waiting.values():
                confirmed.errback(why)

    def tell_lost(self, topics: Iterable[TopicSubscription]) -> None:
        """All who listen to `topics` hear that messages may have been missed."""
        for subscription in [each for topic in topics for each in topic.listeners]:
            subscription.tell_lost()

    def _drop(self, topic: TopicSubscription) -> None:
        """Nobody listens to `topic` any more, or nobody can."""
        del self._topics[topic.address]
        del self._by_id[topic.id]
        self._let_go(topic)
        topic.forget()


class TopicSubscription:
    """One topic: those who listen, those who wait for the broker's word.

    Attributes:
        name: what the broker calls it.
        id: of the question or subscription; none while it is not asked for.
        is_live: the broker has confirmed it.
    """

    __slots__ = ("address", "id", "is_live", "listeners", "name", "waiting")

    _log: ClassVar[Logger] = Logger()

    def __init__(self, address: TopicAddress, name: str) -> None:
        self.address = address
        self.name = name
        self.id = ""
        self.is_live = False
        self.listeners: dict[_Subscription, None] = {}
        self.waiting: dict[_Subscription, Deferred[Subscription]] = {}

    def deliver(self, message: Message) -> None:
        """Hand `message` to all who listen; a listener's failure is its own."""
        for subscription in tuple(self.listeners):
            try:
                subscription.deliver(message)
            except Exception:
                self._log.failure("a subscriber of {topic} failed", topic=self.address.path)

    def forget(self) -> dict[_Subscription, Deferred[Subscription]]:
        """The broker knows nothing of it; returns those who waited."""
        self.id = ""
        self.is_live = False
        waiting, self.waiting = self.waiting, {}
        return waiting


class _Subscription:
    __slots__ = ("_deliver", "_listeners", "_lost", "_topic")

    def __init__(
        self,
        listeners: Subscriptions,
        topic: TopicSubscription,
        deliver: Deliver,
        lost: Lost | None,
    ) -> None:
        self._listeners = listeners
        self._topic = topic
        self._deliver: Deliver | None = deliver
        self._lost = lost

    def deliver(self, message: Message) -> None:
        if self._deliver is not None:
            self._deliver(message)

    def tell_lost(self) -> None:
        if self._deliver is not None and self._lost is not None:
            self._lost()

    def stop(self) -> Deferred[None]:
        """See `topicsvc.interfaces.Subscription`."""
        if self._deliver is not None:
            self._deliver = None
            self._listeners.leave(self._topic, self)
        return succeed(None)

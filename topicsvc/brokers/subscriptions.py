"""Shares one subscription at the broker among all subscribers of a topic.

A topic is requested from the broker for its first subscriber. It is unsubscribed a few seconds
after its last subscriber has stopped, so a subscriber that returns soon causes no request.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import count
from typing import ClassVar

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from topicsvc.errors import BrokerUnavailable
from topicsvc.interfaces import Message, Subscription, TopicLog
from topicsvc.scheduling.deadlines import Deadlines
from topicsvc.topics import TopicAddress

__all__ = [
    "UNSUBSCRIBE_DELAY",
    "Deliver",
    "OnLost",
    "OnMissed",
    "Subscriptions",
    "TopicSubscription",
]

UNSUBSCRIBE_DELAY = 5.0
"""Seconds for which a topic stays subscribed after its last subscriber has stopped."""

Deliver = Callable[[Message], None]
OnLost = Callable[[], None]
OnMissed = Callable[[TopicLog | None], None]


class Subscriptions:
    """All topics with subscribers.

    Args:
        clock: the time and timers.
        name: returns the broker's name of a topic.
        request: requests a topic from the broker; it must call `new_id` for the topic.
        unsubscribe: called with a requested topic that has no subscribers any more.
        forget: called with such a topic if its request is void, as after an outage; None: the
            broker keeps nothing for it.
    """

    def __init__(
        self,
        clock: IReactorTime,
        name: Callable[[TopicAddress], str],
        request: Callable[[TopicSubscription], None],
        unsubscribe: Callable[[TopicSubscription], None],
        forget: Callable[[TopicSubscription], None] | None = None,
    ) -> None:
        self._name = name
        self._request = request
        self._unsubscribe = unsubscribe
        self._forget = forget
        self._ids = count(1)
        self._topics: dict[TopicAddress, TopicSubscription] = {}
        self._by_id: dict[str, TopicSubscription] = {}
        self._idle = Deadlines[TopicSubscription](clock, UNSUBSCRIBE_DELAY, self._drop)

    def __len__(self) -> int:
        return len(self._topics)

    def __iter__(self) -> Iterator[TopicSubscription]:
        return iter(tuple(self._topics.values()))

    def is_confirmed(self, address: TopicAddress) -> bool:
        """Whether the broker has confirmed the topic with this address."""
        topic = self._topics.get(address)
        return topic is not None and topic.is_confirmed

    def confirmed(self, address: TopicAddress) -> TopicSubscription | None:
        """The topic with this address; None: the broker has not confirmed it."""
        topic = self._topics.get(address)
        return topic if topic is not None and topic.is_confirmed else None

    def subscribe(
        self,
        address: TopicAddress,
        deliver: Deliver,
        lost: OnLost | None,
        missed: OnMissed | None = None,
    ) -> Deferred[Subscription]:
        """See `topicsvc.interfaces.Broker`; fires when the broker has confirmed the topic."""
        topic = self._topics.get(address)
        if topic is None:
            topic = self._topics[address] = TopicSubscription(address, self._name(address))
            self._request(topic)
        self._idle.cancel(topic)
        subscription = _Subscription(self, topic, deliver, lost, missed)
        if topic.is_confirmed:
            topic.subscribers[subscription] = None
            return succeed(subscription)

        def cancel(_: Deferred[Subscription]) -> None:
            subscription.stop()

        confirmed: Deferred[Subscription] = Deferred(cancel)
        topic.pending[subscription] = confirmed
        return confirmed

    def remove(self, topic: TopicSubscription, subscription: _Subscription) -> None:
        """Remove a stopped `subscription` from `topic`."""
        topic.subscribers.pop(subscription, None)
        topic.pending.pop(subscription, None)
        if topic.subscribers or topic.pending:
            return
        if topic.id:
            self._idle.start(topic)
        elif self._topics.get(topic.address) is topic:
            self._delete(topic)

    def new_id(self, topic: TopicSubscription) -> str:
        """Give `topic` the id of a new request, and return it.

        Each request gets a new id, so messages and replies for an earlier request of the same
        topic can be ignored.
        """
        self._by_id.pop(topic.id, None)
        topic.id = str(next(self._ids))
        self._by_id[topic.id] = topic
        return topic.id

    def by_id(self, id_: str) -> TopicSubscription | None:
        """The topic whose latest request has this id; None: the request is outdated."""
        return self._by_id.get(id_)

    def confirm(self, topic: TopicSubscription) -> None:
        """The broker has confirmed `topic`: all messages that it accepts now are delivered."""
        topic.is_confirmed = True
        pending, topic.pending = topic.pending, {}
        topic.subscribers.update(dict.fromkeys(pending))
        for subscription, confirmed in pending.items():
            confirmed.callback(subscription)

    def refuse(self, topic: TopicSubscription, why: BrokerUnavailable) -> None:
        """The broker refuses `topic`: fail its pending subscribers, notify the others.

        A topic that is no longer requested is left as it is.
        """
        if self._by_id.get(topic.id) is not topic:
            return
        pending, topic.pending = topic.pending, {}
        subscribers = tuple(topic.subscribers)
        self._idle.cancel(topic)
        self._drop(topic)
        for confirmed in pending.values():
            confirmed.errback(why)
        for subscription in subscribers:
            subscription.notify_lost()

    def fail(self, topics: Iterable[TopicSubscription], why: BrokerUnavailable) -> None:
        """All requests for `topics` are void: fail pending subscribers, keep the others."""
        for topic in topics:
            self._idle.cancel(topic)
            self._by_id.pop(topic.id, None)
            pending = topic.reset()
            if not topic.subscribers:
                self._delete(topic)
            for confirmed in pending.values():
                confirmed.errback(why)

    def notify_lost(self, topics: Iterable[TopicSubscription]) -> None:
        """Notify all subscribers of `topics` that messages may have been missed."""
        for subscription in [each for topic in topics for each in topic.subscribers]:
            subscription.notify_lost()

    def notify_missed(self, topic: TopicSubscription, log: TopicLog | None) -> None:
        """Notify all subscribers that messages may have been missed, and that others follow."""
        for subscription in tuple(topic.subscribers):
            subscription.notify_missed(log)

    def _delete(self, topic: TopicSubscription) -> None:
        """Forget `topic`, whose request is void."""
        del self._topics[topic.address]
        if self._forget is not None:
            self._forget(topic)

    def _drop(self, topic: TopicSubscription) -> None:
        """Unsubscribe `topic` and forget it."""
        del self._topics[topic.address]
        del self._by_id[topic.id]
        self._unsubscribe(topic)
        topic.reset()


class TopicSubscription:
    """One topic, its subscribers, and those that wait for the broker's confirmation.

    Attributes:
        name: the broker's name of the topic.
        id: of the latest request or subscription; empty while the topic is not requested.
        is_confirmed: whether the broker has confirmed the subscription.
        subscribers: subscriptions that get messages.
        pending: subscriptions that wait for the confirmation.
    """

    __slots__ = ("address", "id", "is_confirmed", "name", "pending", "subscribers")

    _log: ClassVar[Logger] = Logger()

    def __init__(self, address: TopicAddress, name: str) -> None:
        self.address = address
        self.name = name
        self.id = ""
        self.is_confirmed = False
        self.subscribers: dict[_Subscription, None] = {}
        self.pending: dict[_Subscription, Deferred[Subscription]] = {}

    def deliver(self, message: Message) -> None:
        """Deliver `message`. An exception of one subscriber does not affect the others."""
        for subscription in tuple(self.subscribers):
            try:
                subscription.deliver(message)
            except Exception:
                self._log.failure("a subscriber of {topic} failed", topic=self.address.path)

    def reset(self) -> dict[_Subscription, Deferred[Subscription]]:
        """Forget the request at the broker; return the subscriptions that were pending."""
        self.id = ""
        self.is_confirmed = False
        pending, self.pending = self.pending, {}
        return pending


class _Subscription:
    __slots__ = ("_deliver", "_lost", "_missed", "_subscriptions", "_topic")

    def __init__(
        self,
        subscriptions: Subscriptions,
        topic: TopicSubscription,
        deliver: Deliver,
        lost: OnLost | None,
        missed: OnMissed | None,
    ) -> None:
        self._subscriptions = subscriptions
        self._topic = topic
        self._deliver: Deliver | None = deliver
        self._lost = lost
        self._missed = missed

    def deliver(self, message: Message) -> None:
        if self._deliver is not None:
            self._deliver(message)

    def notify_lost(self) -> None:
        if self._deliver is not None and self._lost is not None:
            self._lost()

    def notify_missed(self, log: TopicLog | None) -> None:
        if self._deliver is not None and self._missed is not None:
            self._missed(log)

    def stop(self) -> Deferred[None]:
        """See `topicsvc.interfaces.Subscription`."""
        if self._deliver is not None:
            self._deliver = None
            self._subscriptions.remove(self._topic, self)
        return succeed(None)

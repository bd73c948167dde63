"""A broker inside this process, for a single process.

A message that is sent to one process does not reach the sessions of another. Several processes
behind a load balancer would lose messages without an error; they need another broker.
"""

from __future__ import annotations

from collections.abc import Callable

from twisted.application.service import Service
from twisted.internet.defer import Deferred, succeed
from twisted.logger import Logger

from topicsvc.interfaces import Losses, Message, Subscription, TopicLog
from topicsvc.topics import TopicAddress

__all__ = ["MemoryBroker"]

_log = Logger()

_Deliver = Callable[[Message], None]


class MemoryBroker(Service):
    """Delivers a message to all subscribers of its topic before ``publish`` returns."""

    name = "memory broker"

    def __init__(self) -> None:
        self.losses = Losses()
        self._subscriptions: dict[TopicAddress, dict[_Subscription, None]] = {}

    @property
    def is_up(self) -> bool:
        """Always true: the broker is part of this process."""
        return True

    @property
    def is_settled(self) -> bool:
        """Always true: each accepted message has been delivered."""
        return True

    @property
    def last_error(self) -> str:
        """Always empty."""
        return ""

    @property
    def limitation(self) -> str:
        """Always empty."""
        return ""

    def startService(self) -> None:
        super().startService()  # type: ignore[no-untyped-call]
        _log.info(
            "the memory broker is for one process: "
            "no other process receives the messages that are sent to this one"
        )

    def subscribe(
        self,
        topic: TopicAddress,
        deliver: _Deliver,
        lost: Callable[[], None] | None = None,
        missed: Callable[[TopicLog | None], None] | None = None,
    ) -> Deferred[Subscription]:
        """See `topicsvc.interfaces.Broker`. Confirmed at once, and never lost."""
        subscription = _Subscription(self._subscriptions, topic, deliver)
        self._subscriptions.setdefault(topic, {})[subscription] = None
        return succeed(subscription)

    def recall(self, topic: TopicAddress) -> None:
        """See `topicsvc.interfaces.Broker`. Nothing is kept here."""

    def catch_up(self, topic: TopicAddress) -> None:
        """See `topicsvc.interfaces.Broker`. There is no other process."""

    def publish(self, message: Message) -> Deferred[None]:
        """See `topicsvc.interfaces.Broker`. Accepted at once."""
        self.accept(message)
        return succeed(None)

    def accept(self, message: Message) -> bool:
        """See `topicsvc.interfaces.Broker`. True always."""
        for subscription in tuple(self._subscriptions.get(message.topic, ())):
            subscription.deliver(message)
        return True

    def pause(self) -> None:
        """Do nothing: this broker keeps no messages, so senders have to wait instead."""

    def resume(self) -> None:
        """Do nothing: no message waits here."""


class _Subscription:
    __slots__ = ("_deliver", "_subscriptions", "_topic")

    def __init__(
        self,
        subscriptions: dict[TopicAddress, dict[_Subscription, None]],
        topic: TopicAddress,
        deliver: _Deliver,
    ) -> None:
        self._subscriptions = subscriptions
        self._topic = topic
        self._deliver: _Deliver | None = deliver

    def deliver(self, message: Message) -> None:
        """Deliver `message`. An exception of one subscriber does not affect the others."""
        if self._deliver is not None:
            try:
                self._deliver(message)
            except Exception:
                _log.failure("a subscriber of {topic} failed", topic=message.topic.path)

    def stop(self) -> Deferred[None]:
        """See `topicsvc.interfaces.Subscription`."""
        if self._deliver is not None:
            self._deliver = None
            of_topic = self._subscriptions[self._topic]
            del of_topic[self]
            if not of_topic:
                del self._subscriptions[self._topic]
        return succeed(None)

"""Adapter: a broker inside this process, for one process alone.

What is sent to one process is not seen by another: behind a balancer, several of them would
lose messages without a word. They need a broker outside: ActiveMQ or Kafka.
"""

from __future__ import annotations

from collections.abc import Callable

from twisted.application.service import Service
from twisted.internet.defer import Deferred, succeed
from twisted.logger import Logger

from topicsvc.interfaces import Losses, Message, Subscription
from topicsvc.topics import TopicAddress

__all__ = ["MemoryBroker"]

_log = Logger()

_Deliver = Callable[[Message], None]


class MemoryBroker(Service):
    """Delivers to all subscribers of a topic before ``publish`` returns."""

    name = "memory broker"

    def __init__(self) -> None:
        self.losses = Losses()
        self._subscriptions: dict[TopicAddress, dict[_Subscription, None]] = {}

    @property
    def is_up(self) -> bool:
        """Always: it is where we are."""
        return True

    @property
    def is_settled(self) -> bool:
        """Always: what is accepted has been brought."""
        return True

    @property
    def last_error(self) -> str:
        """None ever."""
        return ""

    def startService(self) -> None:
        super().startService()  # type: ignore[no-untyped-call]
        _log.info("the memory broker is for one process: no other sees what is sent to this one")

    def subscribe(
        self, topic: TopicAddress, deliver: _Deliver, lost: Callable[[], None] | None = None
    ) -> Deferred[Subscription]:
        """Confirmed at once, and never lost."""
        subscription = _Subscription(self._subscriptions, topic, deliver)
        self._subscriptions.setdefault(topic, {})[subscription] = None
        return succeed(subscription)

    def publish(self, message: Message) -> Deferred[None]:
        """Accepted at once."""
        for subscription in tuple(self._subscriptions.get(message.topic, ())):
            subscription.deliver(message)
        return succeed(None)

    def pause(self) -> None:
        """Nothing is kept here: those who publish have to wait."""

    def resume(self) -> None:
        """Nothing waits."""


class _Subscription:
    __slots__ = ("_book", "_deliver", "_topic")

    def __init__(
        self,
        book: dict[TopicAddress, dict[_Subscription, None]],
        topic: TopicAddress,
        deliver: _Deliver,
    ) -> None:
        self._book = book
        self._topic = topic
        self._deliver: _Deliver | None = deliver

    def deliver(self, message: Message) -> None:
        """Hand `message` on; a listener's failure is its own."""
        if self._deliver is not None:
            try:
                self._deliver(message)
            except Exception:
                _log.failure("a subscriber of {topic} failed", topic=message.topic.path)

    def stop(self) -> Deferred[None]:
        if self._deliver is not None:
            self._deliver = None
            mine = self._book[self._topic]
            del mine[self]
            if not mine:
                del self._book[self._topic]
        return succeed(None)

"""A broker with one connection that reads and one that sends.

So a flood in one direction does not delay the other.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Protocol

from twisted.application.service import Service
from twisted.internet.defer import Deferred, fail, gatherResults

from topicsvc.brokers.reconnection import BrokerClient
from topicsvc.brokers.subscriptions import Deliver, OnLost, OnMissed
from topicsvc.errors import BrokerUnavailable
from topicsvc.interfaces import Losses, Message, Subscription, TopicLog
from topicsvc.topics import TopicAddress

__all__ = ["Reader", "ReaderAndSender", "Sender"]


class Reader(Protocol):
    """The subscriptions, and the connection that reads."""

    @property
    def client(self) -> BrokerClient[Any, Any]: ...
    @property
    def is_up(self) -> bool: ...
    @property
    def is_settled(self) -> bool: ...
    def subscribe(
        self,
        address: TopicAddress,
        deliver: Deliver,
        lost: OnLost | None,
        missed: OnMissed | None = None,
    ) -> Deferred[Subscription]: ...
    def recall(self, address: TopicAddress) -> Deferred[TopicLog] | None: ...


class Sender(Protocol):
    """The connection that sends."""

    @property
    def client(self) -> BrokerClient[Any, Any]: ...
    def publish(self, message: Message) -> Deferred[None]: ...


class ReaderAndSender(Service):
    """The parts of `topicsvc.interfaces.Broker` that both connections share.

    Args:
        reader: the subscriptions.
        sender: sends messages.
        losses: what the reader has counted.
    """

    def __init__(self, reader: Reader, sender: Sender, losses: Losses) -> None:
        self._reader = reader
        self._sender = sender
        self._losses = losses

    @property
    def is_up(self) -> bool:
        """See `topicsvc.interfaces.Broker`."""
        return self._reader.is_up and self._sender.client.is_up

    @property
    def is_settled(self) -> bool:
        """See `topicsvc.interfaces.Broker`."""
        return self._reader.is_settled

    @property
    def losses(self) -> Losses:
        """See `topicsvc.interfaces.Broker`."""
        reconnects = self._reader.client.reconnects + self._sender.client.reconnects
        return replace(self._losses, reconnects=reconnects)

    @property
    def last_error(self) -> str:
        """The last known reason why the broker is not up; empty if there is none."""
        return self._reader.client.last_error or self._sender.client.last_error

    @property
    def limitation(self) -> str:
        """See `topicsvc.brokers.factory.BrokerService`."""
        return self._reader.client.limitation

    def subscribe(
        self,
        topic: TopicAddress,
        deliver: Deliver,
        lost: OnLost | None = None,
        missed: OnMissed | None = None,
    ) -> Deferred[Subscription]:
        """See `topicsvc.interfaces.Broker`. While the broker is down it fails at once."""
        if not self.is_up:
            return fail(BrokerUnavailable("the broker is not connected"))
        return self._reader.subscribe(topic, deliver, lost, missed)

    def recall(self, topic: TopicAddress) -> Deferred[TopicLog] | None:
        """See `topicsvc.interfaces.Broker`."""
        return self._reader.recall(topic)

    def catch_up(self, topic: TopicAddress) -> Deferred[None] | None:
        """See `topicsvc.interfaces.Broker`. All processes get a message at the same time."""
        return None

    def publish(self, message: Message) -> Deferred[None]:
        """See `topicsvc.interfaces.Broker`. While the broker is down it fails at once."""
        return self._sender.publish(message)

    def accept(self, message: Message) -> bool:
        """Never: the answer comes over the network."""
        return False

    def pause(self) -> None:
        """See `topicsvc.interfaces.Broker`. Messages wait at the broker."""
        self._reader.client.pause()

    def resume(self) -> None:
        """See `topicsvc.interfaces.Broker`."""
        self._reader.client.resume()

    def startService(self) -> None:
        super().startService()  # type: ignore[no-untyped-call]
        self._reader.client.startService()
        self._sender.client.startService()

    def stopService(self) -> Deferred[None]:
        """Close both connections; fires when both are closed."""
        super().stopService()  # type: ignore[no-untyped-call]
        clients = (self._reader.client, self._sender.client)
        closing = gatherResults([client.stopService() for client in clients])
        return closing.addCallback(lambda _: None)

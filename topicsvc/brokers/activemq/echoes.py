"""Tracks messages that were sent by this process and are still to come back from the broker."""

from __future__ import annotations

from collections import OrderedDict

from topicsvc.topics import TopicAddress

__all__ = ["PendingEchoes"]


class PendingEchoes:
    """Sent messages of topics with subscribers in this process, in the order of sending.

    The broker keeps this order within a topic. So if a message has come back or is accepted,
    the messages before it need not be tracked: for each topic only the last accepted message
    and those without a confirmation are kept.
    """

    def __init__(self) -> None:
        self._topics: dict[TopicAddress, OrderedDict[str, None]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._topics.values()))

    def __bool__(self) -> bool:
        return bool(self._topics)

    def sent(self, topic: TopicAddress, id_: str) -> None:
        """This message is sent; unless it is refused, it will come back."""
        self._topics.setdefault(topic, OrderedDict())[id_] = None

    def accepted(self, topic: TopicAddress, id_: str) -> None:
        """This message is accepted and will come back: forget those before it."""
        ids = self._topics.get(topic)
        if ids is not None and id_ in ids:
            while next(iter(ids)) != id_:
                ids.popitem(last=False)

    def refused(self, topic: TopicAddress, id_: str) -> None:
        """This message is refused: forget it, but not those before it."""
        ids = self._topics.get(topic)
        if ids is not None and id_ in ids:
            del ids[id_]
            if not ids:
                del self._topics[topic]

    def received(self, topic: TopicAddress, id_: str) -> None:
        """This message has come back: forget it and those before it."""
        self.accepted(topic, id_)
        self.refused(topic, id_)

    def forget(self, topic: TopicAddress) -> None:
        """Forget all messages of a topic that has no subscribers any more."""
        self._topics.pop(topic, None)

    def clear(self) -> None:
        """Forget all messages."""
        self._topics.clear()

"""Pure: messages that are sent from here and are still to come back."""

from __future__ import annotations

from collections import OrderedDict

from topicsvc.topics import TopicAddress

__all__ = ["PendingEchoes"]


class PendingEchoes:
    """Messages of topics that are listened to, in the order of their sending.

    A broker keeps that order within a topic. So one that is back, or accepted, stands for all
    before it, and of a topic no more is kept than the last that is accepted and those that wait
    for the broker's word.
    """

    def __init__(self) -> None:
        self._topics: dict[TopicAddress, OrderedDict[str, None]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._topics.values()))

    def __bool__(self) -> bool:
        return bool(self._topics)

    def sent(self, topic: TopicAddress, id_: str) -> None:
        """This will come back as the last so far, unless it is refused."""
        self._topics.setdefault(topic, OrderedDict())[id_] = None

    def accepted(self, topic: TopicAddress, id_: str) -> None:
        """This will come back: nobody needs to wait for those before it as well."""
        ids = self._topics.get(topic)
        if ids is not None and id_ in ids:
            while next(iter(ids)) != id_:
                ids.popitem(last=False)

    def refused(self, topic: TopicAddress, id_: str) -> None:
        """This is not waited for; those before it are."""
        ids = self._topics.get(topic)
        if ids is not None and id_ in ids:
            del ids[id_]
            if not ids:
                del self._topics[topic]

    def brought(self, topic: TopicAddress, id_: str) -> None:
        """This is back, and so are those before it."""
        self.accepted(topic, id_)
        self.refused(topic, id_)

    def forget(self, topic: TopicAddress) -> None:
        """Nobody listens to this topic any more."""
        self._topics.pop(topic, None)

    def clear(self) -> None:
        """Nothing comes back any more."""
        self._topics.clear()

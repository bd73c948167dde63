"""Adapter: around a validator that cannot tell which topics exist, a list that can."""

from __future__ import annotations

from collections.abc import Sequence

from twisted.internet.defer import Deferred

from topicsvc.errors import TopicNotFound
from topicsvc.interfaces import Grant, TokenValidator
from topicsvc.topics import TopicAddress, TopicPattern

__all__ = ["TopicFilter"]


class TopicFilter:
    """Grants nothing on a topic that is not listed.

    Args:
        validator: asked first, so that only a live token learns what exists.
        topics: which topics exist.
    """

    def __init__(self, validator: TokenValidator, topics: Sequence[TopicPattern]) -> None:
        self._validator = validator
        self._topics = tuple(topics)

    def validate(self, token: str, topic: TopicAddress) -> Deferred[Grant]:
        """See `topicsvc.interfaces.TokenValidator`."""
        asked = self._validator.validate(token, topic)
        return asked.addCallback(self._only_existing, topic)

    def _only_existing(self, grant: Grant, topic: TopicAddress) -> Grant:
        if not any(pattern.matches(topic) for pattern in self._topics):
            raise TopicNotFound(topic.path)
        return grant

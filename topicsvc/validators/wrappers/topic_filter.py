"""Refuses topics that are not in the settings, for validators that know no topics."""

from __future__ import annotations

from collections.abc import Sequence

from twisted.internet.defer import Deferred

from topicsvc.errors import TopicNotFound
from topicsvc.interfaces import Grant, TokenValidator
from topicsvc.refusals import Refusal, RefusalReason
from topicsvc.topics import TopicAddress, TopicPattern

__all__ = ["TopicFilter"]


class TopicFilter(TokenValidator):
    """Refuses every topic that is not listed.

    The token is validated first, so that only a valid one reveals which topics exist.

    Args:
        validator: validates tokens.
        topics: the topics that exist.
    """

    def __init__(self, validator: TokenValidator, topics: Sequence[TopicPattern]) -> None:
        self._validator = validator
        self._topics = tuple(topics)

    def validate(self, token: str, topic: TopicAddress) -> Deferred[Grant]:
        """See `topicsvc.interfaces.TokenValidator`."""
        check = self._validator.validate(token, topic)
        return check.addCallback(self._refuse_unlisted, topic)

    def remembered(self, token: str, topic: TopicAddress) -> Grant | None:
        """See `topicsvc.interfaces.TokenValidator`."""
        if not any(pattern.matches(topic) for pattern in self._topics):
            return None
        return self._validator.remembered(token, topic)

    def _refuse_unlisted(self, grant: Grant, topic: TopicAddress) -> Grant:
        if not any(pattern.matches(topic) for pattern in self._topics):
            raise TopicNotFound(Refusal(RefusalReason.NOT_LISTED))
        return grant

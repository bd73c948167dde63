"""Finds out both rights of a token, where receiving and sending have validators of their own."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace
from typing import Any

from twisted.internet.defer import Deferred, inlineCallbacks

from topicsvc.errors import TokenInactive
from topicsvc.interfaces import Grant, TokenValidator
from topicsvc.topics import TopicAddress

__all__ = ["RightsValidator"]


class RightsValidator(TokenValidator):
    """Validates a token for sending, then for receiving if that may be allowed.

    Args:
        sending: decides about sending. If its grants do not allow receiving, that is final.
        receiving: decides about receiving.
    """

    def __init__(self, sending: TokenValidator, receiving: TokenValidator) -> None:
        self._sending = sending
        self._receiving = receiving

    @inlineCallbacks
    def validate(self, token: str, topic: TopicAddress) -> Generator[Deferred[Any], Any, Grant]:
        """See `topicsvc.interfaces.TokenValidator`."""
        grant: Grant = yield self._sending.validate(token, topic)
        if not grant.may_receive:
            return grant
        try:
            received: Grant = yield self._receiving.validate(token, topic)
        except TokenInactive as error:
            refusal = None if grant.may_send else error.refusal
            return replace(grant, may_receive=False, refusal=refusal)
        return replace(grant, may_receive=received.may_receive)

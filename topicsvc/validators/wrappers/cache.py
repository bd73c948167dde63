"""Adapter: around a validator, a memory for what was granted a moment ago."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from hashlib import blake2b

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

from topicsvc.errors import TokenInactive
from topicsvc.interfaces import Grant, TokenValidator
from topicsvc.topics import TopicAddress
from topicsvc.validators.stats import TokenCheckStats

__all__ = ["MAX_KEPT", "GrantCache"]

MAX_KEPT = 20000
"""Grants that are kept: some 10 MB; past it the oldest goes first."""


class GrantCache:
    """Answers from memory what was granted less than some seconds ago.

    Only grants are kept, never past their expiry, and under a keyed hash of token and
    topic: the key is made anew in each process and the token itself is not kept.

    Args:
        validator: asked.
        clock: tells the time.
        now: the time of day, in seconds since the epoch: what expiry is measured by.
        seconds: how long a grant may be reused.
        stats: where it is counted how often memory could answer.
        most: grants that are kept.

    Attributes:
        fresh: the same validator, for those who must know what holds now.
    """

    def __init__(
        self,
        validator: TokenValidator,
        clock: IReactorTime,
        now: Callable[[], float],
        seconds: float,
        stats: TokenCheckStats | None = None,
        most: int = MAX_KEPT,
    ) -> None:
        self._validator = validator
        self._clock = clock
        self._now = now
        self._seconds = seconds
        self._most = most
        self._key = secrets.token_bytes(32)
        self._kept: dict[bytes, _Kept] = {}
        self._stats = stats or TokenCheckStats()
        self.fresh: TokenValidator = _Fresh(self)

    def __len__(self) -> int:
        return len(self._kept)

    def validate(self, token: str, topic: TopicAddress) -> Deferred[Grant]:
        """See `topicsvc.interfaces.TokenValidator`."""
        kept = self._kept.get(self._name(token, topic))
        if kept is not None and self._is_good(kept):
            self._stats.cache_hits += 1
            return succeed(kept.grant)
        self._stats.cache_misses += 1
        return self.ask(token, topic)

    def ask(self, token: str, topic: TopicAddress) -> Deferred[Grant]:
        """Ask in any case, and remember the answer."""
        name = self._name(token, topic)
        asked = self._validator.validate(token, topic)
        return asked.addCallbacks(
            self._keep,
            self._forget,
            callbackArgs=(name, self._clock.seconds()),
            errbackArgs=(name,),
        )

    def _name(self, token: str, topic: TopicAddress) -> bytes:
        # No token holds a NUL.
        text = f"{token}\0{topic.path}".encode()
        return blake2b(text, digest_size=32, key=self._key).digest()

    def _is_good(self, kept: _Kept) -> bool:
        return self._clock.seconds() < kept.until and not kept.grant.is_expired(self._now())

    def _keep(self, grant: Grant, name: bytes, asked_at: float) -> Grant:
        """Keep `grant`; its time runs from the moment of the question."""
        kept = self._kept.get(name)
        if kept is not None and kept.grant is grant:
            return grant  # this question was shared: whoever asked it first is the one to count
        self._kept.pop(name, None)
        if not grant.may_receive and not grant.may_send:
            return grant  # as good as a no, which is not kept either
        self._kept[name] = _Kept(grant, asked_at + self._seconds)
        while self._kept:
            oldest, kept = next(iter(self._kept.items()))
            if len(self._kept) <= self._most and self._is_good(kept):
                break
            del self._kept[oldest]
        return grant

    def _forget(self, failure: Failure, name: bytes) -> Failure:
        if failure.check(TokenInactive):
            self._kept.pop(name, None)
        return failure


class _Kept:
    """A grant and until when it may be reused, by the clock; its expiry is another matter."""

    __slots__ = ("grant", "until")

    def __init__(self, grant: Grant, until: float) -> None:
        self.grant = grant
        self.until = until


class _Fresh:
    """The same validator, for those who must know what holds now."""

    def __init__(self, cached: GrantCache) -> None:
        self.validate = cached.ask

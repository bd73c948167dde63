"""Caches grants for some seconds, so that not each use of a token needs a check."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

from topicsvc.errors import TokenInactive
from topicsvc.interfaces import Grant, TokenValidator
from topicsvc.topics import TopicAddress
from topicsvc.validators.stats import TokenCheckStats
from topicsvc.validators.token_cache import TokenCache

__all__ = ["MAX_GRANTS", "GrantCache"]

MAX_GRANTS = 20000
"""Grants that are cached: some 10 MB. If there are more, the oldest is evicted."""


class GrantCache(TokenValidator):
    """Reuses a grant for the same token and topic.

    Only grants of some right are cached, and never past their expiry.

    Args:
        validator: validates tokens that are not in the cache.
        clock: measures how long a grant is cached.
        now: the time of day, in seconds since the epoch, which decides about expiry.
        seconds: how long a grant may be reused, from the start of its check.
        stats: counts hits and misses.
        max_grants: grants that are cached.

    Attributes:
        uncached: validates without reading the cache. Its results are cached.
    """

    def __init__(
        self,
        validator: TokenValidator,
        clock: IReactorTime,
        now: Callable[[], float],
        seconds: float,
        stats: TokenCheckStats | None = None,
        max_grants: int = MAX_GRANTS,
    ) -> None:
        self._validator = validator
        self._clock = clock
        self._now = now
        self._seconds = seconds
        self._cache = TokenCache[_CachedGrant](max_grants, self._is_current)
        self._stats = stats or TokenCheckStats()
        self.uncached: TokenValidator = _Uncached(self)

    def __len__(self) -> int:
        return len(self._cache)

    def validate(self, token: str, topic: TopicAddress) -> Deferred[Grant]:
        """See `topicsvc.interfaces.TokenValidator`."""
        cached = self._cache.get(self._key(token, topic))
        if cached is not None and self._is_current(cached):
            self._stats.cache_hits += 1
            return succeed(cached.grant)
        self._stats.cache_misses += 1
        return self.validate_uncached(token, topic)

    def remembered(self, token: str, topic: TopicAddress) -> Grant | None:
        """See `topicsvc.interfaces.TokenValidator`."""
        cached = self._cache.get(self._key(token, topic))
        if cached is None or not self._is_current(cached):
            return None
        self._stats.cache_hits += 1
        return cached.grant

    def validate_uncached(self, token: str, topic: TopicAddress) -> Deferred[Grant]:
        """Validate without reading the cache, and cache the result."""
        key = self._key(token, topic)
        check = self._validator.validate(token, topic)
        return check.addCallbacks(
            self._granted,
            self._failed,
            callbackArgs=(key, self._clock.seconds()),
            errbackArgs=(key,),
        )

    def _key(self, token: str, topic: TopicAddress) -> bytes:
        # No token holds a NUL.
        return self._cache.key(f"{token}\0{topic.path}")

    def _is_current(self, cached: _CachedGrant) -> bool:
        return self._clock.seconds() < cached.until and not cached.grant.is_expired(self._now())

    def _granted(self, grant: Grant, key: bytes, started_at: float) -> Grant:
        cached = self._cache.get(key)
        if cached is not None and cached.grant is grant:
            return grant  # several requests shared one check: its start counts
        if grant.may_receive or grant.may_send:
            self._cache.put(key, _CachedGrant(grant, started_at + self._seconds))
        else:
            self._cache.discard(key)  # like a refusal, it is not cached
        return grant

    def _failed(self, failure: Failure, key: bytes) -> Failure:
        if failure.check(TokenInactive):
            self._cache.discard(key)
        return failure


class _CachedGrant:
    """A grant, and the time of the clock (in seconds) until which it may be reused."""

    __slots__ = ("grant", "until")

    def __init__(self, grant: Grant, until: float) -> None:
        self.grant = grant
        self.until = until


class _Uncached(TokenValidator):
    """The same validator, past the cache."""

    def __init__(self, cache: GrantCache) -> None:
        self._grant_cache = cache

    def validate(self, token: str, topic: TopicAddress) -> Deferred[Grant]:
        """See `topicsvc.interfaces.TokenValidator`."""
        return self._grant_cache.validate_uncached(token, topic)

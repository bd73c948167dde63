"""Limits the tokens that fail validation, for each client address.

An address may present a limited number of tokens that fail in a minute. Whether a token fails is
known only after its check. So the checks in progress and the failed tokens of an address are
together never more than the limit. The other tokens wait in order of arrival: valid tokens that
arrive together wait a little, and are not refused because of one another.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

from topicsvc.errors import (
    TokenInactive,
    TooManyFailedTokens,
    TopicNotFound,
    Unavailable,
    ValidatorUnavailable,
)
from topicsvc.interfaces import Grant
from topicsvc.scheduling.concurrency import ConcurrencyQueue
from topicsvc.scheduling.deadlines import Deadlines

__all__ = [
    "ABANDONED_CHECK_TTL",
    "MAX_ADDRESSES",
    "POLL_INTERVAL",
    "QUEUE_TIMEOUT",
    "TokenAttempts",
]

MAX_ADDRESSES = 10_000
"""Addresses whose failed tokens are counted, in about 2 MB. A new one replaces the oldest."""

QUEUE_TIMEOUT = 60.0
"""Seconds that a token may wait: as long as a client has to present it."""

ABANDONED_CHECK_TTL = 10.0
"""Seconds that a check still counts after its client disconnected: the validator may work on it."""

POLL_INTERVAL = 1.0
"""Seconds between two looks at waiting tokens, which time alone may refuse or start."""

_MINUTE = 60.0


class TokenAttempts:
    """Runs token checks, and counts the failed tokens of each address.

    Args:
        clock: the reactor, or a clock in its place.
        now: the time of day, in seconds since the epoch. Expiry is measured by it.
        max_failures: returns the most tokens of an address that may fail in a minute; 0: no limit.
        on_refused: called with the address of each token that is refused because too many have
            failed.
    """

    def __init__(
        self,
        clock: IReactorTime,
        now: Callable[[], float],
        max_failures: Callable[[], int],
        on_refused: Callable[[str], None],
    ) -> None:
        self._clock = clock
        self._now = now
        self._max_failures = max_failures
        self._on_refused = on_refused
        self._failures: dict[str, _FailureCount] = {}
        self._queues: dict[str, ConcurrencyQueue[_Attempt]] = {}
        self._abandoned: deque[tuple[float, _Attempt]] = deque()
        self._poll = Deadlines[str](clock, POLL_INTERVAL, self._fill)

    def run(self, address: str, check: Callable[[], Deferred[Grant]]) -> Deferred[Grant]:
        """Run the check of a token that a client at `address` presented, at once or later.

        Fails with:
            TooManyFailedTokens: too many tokens from `address` failed; `check` was not called.
            ValidatorUnavailable: the token waited for too long; `check` was not called.
            the failure of `check`, otherwise.
        """
        if not self._max_failures():
            return maybeDeferred(check)
        queue = self._queues.get(address)
        if queue is None:
            queue = self._queues[address] = ConcurrencyQueue(self._start, self._may_start)
        attempt = _Attempt(address, check, self._clock.seconds(), self)
        queue.add(attempt)
        self._fill(address)
        return attempt.result

    def blocked_for(self, address: str) -> float:
        """Seconds for which tokens from `address` are refused; 0: they are checked."""
        limit, failures = self._max_failures(), self._recent_failures(address)
        if not limit or failures is None or failures.count < limit:
            return 0
        return failures.since + _MINUTE - self._clock.seconds()

    def cancel(self, attempt: _Attempt) -> None:
        """The client of `attempt` has disconnected."""
        if attempt.pending is None:
            self._queues[attempt.address].discard(attempt)
            self._fill(attempt.address)
        else:
            attempt.is_abandoned = True
            attempt.pending.cancel()

    def _fill(self, address: str) -> None:
        """Start or refuse the waiting tokens of `address`, as far as this is decided."""
        self._forget_abandoned()
        queue = self._queues.get(address)
        if queue is None:
            return
        queue.fill()
        if queue.waiting:
            self._poll.start(address)
        else:
            self._poll.cancel(address)
            self._drop_idle(address, queue)

    def _may_start(self, attempt: _Attempt) -> bool:
        """Whether `attempt` is checked or refused now. Otherwise it waits."""
        attempt.refusal = self._refusal(attempt)
        return attempt.refusal is not None or self._is_below_limit(attempt.address)

    def _start(self, attempt: _Attempt) -> bool:
        if attempt.refusal is not None:
            attempt.result.errback(attempt.refusal)
            return False
        attempt.pending = maybeDeferred(attempt.check)
        attempt.pending.addBoth(self._done, attempt)
        return True

    def _refusal(self, attempt: _Attempt) -> Unavailable | None:
        """The error with which `attempt` ends without a check, if any."""
        seconds = self.blocked_for(attempt.address)
        if seconds:
            self._on_refused(attempt.address)
            return TooManyFailedTokens(seconds)
        if self._clock.seconds() - attempt.since >= QUEUE_TIMEOUT:
            return ValidatorUnavailable(f"not checked within {QUEUE_TIMEOUT:.0f} s")
        return None

    def _is_below_limit(self, address: str) -> bool:
        limit, failures = self._max_failures(), self._recent_failures(address)
        count = 0 if failures is None else failures.count
        return not limit or count + len(self._queues[address].in_progress) < limit

    def _done(self, result: Grant | Failure, attempt: _Attempt) -> None:
        if attempt.is_abandoned:
            self._abandoned.append((self._clock.seconds(), attempt))
            return
        self._queues[attempt.address].done(attempt)
        if self._is_failed_token(result):
            self._count_failure(attempt.address)
        if isinstance(result, Failure):
            attempt.result.errback(result)
        else:
            attempt.result.callback(result)
        self._fill(attempt.address)

    def _is_failed_token(self, result: Grant | Failure) -> bool:
        if isinstance(result, Failure):
            # A valid token for a topic that does not exist is no guess at tokens.
            return bool(result.check(TokenInactive)) and not result.check(TopicNotFound)
        return result.is_expired(self._now())

    def _count_failure(self, address: str) -> None:
        failures = self._recent_failures(address)
        if failures is None:
            if len(self._failures) >= MAX_ADDRESSES:
                del self._failures[next(iter(self._failures))]
            failures = self._failures[address] = _FailureCount(self._clock.seconds())
        failures.count += 1

    def _recent_failures(self, address: str) -> _FailureCount | None:
        """The failures of `address` in its current minute; forgets all whose minute has ended."""
        now = self._clock.seconds()
        while self._failures:
            # In the order in which their minutes began.
            oldest, failures = next(iter(self._failures.items()))
            if now - failures.since < _MINUTE:
                break
            del self._failures[oldest]
        return self._failures.get(address)

    def _forget_abandoned(self) -> None:
        """Stop counting checks that were abandoned `ABANDONED_CHECK_TTL` ago."""
        now = self._clock.seconds()
        while self._abandoned and now - self._abandoned[0][0] >= ABANDONED_CHECK_TTL:
            _, attempt = self._abandoned.popleft()
            queue = self._queues[attempt.address]
            queue.done(attempt)
            self._drop_idle(attempt.address, queue)

    def _drop_idle(self, address: str, queue: ConcurrencyQueue[_Attempt]) -> None:
        if queue.is_idle:
            del self._queues[address]


@dataclass(slots=True)
class _FailureCount:
    """The failed tokens of an address in a minute, which began with the first of them."""

    since: float
    count: int = 0


class _Attempt:
    """One token: how to check it, and the result for its client."""

    __slots__ = ("address", "check", "is_abandoned", "pending", "refusal", "result", "since")

    def __init__(
        self,
        address: str,
        check: Callable[[], Deferred[Grant]],
        since: float,
        attempts: TokenAttempts,
    ) -> None:
        self.address = address
        self.check = check
        self.since = since
        self.result: Deferred[Grant] = Deferred(lambda _: attempts.cancel(self))
        self.pending: Deferred[Grant] | None = None
        self.refusal: Unavailable | None = None
        self.is_abandoned = False

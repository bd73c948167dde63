"""Application: how many tokens of one address are tried.

So many may fail in a minute. While one is being asked about nobody knows whether it will, so no
more are asked about at once than may still fail. The others wait for their turn, in order: where
many come at once a good token waits a little, and is not refused because of others that are good.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

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
from topicsvc.scheduling.deadlines import Deadlines

__all__ = [
    "ABANDONED_CHECK_TTL",
    "MAX_ADDRESSES",
    "POLL_INTERVAL",
    "QUEUE_TIMEOUT",
    "TokenAttempts",
]

MAX_ADDRESSES = 10_000
"""Addresses whose failed tokens are remembered: 2 MB or so. The oldest make room."""

QUEUE_TIMEOUT = 60.0
"""Seconds that a token waits for its turn: as long as a client has to show it."""

ABANDONED_CHECK_TTL = 10.0
"""Seconds that a question still counts whose asker has gone: somebody may be at work on it."""

POLL_INTERVAL = 1.0
"""Seconds between two looks for what time alone has changed for those who wait."""

_MINUTE = 60.0


class TokenAttempts:
    """Asks about tokens, and counts for each address those that were no good.

    Args:
        clock: tells and keeps the time.
        now: the time of day, in seconds since the epoch: what expiry is measured by.
        most: how many may fail in a minute; 0: any number.
        refused: told of each token that was not asked about, for too many have failed.
    """

    def __init__(
        self,
        clock: IReactorTime,
        now: Callable[[], float],
        most: Callable[[], int],
        refused: Callable[[], None],
    ) -> None:
        self._clock = clock
        self._now = now
        self._most = most
        self._refused = refused
        self._failed: dict[str, _Failures] = {}
        self._queues: dict[str, _Queue] = {}
        self._left: deque[tuple[float, str]] = deque()
        self._look = Deadlines[str](clock, POLL_INTERVAL, self._fill)

    def ask(self, address: str, question: Callable[[], Deferred[Grant]]) -> Deferred[Grant]:
        """Ask about a token that somebody at `address` has shown, when its turn has come.

        Fails with:
            TooManyFailedTokens: nobody was asked, because too many from there were no good.
            ValidatorUnavailable: nobody was asked, because its turn did not come.
            whatever else the answer to `question` fails with.
        """
        if not self._most():
            return maybeDeferred(question)
        each = _Attempt(address, question, self._clock.seconds(), self)
        self._queues.setdefault(address, _Queue()).waiting[each] = None
        self._fill(address)
        return each.answer

    def blocked_for(self, address: str) -> float:
        """Seconds for which no token from `address` is asked about; 0: they are."""
        most, failures = self._most(), self._failures(address)
        if not most or failures is None or failures.count < most:
            return 0
        return failures.since + _MINUTE - self._clock.seconds()

    def leave(self, each: _Attempt) -> None:
        """Whoever asked has gone."""
        if each.asked is None:
            del self._queues[each.address].waiting[each]
            self._fill(each.address)
        else:
            each.is_left = True
            each.asked.cancel()

    def _fill(self, address: str) -> None:
        """Ask about those whose turn it is; answers that come at once do not nest."""
        self._forget_left()
        queue = self._queues.get(address)
        if queue is None or queue.is_filling:
            return
        queue.is_filling = True
        while queue.waiting:
            each = next(iter(queue.waiting))
            refusal = self._refusal(each)
            if refusal is None and not self._has_room(address, queue):
                break
            del queue.waiting[each]
            if refusal is None:
                queue.in_flight += 1
                each.asked = maybeDeferred(each.question)
                each.asked.addBoth(self._answered, each, queue)
            else:
                each.answer.errback(refusal)
        queue.is_filling = False
        if queue.waiting:
            self._look.start(address)
        else:
            self._look.cancel(address)
            self._tidy(address, queue)

    def _refusal(self, each: _Attempt) -> Unavailable | None:
        """Why it need not wait any more; None: its turn may come, or has."""
        seconds = self.blocked_for(each.address)
        if seconds:
            self._refused()
            return TooManyFailedTokens(seconds)
        if self._clock.seconds() - each.since >= QUEUE_TIMEOUT:
            return ValidatorUnavailable(f"no turn within {QUEUE_TIMEOUT:.0f} s")
        return None

    def _has_room(self, address: str, queue: _Queue) -> bool:
        most, failures = self._most(), self._failures(address)
        count = 0 if failures is None else failures.count
        return not most or count + queue.in_flight < most

    def _answered(self, result: Grant | Failure, each: _Attempt, queue: _Queue) -> None:
        if each.is_left:
            self._left.append((self._clock.seconds(), each.address))
            return
        queue.in_flight -= 1
        if self._is_no_good(result):
            self._count(each.address)
        if isinstance(result, Failure):
            each.answer.errback(result)
        else:
            each.answer.callback(result)
        self._fill(each.address)

    def _is_no_good(self, result: Grant | Failure) -> bool:
        if isinstance(result, Failure):
            # A live token for a topic that does not exist is no guess at tokens.
            return bool(result.check(TokenInactive)) and not result.check(TopicNotFound)
        return result.is_expired(self._now())

    def _count(self, address: str) -> None:
        failures = self._failures(address)
        if failures is None:
            if len(self._failed) >= MAX_ADDRESSES:
                del self._failed[next(iter(self._failed))]
            failures = self._failed[address] = _Failures(self._clock.seconds())
        failures.count += 1

    def _failures(self, address: str) -> _Failures | None:
        """Those of `address` in its minute; all whose minute is over are forgotten."""
        now = self._clock.seconds()
        while self._failed:
            # They stand in the order of their beginnings.
            oldest, failures = next(iter(self._failed.items()))
            if now - failures.since < _MINUTE:
                break
            del self._failed[oldest]
        return self._failed.get(address)

    def _forget_left(self) -> None:
        """Questions whose askers have gone some time ago count no more."""
        now = self._clock.seconds()
        while self._left and now - self._left[0][0] >= ABANDONED_CHECK_TTL:
            _, address = self._left.popleft()
            queue = self._queues[address]
            queue.in_flight -= 1
            self._tidy(address, queue)

    def _tidy(self, address: str, queue: _Queue) -> None:
        if not queue.waiting and not queue.in_flight and not queue.is_filling:
            del self._queues[address]


@dataclass(slots=True)
class _Failures:
    """Tokens of an address that were no good, in the minute that began with the first."""

    since: float
    count: int = 0


@dataclass(slots=True)
class _Queue:
    """Tokens of an address that are being asked about, or will be."""

    waiting: dict[_Attempt, None] = field(default_factory=dict)
    in_flight: int = 0
    is_filling: bool = False


class _Attempt:
    """One token and who waits for its answer."""

    __slots__ = ("address", "answer", "asked", "is_left", "question", "since")

    def __init__(
        self,
        address: str,
        question: Callable[[], Deferred[Grant]],
        since: float,
        attempts: TokenAttempts,
    ) -> None:
        self.address = address
        self.question = question
        self.since = since
        self.answer: Deferred[Grant] = Deferred(lambda _: attempts.leave(self))
        self.asked: Deferred[Grant] | None = None
        self.is_left = False

"""Keeps the keys of one issuer current: fetches them, and decides how long they are used.

Times are those of a monotonic clock, in seconds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, maybeDeferred, succeed
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from topicsvc.errors import ValidatorUnavailable
from topicsvc.scheduling.call_queue import CallQueue
from topicsvc.scheduling.log_throttle import LogThrottle
from topicsvc.validators.jwt.keys import KeySet, algorithms_of

__all__ = [
    "ENDED_PER_ITERATION",
    "FETCH_INTERVAL",
    "LOG_INTERVAL",
    "MAX_WAITING",
    "RETRY_INTERVAL",
    "FixedKeys",
    "KeySource",
]

FETCH_INTERVAL = 10.0
"""Least seconds between the starts of two fetches, whatever tokens ask for and whatever fails."""

RETRY_INTERVAL = 60.0
"""Seconds until a fetch is repeated that has failed while older keys are in use, or found none."""

MAX_WAITING = 4096
"""Tokens that may wait for a fetch."""

LOG_INTERVAL = 600.0
"""Seconds between two log lines about the same failure of fetches."""

ENDED_PER_ITERATION = 20
"""Waiting tokens whose checks go on in one reactor iteration; each takes some 0.2 ms."""


@dataclass(slots=True)
class _FetchTimes:
    """When keys were fetched, by the clock.

    Attributes:
        fetched_at: start of the last fetch that succeeded; before it, of the source.
        started_at: start of the last fetch; None: there was none.
        failing_since: end of the first fetch that failed after it; None: fetches succeed.
        failure: why the last one failed.
    """

    fetched_at: float
    started_at: float | None = None
    failing_since: float | None = None
    failure: str = ""


class KeySource:
    """The keys of one issuer, fetched when they are old or when a token names an unknown one.

    Args:
        issuer: its name, for the log.
        fetch: fetches and reads the key set; fails with `ValidatorUnavailable`.
        clock: the reactor, or a clock in its place.
        max_age: seconds between two fetches.
        stale: seconds for which the last keys are used while they cannot be fetched.
        timeout: most seconds of a fetch.
        fetches: counts the fetches by outcome: ``fetched`` or ``failed``.

    Attributes:
        keys: the keys in use; None: there are none, and no token can be validated.
        was_loaded: whether there have been keys.
        fetch_times: when keys were fetched, and since when fetches fail.
    """

    _log = Logger()

    def __init__(
        self,
        issuer: str,
        fetch: Callable[[], Deferred[KeySet]],
        clock: IReactorTime,
        max_age: float,
        stale: float,
        timeout: float,
        fetches: Counter[str] | None = None,
    ) -> None:
        self._issuer = issuer
        self._fetch_keys = fetch
        self._clock = clock
        self._max_age = max_age
        self._stale = stale
        self._timeout = timeout
        self._fetches: Counter[str] = Counter() if fetches is None else fetches
        self._throttle = LogThrottle(LOG_INTERVAL)
        self._waiting: dict[_Waiter, None] = {}
        self._ended = CallQueue(clock, ENDED_PER_ITERATION)
        self._fetch: Deferred[Any] | None = None
        self._next: IDelayedCall | None = None
        self._end_of_use: IDelayedCall | None = None
        self._begun = 0
        self.fetch_times = _FetchTimes(clock.seconds())
        self._is_stopped = False
        self.keys: KeySet | None = None
        self.was_loaded = False

    def start(self, previous: KeySource | None = None) -> None:
        """Fetch the keys now, and again whenever they are old.

        Args:
            previous: the keys of this source are used, until they are old; None: there are none.
        """
        if previous is not None:
            self._adopt(previous)
        self._schedule(
            self.fetch_times.fetched_at + self._max_age if self.keys else self._clock.seconds()
        )

    def stop(self) -> None:
        """Fetch no more, except for tokens that wait already."""
        self._is_stopped = True
        self._stop_if_idle()

    @property
    def age(self) -> float:
        """Seconds since the keys were fetched; if they never were, since the start."""
        return self._clock.seconds() - self.fetch_times.fetched_at

    def require_keys(self) -> KeySet | None:
        """Return the keys in use; None: the first fetch is in progress.

        Raises:
            ValidatorUnavailable: there are none, because fetches have failed.
        """
        if self.keys is None and self.fetch_times.failing_since is not None:
            raise ValidatorUnavailable(f"no keys of the issuer: {self.fetch_times.failure}")
        return self.keys

    def wait(self, key_id: str | None, algorithm: str) -> Deferred[None]:
        """Wait for a fetch that begins from now on, or for one that finds the key.

        Cancelling the Deferred ends the wait.

        Args:
            key_id: its name; None: the token has none, and any key for `algorithm` may fit.
            algorithm: ``alg`` of the token.

        Fails with:
            ValidatorUnavailable: the fetch failed, or too many tokens wait.
        """
        waiter = _Waiter(key_id, algorithm, self._begun, self)
        if len(self._waiting) >= MAX_WAITING:
            waiter.result.errback(ValidatorUnavailable("too many tokens wait for the next keys"))
            return waiter.result
        self._waiting[waiter] = None
        self.request_fetch()
        return waiter.result

    def request_fetch(self) -> None:
        """Fetch the keys as soon as the last fetch is long enough ago."""
        if self._fetch is None:
            self._schedule(self._clock.seconds())

    def discard(self, waiter: _Waiter) -> None:
        """End the wait of `waiter`."""
        self._waiting.pop(waiter, None)
        self._stop_if_idle()

    def _adopt(self, previous: KeySource) -> None:
        self.keys, self.was_loaded = previous.keys, previous.was_loaded
        self.fetch_times = replace(previous.fetch_times)
        self._limit_use()

    def _stop_if_idle(self) -> None:
        if not self._is_stopped or self._waiting:
            return
        for timer in (self._next, self._end_of_use):
            if timer is not None and timer.active():
                timer.cancel()
        self._next = self._end_of_use = None
        if self._fetch is not None:
            self._fetch.cancel()

    def _schedule(self, at: float) -> None:
        """Fetch at `at`, or as soon after it as is allowed; an earlier time replaces a later."""
        if self._is_stopped and not self._waiting:
            return
        if self.fetch_times.started_at is not None:
            at = max(at, self.fetch_times.started_at + FETCH_INTERVAL)
        delay = max(0, at - self._clock.seconds())
        if self._next is not None and self._next.active():
            if self._next.getTime() <= self._clock.seconds() + delay:
                return
            self._next.cancel()
        self._next = self._clock.callLater(delay, self._begin)

    def _begin(self) -> None:
        self._next = None
        self.fetch_times.started_at = self._clock.seconds()
        self._begun += 1
        fetch = self._fetch = maybeDeferred(self._fetch_keys)
        fetch.addTimeout(self._timeout, self._clock, self._time_out)
        fetch.addCallbacks(self._fetched, self._failed)
        fetch.addErrback(self._internal_error)  # it may have ended before it is returned

    def _time_out(self, result: Any, seconds: float) -> Any:
        raise ValidatorUnavailable(f"no result within {seconds:g} s")

    def _fetched(self, keys: KeySet) -> None:
        assert self.fetch_times.started_at is not None  # noqa: S101 - a fetch has begun
        self._fetch = None
        self._fetches["fetched"] += 1
        self._replace(keys)
        self.fetch_times.fetched_at = self.fetch_times.started_at
        self.fetch_times.failing_since = None
        self._throttle.reset()
        self._limit_use()
        self._go_on()

    def _replace(self, newer: KeySet) -> None:
        older = KeySet(()) if self.keys is None else self.keys
        for line in newer.skipped:
            if line not in older.skipped:
                self._log.info("keys of {issuer}: not used: {line}", issuer=self._issuer, line=line)
        self.keys = older.replaced_by(newer)
        added = len(set(self.keys.keys) - set(older.keys))
        withdrawn = len(set(older.keys) - set(self.keys.keys))
        if added or withdrawn or not self.was_loaded:
            self._log.info(
                "keys of {issuer}: {count} in use ({algorithms}), {added} new, {withdrawn} "
                "withdrawn",
                issuer=self._issuer,
                count=len(self.keys.keys),
                algorithms=algorithms_of(self.keys.keys),
                added=added,
                withdrawn=withdrawn,
            )
        elif self.fetch_times.failing_since is not None:
            self._log.info("keys of {issuer}: fetched again", issuer=self._issuer)
        self.was_loaded = self.was_loaded or bool(self.keys.keys)

    def _failed(self, failure: Failure) -> None:
        self._fetch = None
        if failure.check(CancelledError) and self._is_stopped:
            return
        failure.trap(ValidatorUnavailable)
        self._fetches["failed"] += 1
        self._note_failure(str(failure.value))
        if self._throttle.allow(self.fetch_times.failure, self._clock.seconds()):
            self._log.warn(
                "keys of {issuer}: cannot be fetched: {reason}; {effect}",
                issuer=self._issuer,
                reason=self.fetch_times.failure,
                effect=self._effect(),
            )
        self._end(
            list(self._waiting),
            ValidatorUnavailable(f"no keys of the issuer: {self.fetch_times.failure}"),
        )
        self._schedule(self._clock.seconds() + (RETRY_INTERVAL if self.keys else FETCH_INTERVAL))

    def _note_failure(self, reason: str) -> None:
        self.fetch_times.failure = reason
        if self.fetch_times.failing_since is None:
            self.fetch_times.failing_since = self._clock.seconds()
            self._limit_use()

    def _internal_error(self, failure: Failure) -> None:
        """A fault of topicsvc: what waits gets an error, and the fetches go on."""
        self._log.failure("internal error: the keys of {issuer}", failure, issuer=self._issuer)
        self._fetch = None
        self._fetches["failed"] += 1
        self._note_failure("internal error")  # the last keys must not be used for ever
        self._end(list(self._waiting), RuntimeError("the keys cannot be read"))
        self._schedule(self._clock.seconds() + RETRY_INTERVAL)

    def _effect(self) -> str:
        if self._end_of_use is None:
            return "its tokens cannot be validated"
        left = self._end_of_use.getTime() - self._clock.seconds()
        return f"the last keys are used for {left:.0f} s"

    def _limit_use(self) -> None:
        """Set the time at which the keys are too old, if fetches fail."""
        if self._end_of_use is not None:
            self._end_of_use.cancel()
            self._end_of_use = None
        if self.keys is not None and self.fetch_times.failing_since is not None:
            until = max(
                self.fetch_times.fetched_at + self._max_age,
                self.fetch_times.failing_since + self._stale,
            )
            self._end_of_use = self._clock.callLater(
                max(0, until - self._clock.seconds()), self._drop_keys
            )

    def _drop_keys(self) -> None:
        self._end_of_use = None
        if self.keys is not None:
            self.keys.withdraw()
            self.keys = None
        self._log.error(
            "keys of {issuer}: too old (stale): its tokens cannot be validated",
            issuer=self._issuer,
        )
        self.request_fetch()

    def _go_on(self) -> None:
        """End the waits that this fetch was for; schedule the next fetch."""
        assert self.keys is not None  # noqa: S101 - they were fetched
        self._end(
            [
                waiter
                for waiter in self._waiting
                if waiter.begun < self._begun or waiter.is_found(self.keys)
            ],
            None,
        )
        if len(self._waiting) > self._ending:
            self._schedule(self._clock.seconds())
        elif not self._is_stopped:
            # Without a key no token is valid, and the issuer may be about to publish one.
            wait = self._max_age if self.keys.keys else min(RETRY_INTERVAL, self._max_age)
            self._schedule(self.fetch_times.fetched_at + wait)

    @property
    def _ending(self) -> int:
        """How many of those that wait get their result in the next iterations."""
        return sum(1 for waiter in self._waiting if waiter.is_ending)

    def _end(self, waiters: list[_Waiter], error: Exception | None) -> None:
        """Fire the Deferreds of waiters, some of them in each iteration."""
        calls = []
        for waiter in waiters:
            if not waiter.is_ending:
                waiter.is_ending = True
                calls.append(lambda waiter=waiter: self._end_one(waiter, error))
        self._ended.run(calls)

    def _end_one(self, waiter: _Waiter, error: Exception | None) -> None:
        if waiter not in self._waiting:
            return  # cancelled meanwhile
        del self._waiting[waiter]
        if error is None:
            waiter.result.callback(None)
        else:
            waiter.result.errback(error)
        self._stop_if_idle()


class FixedKeys:
    """Keys that are not fetched; the same attributes and methods as `KeySource`.

    Args:
        keys: the keys.
    """

    age = 0.0
    was_loaded = True

    def __init__(self, keys: KeySet) -> None:
        self.keys: KeySet | None = keys

    def start(self, previous: Any = None) -> None:
        """Do nothing: there is nothing to fetch."""

    def stop(self) -> None:
        """Do nothing: there is nothing to fetch."""

    def request_fetch(self) -> None:
        """Do nothing: there is nothing to fetch."""

    def require_keys(self) -> KeySet | None:
        """Return the keys."""
        return self.keys

    def wait(self, key_id: str | None, algorithm: str) -> Deferred[None]:
        """Do not wait: the keys stay the same."""
        return succeed(None)


class _Waiter:
    """A token that waits for a key.

    Attributes:
        key_id: the name of the key; None: the token has none.
        algorithm: ``alg`` of the token.
        begun: the number of fetches that had begun before the wait.
        is_ending: whether its result is decided.
        result: fires when the wait ends.
    """

    __slots__ = ("algorithm", "begun", "is_ending", "key_id", "result")

    def __init__(self, key_id: str | None, algorithm: str, begun: int, source: KeySource) -> None:
        self.key_id = key_id
        self.algorithm = algorithm
        self.begun = begun
        self.is_ending = False
        self.result: Deferred[None] = Deferred(lambda _: source.discard(self))

    def is_found(self, keys: KeySet) -> bool:
        """Whether `keys` has the key, or for a token without a name one that may fit."""
        if self.key_id is None:
            return bool(keys.find(None, self.algorithm))
        return keys.has(self.key_id)

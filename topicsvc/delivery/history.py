"""The kept messages of all topics, and their limits."""

from __future__ import annotations

from collections import OrderedDict, deque
from itertools import count
from secrets import token_hex
from typing import NamedTuple

from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from topicsvc.delivery.ring import RING_OVERHEAD, Ring
from topicsvc.interfaces import Mark, TopicLog
from topicsvc.scheduling.log_throttle import LogThrottle
from topicsvc.settings import HistorySettings

__all__ = ["History", "Replay"]

SWEEP_INTERVAL = 1.0
"""Seconds between two searches for messages that are too old."""

SWEEP_MESSAGES = 2000
"""About the most messages that one search removes. It looks at ten times as many topics at most."""

MAX_REPLAYS = 4
"""Replays that are kept to be shared by clients that return to the same position."""

_WARNING_INTERVAL = 60.0
"""Seconds between two lines of the log about `history.total`."""


class Replay(NamedTuple):
    """Messages that a client missed.

    Attributes:
        frames: their frames, joined.
        messages: the number of messages.
    """

    frames: bytes
    messages: int


class History:
    """Makes the rings of all topics, and removes messages that are over a limit.

    `history.total` is for messages and rings. Rings themselves cannot be removed while clients
    use them: they count for at most half of it, so that the messages always have the other half.

    Args:
        settings: the limits.
        clock: the reactor, or a clock in its place.

    Attributes:
        memory: bytes of memory for all rings and their messages.
        messages: the number of kept messages.
        evicted: how often a topic lost all its messages because of `history.total`.
    """

    _log = Logger()

    def __init__(self, settings: HistorySettings, clock: IReactorTime) -> None:
        self._settings = settings
        self._clock = clock
        self._process = token_hex(5)
        self._numbers = count(1)
        self.memory = 0
        self._rings = 0
        self.messages = 0
        self.evicted = 0
        self._used: OrderedDict[Ring, None] = OrderedDict()  # with messages; the last used ends it
        self._to_sweep: deque[Ring] = deque()
        self._sweep: IDelayedCall | None = None
        self._replays: OrderedDict[tuple[Ring, str], tuple[int, Replay | None]] = OrderedDict()
        self._warnings = LogThrottle(_WARNING_INTERVAL)

    def __len__(self) -> int:
        """The number of topics with kept messages."""
        return len(self._used)

    @property
    def seconds(self) -> int:
        """How long a message is kept."""
        return self._settings.seconds

    def new_ring(self, log: TopicLog | None) -> Ring:
        """Make the ring of a topic, without messages. It counts until `forget`.

        Args:
            log: what the broker has kept; None: it keeps nothing.
        """
        if log is None:
            ring = Ring(self._new_epoch(), ("0",), is_numbered=True)
        else:
            ring = Ring(log.epoch, log.start)
        self.memory += ring.memory
        self._rings += 1
        return ring

    def forget(self, ring: Ring) -> None:
        """The topic is not kept any more."""
        self.clear(ring)
        self.memory -= ring.memory
        self._rings -= 1

    def reset(self, ring: Ring, log: TopicLog | None) -> None:
        """Messages of a topic may be missing: forget its messages and positions.

        Args:
            ring: of the topic.
            log: what the broker says of its log from here on; None: it keeps none.
        """
        self.clear(ring)
        if log is None:
            ring.reset(self._new_epoch(), ("0",), is_numbered=True)
        else:
            ring.reset(log.epoch, log.start)

    def keep(self, ring: Ring, frame: bytes, mark: Mark, age: float = 0.0) -> None:
        """Keep a message, and remove those that are over a limit now.

        Args:
            ring: of its topic.
            frame: see `Ring.keep`.
            mark: see `Ring.keep`.
            age: seconds since the message was sent.
        """
        now = self._clock.seconds()
        memory, messages = ring.memory, len(ring)
        ring.keep(frame, mark, now - age)
        self._trim(ring, now)
        self._count(ring, memory, messages)
        self._use(ring)
        if self._is_over_total:
            self._evict()
        if self._sweep is None and self._used:
            self._sweep = self._clock.callLater(SWEEP_INTERVAL, self._sweep_some)

    def clear(self, ring: Ring) -> None:
        """Remove all messages of a topic. Its newest position stays provable."""
        memory, messages = ring.memory, len(ring)
        ring.clear()
        self._count(ring, memory, messages)

    def replay(self, ring: Ring, position: str) -> Replay | None:
        """Return the messages behind `position`.

        Clients that return to the same position get the same bytes, until the kept messages
        change.

        Returns:
            None: it cannot be proved that no message is missing.
        """
        self._remove_old(ring)
        key = ring, position
        version, replay = self._replays.get(key, (0, None))
        if version != ring.version:
            frames = ring.frames_after(position)
            replay = None if frames is None else Replay(b"".join(frames), len(frames))
            self._replays[key] = ring.version, replay
            if len(self._replays) > MAX_REPLAYS:
                self._replays.popitem(last=False)
        self._use(ring)
        return replay

    def stop(self) -> None:
        """Search for old messages no more."""
        if self._sweep is not None:
            self._sweep.cancel()
            self._sweep = None

    @property
    def _uncounted(self) -> int:
        """Bytes of rings over half of the total."""
        return max(0, self._rings * RING_OVERHEAD - self._settings.total // 2)

    @property
    def _is_over_total(self) -> bool:
        """Whether messages have to be removed."""
        return self.memory - self._uncounted > self._settings.total

    def _new_epoch(self) -> str:
        return f"{self._process}{next(self._numbers):x}"

    def _use(self, ring: Ring) -> None:
        if ring in self._used:
            self._used.move_to_end(ring)

    def _trim(self, ring: Ring, now: float) -> None:
        settings = self._settings
        ring.trim(settings.messages, settings.bytes, now - settings.seconds)

    def _remove_old(self, ring: Ring) -> int:
        """Remove messages that are too old; return how many."""
        memory, messages = ring.memory, len(ring)
        self._trim(ring, self._clock.seconds())
        self._count(ring, memory, messages)
        return messages - len(ring)

    def _count(self, ring: Ring, memory: int, messages: int) -> None:
        """Count a ring again, which has changed.

        Args:
            ring: the ring.
            memory: bytes that it had before.
            messages: messages that it had before.
        """
        self.memory += ring.memory - memory
        self.messages += len(ring) - messages
        if len(ring):
            self._used[ring] = None  # a ring that is there keeps its place
        else:
            self._used.pop(ring, None)

    def _evict(self) -> None:
        """Remove all messages of the least recently used topics, until the total is kept."""
        while self._used and self._is_over_total:
            self.evicted += 1
            self.clear(next(iter(self._used)))
        if self._warnings.allow("total", self._clock.seconds()):
            self._log.warn(
                "history.total is reached: the kept messages of the least recently used topics are "
                "removed; {count} times since the start",
                count=self.evicted,
            )

    def _sweep_some(self) -> None:
        """Remove messages that are too old, of some topics in turn."""
        self._sweep = None
        self._replays.clear()
        if not self._to_sweep:
            self._to_sweep.extend(self._used)
        budget = SWEEP_MESSAGES * 10
        while self._to_sweep and budget > 0:
            ring = self._to_sweep.popleft()
            if ring in self._used:
                budget -= 1 + 10 * self._remove_old(ring)
        if self._used:
            self._sweep = self._clock.callLater(SWEEP_INTERVAL, self._sweep_some)

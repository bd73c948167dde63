"""One topic in the hub: its members, and the frames that wait for them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator

from twisted.internet.defer import Deferred

from topicsvc.delivery.positions import TopicPositions
from topicsvc.interfaces import Member, Subscription
from topicsvc.scheduling.minute_counts import MinuteCounts
from topicsvc.topics import TopicAddress

__all__ = ["CLOCK_CHECK_EVERY", "MAX_JOINED", "Batch", "Channel", "Step", "next_batch"]

CLOCK_CHECK_EVERY = 16
"""The most deliveries between two readings of the clock: a fraction of a millisecond."""

CLOCK_CHECK_BYTES = 65536
"""The most bytes between two readings of the clock, unless one delivery has more."""

MAX_JOINED = 262144
"""The most bytes of messages that are joined in one batch; a longer message is a batch itself.

So a client that keeps up never gets more in one iteration than it can read before the next.
"""


class Channel(MinuteCounts):
    """One topic: its members, its subscription, its counts and the frames that wait."""

    __slots__ = (
        "arrived_at",
        "batch",
        "frames",
        "members",
        "positions",
        "queued",
        "ready",
        "subscription",
        "topic",
        "waiting",
    )

    def __init__(self, topic: TopicAddress) -> None:
        super().__init__()
        self.topic = topic
        self.members: dict[Member, None] = {}
        self.waiting: dict[Member, Deferred[None]] = {}
        self.positions: TopicPositions | None = None
        self.subscription: Subscription | None = None
        self.frames: deque[bytes] = deque()
        self.queued = 0  # bytes of frames that have not been passed to all members
        self.arrived_at = 0.0  # when the first of the frames arrived
        self.ready = False
        self.batch: Batch | None = None

    @property
    def sessions(self) -> int:
        """The number of members."""
        positions = self.positions
        return len(self.members) + (0 if positions is None else len(positions.members))

    def all_members(self) -> tuple[Member, ...]:
        """The members, those with positions last."""
        positions = self.positions
        return (*self.members, *(() if positions is None else positions.members))


class Step(bytes):
    """Stands between the frames that wait: something to do when those before it are delivered.

    Args:
        run: does it; returns what is delivered to, in place of members; None: nothing is.
    """

    run: Callable[[], Iterator[Member] | None]

    def __new__(cls, run: Callable[[], Iterator[Member] | None]) -> Step:
        step = super().__new__(cls)
        step.run = run
        return step


class Batch:
    """Frames that are being delivered to the members that the topic had at the start.

    Args:
        frames: the frames, joined.
        count: the number of messages.
        members: they get `frames`.
        arrived_at: when the first message arrived.
        positioned: sessions with positions, and the frames that they get after `members`.
    """

    __slots__ = ("_positioned", "arrived_at", "check_every", "count", "frames", "members", "size")

    def __init__(
        self,
        frames: bytes,
        count: int,
        members: Iterator[Member],
        arrived_at: float,
        positioned: tuple[Iterator[Member], bytes] | None = None,
    ) -> None:
        self.frames = frames
        self.count = count
        self.members = members
        self.arrived_at = arrived_at
        self.size = len(frames)
        self._positioned = positioned
        self.check_every = max(
            1, min(CLOCK_CHECK_EVERY, CLOCK_CHECK_BYTES // max(1, len(self.frames)))
        )

    def start_positioned(self) -> bool:
        """All `members` have got the frames; whether sessions with positions follow."""
        if self._positioned is None:
            return False
        self.members, self.frames = self._positioned
        self._positioned = None
        return True


def next_batch(channel: Channel) -> Batch | None:
    """Take the next frames of a topic; None: there was a step, and it delivers nothing."""
    frames = channel.frames
    first = frames.popleft()
    if isinstance(first, Step):
        members = first.run()
        return None if members is None else Batch(b"", 0, members, 0.0)
    taken = [first]
    size = len(first)
    while frames and 0 < len(frames[0]) <= MAX_JOINED - size:
        taken.append(frames.popleft())
        size += len(taken[-1])
    positions = channel.positions
    # Frames that stay queued keep the time of the first one: their own is rather too long than
    # too short.
    return Batch(
        b"".join(taken),
        len(taken),
        iter(tuple(channel.members)),
        channel.arrived_at,
        None if positions is None else positions.take(taken),
    )

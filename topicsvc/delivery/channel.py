"""One topic in the hub: its members, and the frames that wait for them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator

from twisted.internet.defer import Deferred

from topicsvc.delivery.positions import TopicPositions
from topicsvc.interfaces import Member, Subscription
from topicsvc.scheduling.minute_counts import MinuteCounts
from topicsvc.topics import TopicAddress

__all__ = ["CLOCK_CHECK_EVERY", "MAX_JOINED", "Batch", "Channel", "Step", "do_step"]

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
    """Frames that are being delivered to the members that the topic has at the start.

    Args:
        channel: has frames; they are taken up to the next step.

    Attributes:
        frames: the frames, joined.
        count: the number of messages.
        members: they get `frames`.
        positioned: sessions with positions, and the frames that they get afterwards.
        size: bytes of the frames of members without positions.
        arrived_at: when the first message arrived.
        check_every: the most deliveries between two readings of the clock.
    """

    __slots__ = ("arrived_at", "check_every", "count", "frames", "members", "positioned", "size")

    def __init__(self, channel: Channel) -> None:
        queued = channel.frames
        taken = [queued.popleft()]
        size = len(taken[0])
        while queued and 0 < len(queued[0]) <= MAX_JOINED - size:
            taken.append(queued.popleft())
            size += len(taken[-1])
        self.frames = b"".join(taken)
        self.count = len(taken)
        self.size = size
        self.check_every = max(1, min(CLOCK_CHECK_EVERY, CLOCK_CHECK_BYTES // size))
        # Frames that stay queued keep this time: their own is rather too long than too short.
        self.arrived_at = channel.arrived_at
        self.members: Iterator[Member] = iter(tuple(channel.members))
        positions = channel.positions
        self.positioned = None if positions is None else positions.take(taken)

    def start_positioned(self) -> None:
        """All `members` have got the frames: sessions with positions follow."""
        if self.positioned is not None:
            self.members, self.frames = self.positioned
            self.positioned = None


class Notices(Batch):
    """Something else than frames, which takes its turn among them.

    Args:
        members: each is called with no frames.
    """

    __slots__ = ()

    def __init__(self, members: Iterator[Member]) -> None:
        self.frames = b""
        self.count = self.size = 0
        self.check_every = CLOCK_CHECK_EVERY
        self.arrived_at = 0.0
        self.members = members
        self.positioned = None


def do_step(channel: Channel) -> Notices | None:
    """Do the step that is the first of the frames; None: it delivers nothing."""
    step = channel.frames.popleft()
    assert isinstance(step, Step)  # noqa: S101 - no other frame is empty
    members = step.run()
    return None if members is None else Notices(members)

"""Positions: a client that returns gets what it has missed, or learns that this is not known.

`TopicPositions` stands beside the members of a topic that has sessions with positions, or had
them a short time ago. Each message gets its position, and enters the ring, when its delivery
begins. A session that joins then gets it either from the ring or as a member, and never twice.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator

from twisted.internet.defer import Deferred

from topicsvc.delivery.history import History
from topicsvc.delivery.ring import Ring
from topicsvc.interfaces import Mark, Member, Message, Place, Receiver, TopicLog

__all__ = [
    "Encode",
    "EncodePosition",
    "PositionStats",
    "PositionedMember",
    "TopicPositions",
    "missed_notices",
]

Encode = Callable[[Message], bytes]
EncodePosition = Callable[[bytes, str], bytes]


class PositionStats:
    """Counts, for operators.

    Attributes:
        proved: sessions that returned and have missed nothing.
        missed: sessions that returned to a position that is not provable.
        replayed: messages that were sent to sessions that returned.
        gaps: sessions that were told that messages may be missing while they were connected.
    """

    __slots__ = ("gaps", "missed", "proved", "replayed")

    def __init__(self) -> None:
        self.proved = self.missed = self.replayed = self.gaps = 0


class PositionedMember:
    """A session with positions, as a member of its topic.

    Args:
        queue: the session's send queue.
        heartbeat: see `topicsvc.interfaces.Place`.
        now: the monotonic time.
        on_missed: called if messages may be missing while the session goes on. It tells the
            client, and returns whether it could.

    Attributes:
        queue: see above.
        heartbeat: see above.
        position: behind the last message that was delivered; None: positions are off.
        active_at: when something was last delivered or written, by the monotonic clock.
    """

    __slots__ = ("_is_behind", "_now", "_on_missed", "_seen", "_topic", "active_at", "heartbeat",
                 "position", "queue")  # fmt: skip

    def __init__(
        self,
        queue: Receiver,
        heartbeat: float,
        now: Callable[[], float],
        on_missed: Callable[[Place], bool],
    ) -> None:
        self.queue = queue
        self.heartbeat = heartbeat
        self.position: str | None = None
        self.active_at = now()
        self._now = now
        self._on_missed = on_missed
        self._topic: TopicPositions | None = None  # None: positions are off
        self._seen = 0
        self._is_behind = False

    def deliver(self, frames: bytes, count: int, now: float) -> None:
        """See `topicsvc.interfaces.Member`."""
        topic = self._topic
        if topic is not None and topic.batch_end <= self._seen:
            return  # it was in a replay
        if now >= self.queue.deliver_until:
            self._is_behind = True
        elif self._is_behind or self.queue.has_dropped:
            # The time of day was set back, to a time before the expiry.
            self._tell_behind()
            if topic is not None:
                return  # the new position is behind these frames
        elif topic is not None:
            self._seen = topic.batch_end
            self.position = topic.batch_position
        self.active_at = self._now()
        try:
            self.queue.deliver(frames, count, now)
        except Exception:
            self.queue.has_dropped = True
            raise

    @property
    def heartbeat_at(self) -> float:
        """When the client has to get its position, by the monotonic clock."""
        return self.active_at + self.heartbeat

    def touch(self) -> None:
        """Something was written to the client."""
        self.active_at = self._now()

    def broker_lost(self) -> None:
        """See `topicsvc.interfaces.Member`."""
        self.queue.broker_lost()

    def join(self, topic: TopicPositions, ring: Ring) -> None:
        """Everything in `ring` has been delivered, or is not wanted."""
        self._topic = topic
        self._follow(ring)

    def _follow(self, ring: Ring | None) -> None:
        """Everything in `ring` has been delivered, or is not wanted; None: positions are off."""
        if ring is not None:
            self._seen = ring.count
            self.position = ring.position
        self._is_behind = False
        self.queue.has_dropped = False

    def resume(self) -> Place:
        """Go on under a new grant, with what was not delivered since the old one expired."""
        topic, self.active_at = self._topic, self._now()
        if topic is not None and topic.ring is None:  # the broker is lost: the session ends soon
            return Place(self.position, True, self.heartbeat)
        if not (self._is_behind or self.queue.has_dropped):
            return Place(self.position, False, self.heartbeat)
        if topic is None:
            self._follow(None)
            return Place(None, True, self.heartbeat)
        return topic.resume(self, None if self.queue.has_dropped else self.position)

    def tell_missed(self, ring: Ring | None) -> bool:
        """Tell the client that messages may be missing; return whether it could be told.

        Args:
            ring: of its topic; None: positions are off.
        """
        had_dropped, self.queue.has_dropped = self.queue.has_dropped, False
        position = None if ring is None else ring.position
        is_told = self._on_missed(Place(position, True, self.heartbeat))
        if not is_told or self.queue.has_dropped:
            self._is_behind = True  # `resume` finds out what is missing
            self.queue.has_dropped = self.queue.has_dropped or had_dropped
            return False
        self._follow(ring)
        self.active_at = self._now()
        return True

    def _tell_behind(self) -> None:
        if self._topic is not None:
            self._topic.tell_missed(self)
        else:
            self.tell_missed(None)

    def detach(self) -> None:
        """Drop the references to the owner, which is gone."""
        self._on_missed = _is_gone
        self._topic = None

    def tell_position(self, now: float, tell: Callable[[str | None], None]) -> None:
        """Nothing was sent for the time of a heartbeat: tell the client its position.

        Args:
            now: the time of day.
            tell: tells it; not called if the grant has expired. `resume` then finds out the place.
        """
        self.touch()
        if now >= self.queue.deliver_until:
            return
        if self._is_behind or self.queue.has_dropped:
            self._tell_behind()
        else:
            tell(self.position)


def _is_gone(_: Place) -> bool:
    return False


class _MissedNotice:
    """Takes the place of a member in the delivery of the news that messages may be missing."""

    __slots__ = ("_member", "_tell")

    def __init__(self, member: PositionedMember, tell: Callable[[PositionedMember], None]) -> None:
        self._member = member
        self._tell = tell

    def deliver(self, frames: bytes, count: int, now: float) -> None:
        """See `topicsvc.interfaces.Member`."""
        self._member.queue.has_dropped = True  # if it cannot be told now, `resume` tells it
        self._tell(self._member)

    def broker_lost(self) -> None:
        """Never called."""


def missed_notices(members: Iterable[Member], stats: PositionStats) -> Iterator[Member]:
    """Positions are off, and messages may be missing: return notices for those that ask for it."""

    def tell(member: PositionedMember) -> None:
        stats.gaps += member.tell_missed(None)

    return iter(
        [_MissedNotice(each, tell) for each in members if isinstance(each, PositionedMember)]
    )


class TopicPositions:
    """The sessions with positions of one topic, and its ring.

    Args:
        history: keeps the messages.
        stats: counts.
        encode: makes the frame of a message.
        encode_position: adds a position to such a frame.
        queued: messages of the topic that wait for their delivery.

    Attributes:
        ring: the kept messages; None: the broker has not returned its log yet.
        members: sessions with positions.
        waiting: sessions that wait for the ring, each with its position and its Deferred.
        marks: those of the messages that wait for their delivery.
        is_recalling: whether the broker was asked for its log.
        batch_end: messages that the ring had when the last delivery began.
        batch_position: the position behind the messages of that delivery.
    """

    __slots__ = ("_encode", "_encode_position", "_history", "_stats", "batch_end",
                 "batch_position", "is_recalling", "marks", "members", "ring",
                 "waiting")  # fmt: skip

    def __init__(
        self,
        history: History,
        stats: PositionStats,
        encode: Encode,
        encode_position: EncodePosition,
        queued: int,
    ) -> None:
        self._history = history
        self._stats = stats
        self._encode = encode
        self._encode_position = encode_position
        self.ring: Ring | None = None
        self.members: dict[PositionedMember, None] = {}
        self.waiting: dict[PositionedMember, tuple[str | None, Deferred[Place]]] = {}
        self.marks: deque[Mark | None] = deque([None] * queued)
        self.is_recalling = False
        self.batch_end = 0
        self.batch_position = ""

    @property
    def is_unused(self) -> bool:
        """Whether there are no sessions with positions."""
        return not self.members and not self.waiting

    def start(self, log: TopicLog | None) -> None:
        """Begin the ring with what the broker has kept.

        All messages that are delivered later must be newer than `log`.
        """
        ring = self._history.new_ring(log)
        for message, age in () if log is None else log.messages:
            mark, position = ring.advance(message.mark)
            frame = self._encode_position(self._encode(message), position)
            self._history.keep(ring, frame, mark, age)
        self.ring = ring

    def stop(self) -> None:
        """Remove all messages of the topic."""
        if self.ring is not None:
            self._history.forget(self.ring)
            self.ring = None

    def take(self, frames: Iterable[bytes]) -> tuple[Iterator[Member], bytes] | None:
        """Give a position to each message whose delivery begins.

        Args:
            frames: the frames without positions.

        Returns:
            The members, and the frames with positions, joined; None: there are no members.
        """
        ring, marks = self.ring, self.marks
        positioned = []
        for frame in frames:
            mark = marks.popleft()
            if ring is not None:
                mark, position = ring.advance(mark)
                with_position = self._encode_position(frame, position)
                positioned.append(with_position)
                self._history.keep(ring, with_position, mark)
        if ring is None or not self.members:
            return None
        self.batch_end = ring.count
        self.batch_position = ring.position
        return iter(tuple(self.members)), b"".join(positioned)

    def join(self, member: PositionedMember, since: str | None) -> Place:
        """Make `member` a member. `start` must have been called.

        Args:
            member: the session.
            since: the client's position; None: it begins now.

        Returns:
            Its place, with what it has missed.
        """
        self.members[member] = None
        if since is None:
            return self._place(member, None, False)
        place = self._return_to(member, since)
        if place.is_missed:
            self._stats.missed += 1
        else:
            self._stats.proved += 1
        return place

    def resume(self, member: PositionedMember, position: str | None) -> Place:
        """Return what `member` has not got.

        Args:
            member: a session that has joined.
            position: behind the last message that it has got; None: not known.
        """
        if position is None:
            return self._place(member, None, True)
        return self._return_to(member, position)

    def leave(self, member: PositionedMember) -> None:
        """End the membership of `member`, if it has one."""
        self.members.pop(member, None)

    def missed(self, log: TopicLog | None) -> Iterator[Member]:
        """Messages may be missing: forget earlier positions, and return notices for all members."""
        if self.ring is not None:
            self._history.reset(self.ring, log)
        return iter([_MissedNotice(member, self.tell_missed) for member in self.members])

    def tell_missed(self, member: PositionedMember) -> None:
        """Tell a member that messages may be missing."""
        if member in self.members and self.ring is not None and member.tell_missed(self.ring):
            self._stats.gaps += 1

    def _return_to(self, member: PositionedMember, position: str) -> Place:
        ring = self._ring
        replay = self._history.replay(ring, position)
        if replay is None:
            return self._place(member, None, True)
        self._stats.replayed += replay.messages
        member.join(self, ring)
        return Place(position, False, member.heartbeat, *replay)

    def _place(self, member: PositionedMember, position: str | None, is_missed: bool) -> Place:
        """The place behind all messages."""
        member.join(self, self._ring)
        return Place(position or member.position, is_missed, member.heartbeat)

    @property
    def _ring(self) -> Ring:
        if self.ring is None:
            raise RuntimeError("there is no ring yet")
        return self.ring

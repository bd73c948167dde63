"""Delivers the messages of each topic to all its members, from one broker subscription.

A message is encoded once. All messages of a topic that arrive in one reactor iteration are joined
once, and written once for each member. Delivery to many members is spread over several
iterations, and so are notifications about a subscription. Pings, handshakes and health checks are
handled in between. When the queues exceed the high-water mark, the hub pauses the broker, and
sends are refused until the low-water mark is reached.

`topicsvc.delivery.positions` has what only sessions with positions need.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from twisted.internet.defer import Deferred, fail, maybeDeferred, succeed
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from topicsvc.delivery.channel import Batch, Channel, Step, do_step
from topicsvc.delivery.history import History
from topicsvc.delivery.positions import (
    EncodePosition,
    PositionedMember,
    PositionStats,
    TopicPositions,
    missed_notices,
)
from topicsvc.errors import BrokerUnavailable
from topicsvc.histogram import Histogram
from topicsvc.interfaces import Broker, Member, Message, Place, Receiver, Subscription, TopicLog
from topicsvc.scheduling.call_queue import CallQueue
from topicsvc.scheduling.deadlines import Deadlines
from topicsvc.scheduling.minute_counts import TICK
from topicsvc.topics import TopicAddress

__all__ = ["HIGH_WATER", "LOW_WATER", "MAX_DELIVERIES_PER_ITERATION", "Hub", "TopicActivity"]

MAX_DELIVERIES_PER_ITERATION = 400
"""The most deliveries in one reactor iteration: about 5 ms, over TLS 10 ms."""

MAX_DELIVERY_TIME = 0.01
"""Seconds after which an iteration's deliveries end: long messages take longer."""

TOPIC_QUANTUM = 100
"""The most deliveries for one topic before those for the next one."""

NOTIFY_PER_ITERATION = 100
"""The most members notified about a subscription in one iteration: each may start a session."""

HIGH_WATER = 67108864
"""The high-water mark: with more bytes of frames in all queues, the hub pauses the broker.

By default, these are 64 messages of the greatest length, and a quarter of the bytes that may wait
for slow clients. A message that arrives nevertheless is queued, whatever its length.
"""

LOW_WATER = HIGH_WATER // 2
"""The low-water mark: at this number of bytes, or fewer, the hub resumes the broker.

It is far below the high-water mark, so that pauses are rare. It is far above 0, so that there are
messages to deliver until the broker has resumed.
"""

RETURNS_PER_ITERATION = 20
"""The most sessions with positions that join in one iteration after they have waited.

Each may get a replay of `history.bytes`.
"""

MAX_UNUSED_POSITIONS = 10000
"""The most topics whose messages are kept after the last session with positions has left."""

FAN_OUT_BOUNDS = (
    *(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0),
)
"""Seconds."""


@dataclass(frozen=True, slots=True)
class TopicActivity:
    """What one topic does, for operators.

    Attributes:
        topic: the topic.
        sessions: its members.
        messages: messages of the last minute, counted once, however many members it has.
        size: bytes of their frames, counted once.
        queued: bytes of frames that have not been passed to all members.
    """

    topic: TopicAddress
    sessions: int
    messages: int
    size: int
    queued: int


class Hub:
    """Keeps the members of each topic, and delivers messages to them.

    Args:
        broker: delivers the messages.
        clock: the reactor, or a clock in its place.
        now: the time of day, for members (`topicsvc.interfaces.Member`).
        encode: makes the frame of a message.
        encode_position: adds a position to such a frame.
        history: keeps messages for sessions with positions; None: positions are off.

    Attributes:
        history: see above.
        position_stats: counts of sessions with positions.
        messages: messages that the broker delivered for topics with members.
        offered: messages passed to members, counted once for each member. A member whose session
            has ended or expired does not send them.
        offered_size: their bytes.
        queued: bytes of frames that have not been passed to all members of their topic.
        is_full: whether sends should be refused: from the high-water mark to the low-water mark.
        fan_out: seconds from the broker's delivery of a batch's first message to the batch's
            last member, accurate to `CLOCK_CHECK_EVERY` deliveries.
    """

    _log = Logger()

    def __init__(
        self,
        broker: Broker,
        clock: IReactorTime,
        now: Callable[[], float],
        encode: Callable[[Message], bytes],
        encode_position: EncodePosition | None = None,
        history: History | None = None,
    ) -> None:
        self._broker = broker
        self._clock = clock
        self._now = now
        self._encode = encode
        self._encode_position = encode_position
        self.history = history
        self.position_stats = PositionStats()
        self.messages = 0
        self.offered = 0
        self.offered_size = 0
        self.queued = 0
        self.is_full = False
        self._arrived_at = 0.0  # when the first message of this iteration arrived
        self.fan_out = Histogram(FAN_OUT_BOUNDS)
        self._channels: dict[TopicAddress, Channel] = {}
        self._ready: deque[Channel] = deque()
        self._next_delivery: IDelayedCall | None = None
        self._iteration_ends = 0.0
        self._tick = 0  # for `MinuteCounts`
        self._notifications = CallQueue(clock, NOTIFY_PER_ITERATION)
        self._returns = CallQueue(clock, RETURNS_PER_ITERATION)
        self._unused = Deadlines[Channel](
            clock, history.seconds if history is not None else 0, self._drop_positions
        )

    @property
    def topics(self) -> int:
        """The number of topics with members, or with members that are joining."""
        return sum(
            1
            for channel in self._channels.values()
            if channel not in self._unused or channel.sessions
        )

    @property
    def is_idle(self) -> bool:
        """Whether all messages that arrived are written to all members."""
        return not self._ready

    def activities(self) -> Iterator[TopicActivity]:
        """The activity of each topic that has members now, computed when the iterator reaches it.

        Topics may come and go meanwhile: a topic that loses its last member is left out.
        """
        for channel in tuple(self._channels.values()):
            if channel.sessions:
                yield self._activity(channel)

    def activity(self, topic: TopicAddress) -> TopicActivity | None:
        """The activity of one topic; None: it has no members."""
        channel = self._channels.get(topic)
        return self._activity(channel) if channel is not None and channel.sessions else None

    def members(self, topic: TopicAddress) -> tuple[Member, ...]:
        """The members of a topic; of sessions with positions, their send queues."""
        channel = self._channels.get(topic)
        members = () if channel is None else channel.all_members()
        return tuple(each.queue if isinstance(each, PositionedMember) else each for each in members)

    def _activity(self, channel: Channel) -> TopicActivity:
        messages, size = channel.last_minute(self._clock.seconds())
        return TopicActivity(channel.topic, channel.sessions, messages, size, channel.queued)

    def join(self, topic: TopicAddress, member: Member) -> Deferred[None]:
        """Make `member` a member of `topic`.

        Fires when the broker has confirmed the subscription; from that moment on `member` gets
        all messages. Cancelling the Deferred withdraws the request.

        Fails with:
            BrokerUnavailable: the broker cannot confirm now.
        """
        if self.join_now(topic, member):
            return succeed(None)
        channel = self._channels.get(topic)
        if channel is not None and channel.subscription is not None:
            return fail(BrokerUnavailable("the broker cannot confirm now"))
        is_new = channel is None
        if channel is None:
            channel = self._channels[topic] = Channel(topic)
        waiting = channel.waiting

        def withdraw(_: Deferred[None]) -> None:
            waiting.pop(member, None)

        joining: Deferred[None] = Deferred(withdraw)
        waiting[member] = joining
        if is_new:
            self._subscribe(channel)
        return joining

    def positioned(
        self, queue: Receiver, heartbeat: float, on_missed: Callable[[Place], bool]
    ) -> PositionedMember:
        """Make a member for `return_to`; see `topicsvc.delivery.positions.PositionedMember`."""
        return PositionedMember(queue, heartbeat, self._clock.seconds, on_missed)

    def return_to(
        self, topic: TopicAddress, member: PositionedMember, since: str | None
    ) -> Deferred[Place]:
        """Make a session with positions a member of `topic`.

        Fires when the broker has confirmed the subscription, and what it has kept is read. In the
        reactor iteration in which it fires, the caller must deliver what `member` has missed.
        Cancelling the Deferred withdraws the request.

        Args:
            topic: the topic.
            member: made by `positioned`.
            since: the position of the client; None: it begins now.

        Fails with:
            BrokerUnavailable: the broker cannot confirm now, or does not return what it has kept.
        """
        place = self.return_to_now(topic, member, since)
        if place is not None:
            return succeed(place)
        if self.history is None:
            return self.join(topic, member).addCallback(lambda _: _positions_off(member, since))
        channel = self._channels.get(topic)
        if channel is not None and channel.subscription is not None and not self._broker.is_up:
            return fail(BrokerUnavailable("the broker cannot confirm now"))
        is_new = channel is None
        if channel is None:
            channel = self._channels[topic] = Channel(topic)
        positions = self._positions(channel)

        def withdraw(_: Deferred[Place]) -> None:
            positions.waiting.pop(member, None)
            self._check_unused(channel)

        joining: Deferred[Place] = Deferred(withdraw)
        positions.waiting[member] = since, joining
        self._unused.cancel(channel)
        if is_new:
            self._subscribe(channel)
        elif positions.ring is not None:
            self._catch_up(channel, member)
        elif channel.subscription is not None and not positions.is_recalling:
            self._recall(channel, positions)  # it may fail at once
        return joining

    def return_to_now(
        self, topic: TopicAddress, member: PositionedMember, since: str | None
    ) -> Place | None:
        """Make `member` a member of `topic` as `return_to` does, but without a Deferred.

        Returns:
            None: this is not possible at once, and nothing was done; call `return_to`.
        """
        if self.history is None:
            return _positions_off(member, since) if self.join_now(topic, member) else None
        channel = self._joinable(topic)
        ring = None if channel is None or channel.positions is None else channel.positions.ring
        if channel is None or ring is None or (since is not None and ring.may_be_behind(since)):
            return None
        return self._join_positions(channel, member, since)

    def _join_positions(
        self, channel: Channel, member: PositionedMember, since: str | None
    ) -> Place:
        place = self._positions(channel).join(member, since)
        self._unused.cancel(channel)
        self.offered += place.count
        self.offered_size += len(place.frames)
        return place

    def _positions(self, channel: Channel) -> TopicPositions:
        """The positions of a topic, from now on if there were none."""
        positions = channel.positions
        if positions is None:
            assert self.history is not None and self._encode_position is not None  # noqa: S101
            positions = channel.positions = TopicPositions(
                self.history,
                self.position_stats,
                self._encode,
                self._encode_position,
                sum(1 for frame in channel.frames if frame),
            )
        return positions

    def _recall(self, channel: Channel, positions: TopicPositions) -> None:
        """Ask the broker for what it has kept; then let waiting sessions join."""
        positions.is_recalling = True
        recalling = self._broker.recall(channel.topic)
        if recalling is None:
            positions.start(None)
            self._complete_returns(channel, positions)
            return

        def recalled(log: TopicLog) -> None:
            def start() -> None:
                if channel.positions is positions:
                    positions.start(log)
                    self._complete_returns(channel, positions)

            # The log ends with the last message that waits.
            if channel.positions is positions:
                self._add_step(channel, Step(start))

        def failed(failure: Failure) -> None:
            if not failure.check(BrokerUnavailable):
                self._log.failure("internal error: a topic's log could not be read", failure)
            if channel.positions is positions:
                self._drop_positions(channel)
            self._returns.run(
                [partial(_fail_return, positions, member, failure) for member in positions.waiting]
            )

        recalling.addCallbacks(recalled, failed)
        recalling.addErrback(
            lambda failure: self._log.failure("internal error: positions failed", failure)
        )

    def _catch_up(self, channel: Channel, member: PositionedMember) -> None:
        """Let a session join when what another process may have delivered is here too."""
        join = partial(self._complete_return, channel, member)

        def join_behind_what_has_arrived() -> None:
            self._add_step(channel, Step(lambda: self._returns.run([join])))

        catching_up = self._broker.catch_up(channel.topic)
        if catching_up is None:
            if channel.frames:
                join_behind_what_has_arrived()
            else:
                join()
            return

        def done(result: object) -> None:
            if isinstance(result, Failure) and not result.check(BrokerUnavailable):
                self._log.failure("internal error: waiting for messages failed", result)
            join_behind_what_has_arrived()

        catching_up.addBoth(done)

    def _complete_returns(self, channel: Channel, positions: TopicPositions) -> None:
        """The ring is there: let the sessions join that have waited for it."""
        self._returns.run(
            [partial(self._begin_return, channel, member) for member in positions.waiting]
        )
        self._check_unused(channel)

    def _begin_return(self, channel: Channel, member: PositionedMember) -> None:
        positions = channel.positions
        if positions is None or member not in positions.waiting:
            return  # withdrawn
        since, _ = positions.waiting[member]
        ring = positions.ring
        if since is not None and ring is not None and ring.may_be_behind(since):
            self._catch_up(channel, member)  # it may be newer than the log
        else:
            self._complete_return(channel, member)

    def _complete_return(self, channel: Channel, member: PositionedMember) -> None:
        positions = channel.positions
        if positions is None:
            return
        since, joining = positions.waiting.pop(member, (None, None))
        if joining is None:
            return  # withdrawn
        if channel.subscription is None or not self._broker.is_up:
            joining.errback(BrokerUnavailable("the broker was lost again"))
        else:
            joining.callback(self._join_positions(channel, member, since))
        self._check_unused(channel)

    def _check_unused(self, channel: Channel) -> None:
        """When no session with positions is left, keep the messages for a time."""
        if channel.positions is not None and channel.positions.is_unused:
            self._unused.start(channel)
            if len(self._unused) > MAX_UNUSED_POSITIONS:
                self._drop_positions(next(iter(self._unused)))

    def _drop_positions(self, channel: Channel) -> None:
        self._stop_positions(channel)
        self._unsubscribe_if_empty(channel)

    def _stop_positions(self, channel: Channel) -> None:
        self._unused.cancel(channel)
        if channel.positions is not None:
            channel.positions.stop()
            channel.positions = None

    def _missed(self, channel: Channel, log: TopicLog | None) -> None:
        """Messages may be missing behind those that wait."""
        positions = channel.positions
        if positions is None and self.history is not None:
            return

        def notices() -> Iterator[Member] | None:
            if positions is None:
                return missed_notices(channel.members, self.position_stats)
            return positions.missed(log) if channel.positions is positions else None

        self._add_step(channel, Step(notices))

    def _add_step(self, channel: Channel, step: Step) -> None:
        """Do `step` when all messages that wait have been delivered."""
        if not channel.frames:
            self._arrived_at = channel.arrived_at = self._arrived_at or self._clock.seconds()
        channel.frames.append(step)
        if not channel.ready:
            channel.ready = True
            self._ready.append(channel)
            self._schedule()

    def join_now(self, topic: TopicAddress, member: Member) -> bool:
        """Make `member` a member of `topic` as `join` does, but without a Deferred.

        Returns:
            False: there is no confirmed subscription, and nothing was done; call `join`.
        """
        channel = self._joinable(topic)
        if channel is None:
            return False
        channel.members[member] = None
        return True

    def _joinable(self, topic: TopicAddress) -> Channel | None:
        """The channel of a topic whose subscription is confirmed; None: it cannot be joined now."""
        channel = self._channels.get(topic)
        if channel is None or channel.subscription is None or not self._broker.is_up:
            return None
        return channel

    def leave(self, topic: TopicAddress, member: Member) -> None:
        """End the membership of `member`, if it has one."""
        channel = self._channels.get(topic)
        if channel is not None:
            channel.members.pop(member, None)
            if channel.positions is not None and isinstance(member, PositionedMember):
                channel.positions.leave(member)
                self._check_unused(channel)
            self._unsubscribe_if_empty(channel)

    def _subscribe(self, channel: Channel) -> None:
        subscribing = maybeDeferred(
            self._broker.subscribe,
            channel.topic,
            lambda message: self._on_message(channel, message),
            lambda: self._subscription_lost(channel),
            lambda log: self._missed(channel, log),
        )
        subscribing.addCallbacks(
            lambda subscription: self._subscribed(channel, subscription),
            lambda failure: self._subscribe_failed(channel, failure),
        )
        subscribing.addErrback(lambda failure: self._log.failure("subscribing failed", failure))

    def _subscribed(self, channel: Channel, subscription: Subscription) -> None:
        channel.subscription = subscription
        self._unsubscribe_if_empty(channel)
        self._notifications.run(
            [partial(self._complete_join, channel, member) for member in channel.waiting]
        )
        if channel.positions is not None:
            self._recall(channel, channel.positions)

    def _complete_join(self, channel: Channel, member: Member) -> None:
        joining = channel.waiting.pop(member, None)  # None: withdrawn
        if joining is not None:
            if channel.subscription is None or not self._broker.is_up:
                joining.errback(BrokerUnavailable("the broker was lost again"))
            else:
                channel.members[member] = None
                joining.callback(None)
        self._unsubscribe_if_empty(channel)

    def _subscribe_failed(self, channel: Channel, failure: Failure) -> None:
        del self._channels[channel.topic]
        positions = channel.positions
        self._stop_positions(channel)
        self._notifications.run(
            [partial(_fail_join, channel, member, failure) for member in channel.waiting]
        )
        if positions is not None:
            self._notifications.run(
                [partial(_fail_return, positions, member, failure) for member in positions.waiting]
            )

    def _unsubscribe_if_empty(self, channel: Channel) -> None:
        """End the subscription of a topic without members."""
        subscription = channel.subscription
        if (
            channel.members
            or channel.waiting
            or channel.positions is not None
            or subscription is None
        ):
            return
        self._unsubscribe(channel, subscription)

    def _unsubscribe(self, channel: Channel, subscription: Subscription) -> None:
        channel.subscription = None
        del self._channels[channel.topic]
        stopping = maybeDeferred(subscription.stop)
        stopping.addErrback(
            lambda failure: self._log.failure("ending a subscription failed", failure)
        )

    def _subscription_lost(self, channel: Channel) -> None:
        """Messages may be missed: notify all members, from the next iteration on."""
        if self._channels.get(channel.topic) is channel and channel.subscription is not None:
            self._unsubscribe(channel, channel.subscription)
            members = channel.all_members()
            positions = channel.positions
            self._stop_positions(channel)
            self._notifications.defer(partial(_notify_lost, member) for member in members)
            if positions is not None:
                lost = Failure(BrokerUnavailable("the broker was lost again"))
                self._notifications.defer(
                    [partial(_fail_return, positions, member, lost) for member in positions.waiting]
                )

    def _on_message(self, channel: Channel, message: Message) -> None:
        """Queue a message that the broker delivered."""
        positions = channel.positions
        if not channel.members and not channel.waiting and positions is None:
            return
        try:
            frame = self._encode(message)
        except Exception:
            self._log.failure("a message could not be encoded and is dropped")
            return
        self.messages += 1
        if not channel.frames:
            self._arrived_at = channel.arrived_at = self._arrived_at or self._clock.seconds()
        channel.frames.append(frame)
        if positions is not None:
            positions.marks.append(message.mark)
        if not channel.ready:
            channel.ready = True
            self._ready.append(channel)
            self._schedule()
        channel.queued += len(frame)
        self.queued += len(frame)
        if self.queued > HIGH_WATER and not self.is_full:
            self.is_full = True
            self._broker.pause()

    def stop(self) -> None:
        """Keep no messages any more."""
        for channel in self._unused:
            self._drop_positions(channel)
        if self.history is not None:
            self.history.stop()

    def _schedule(self) -> None:
        if self._next_delivery is None:
            self._next_delivery = self._clock.callLater(0, self._deliver_batches)

    def _deliver_batches(self) -> None:
        """Make the deliveries of one iteration, a quantum for each ready topic at a time."""
        self._next_delivery = None
        self._arrived_at = 0.0
        now = self._clock.seconds()
        self._iteration_ends = now + MAX_DELIVERY_TIME
        self._tick = int(now / TICK)
        budget = MAX_DELIVERIES_PER_ITERATION
        while self._ready and budget > 0:
            channel = self._ready.popleft()
            budget -= self._deliver_batch(channel, min(TOPIC_QUANTUM, budget))
            if channel.frames or channel.batch is not None:
                self._ready.append(channel)
            else:
                channel.ready = False
        if self._ready:
            self._schedule()
        if self.is_full and self.queued <= LOW_WATER:
            self.is_full = False
            self._broker.resume()

    def _start_batch(self, channel: Channel) -> Batch | None:
        """Take the next frames of a topic; None: there was a step, and it delivers nothing."""
        batch = channel.batch = Batch(channel) if channel.frames[0] else do_step(channel)
        if batch is not None:
            if channel.tick != self._tick:
                channel.start_tick(self._tick)
            channel.messages += batch.count
            channel.size += batch.size
        return batch

    def _deliver_batch(self, channel: Channel, quantum: int) -> int:
        """Deliver to at most `quantum` members of a topic; return the used part of the budget."""
        batch = channel.batch or self._start_batch(channel)
        if batch is None:
            return 1
        delivered = 0
        at = now = 0.0
        frames, count, check_every, seconds = (
            batch.frames,
            batch.count,
            batch.check_every,
            self._clock.seconds,
        )
        for member in batch.members:
            if not delivered % check_every:
                at, now = seconds(), self._now()
                if at >= self._iteration_ends:
                    quantum = delivered + 1
            delivered += 1
            try:
                member.deliver(frames, count, now)
            except Exception:
                self._log.failure("a member failed to take a message")
            if delivered == quantum:
                break
        else:
            if batch.positioned is None:
                channel.batch = None
                channel.queued -= batch.size
                self.queued -= batch.size
                if batch.size:
                    self.fan_out.observe((at or seconds()) - batch.arrived_at)
            else:
                batch.start_positioned()
        self.offered += delivered * count
        self.offered_size += delivered * len(frames)
        return MAX_DELIVERIES_PER_ITERATION if at >= self._iteration_ends else max(1, delivered)


def _positions_off(member: PositionedMember, since: str | None) -> Place:
    return Place(None, since is not None, member.heartbeat)


def _notify_lost(member: Member) -> None:
    member.broker_lost()  # looked up now: closing the member may have replaced it


def _fail_join(channel: Channel, member: Member, failure: Failure) -> None:
    joining = channel.waiting.pop(member, None)
    if joining is not None:
        joining.errback(failure)


def _fail_return(positions: TopicPositions, member: PositionedMember, failure: Failure) -> None:
    _, joining = positions.waiting.pop(member, (None, None))
    if joining is not None:
        joining.errback(failure)

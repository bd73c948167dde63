"""Application: from one broker subscription a topic to all its members.

A message is encoded once. All that reach a topic within one turn of the reactor are joined
once and written once per member. A batch over many members is cut into slices, and so is
what they are told of their subscription: pings, handshakes and health answers keep their
turn. When more comes than these walks can carry, the broker is asked to wait, and senders
are.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from functools import partial

from twisted.internet.defer import Deferred, fail, maybeDeferred, succeed
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from topicsvc.errors import BrokerUnavailable
from topicsvc.histogram import Histogram
from topicsvc.interfaces import Broker, Member, Message, Subscription
from topicsvc.scheduling.call_queue import CallQueue
from topicsvc.topics import TopicAddress

__all__ = ["HIGH_WATER", "LOW_WATER", "MAX_DELIVERIES_PER_ITERATION", "Hub"]

MAX_DELIVERIES_PER_ITERATION = 400
"""Most deliveries in one turn of the reactor: some 5 ms, 10 over TLS."""

MAX_DELIVERY_TIME = 0.01
"""Seconds after which a turn's deliveries end, however few: long messages take longer."""

TOPIC_QUANTUM = 100
"""Most deliveries for one topic before the next has its turn."""

CLOCK_CHECK_EVERY = 16
"""Most deliveries between two looks at the clock: a fraction of a millisecond."""

CLOCK_CHECK_BYTES = 65536
"""Most bytes of them, or one delivery."""

NOTIFY_PER_ITERATION = 100
"""Most members that hear of a subscription's fate in one turn: each may begin its session."""

MAX_JOINED = 262144
"""Bytes after which no further message is joined to a batch.

A reader that keeps up is never handed more in one turn than it can take in the next.
"""

HIGH_WATER = 67108864
"""Bytes of frames in all queues past which nothing more is to come.

64 messages of the longest that senders may send by default, and a quarter of what may wait
for slow readers by default. A message that comes all the same is taken, however long.
"""

LOW_WATER = HIGH_WATER // 2
"""Bytes down to which they must fall before more may come.

Far below the other mark, so that stopping is rare; far above nothing, so that there is
something to deliver until the broker has begun again.
"""

FAN_OUT_BOUNDS = (
    *(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0),
)
"""Seconds."""


class Hub:
    """Who listens to what.

    Args:
        broker: brings the messages.
        clock: tells the time and turns.
        now: the time of day, for members (`topicsvc.interfaces.Member`).
        encode: makes the frame of a message.

    Attributes:
        messages: messages that the broker brought for topics with members.
        offered: messages offered to members, once for each; some may take none any more.
        offered_size: their bytes.
        queued: bytes of frames that have not reached all members of their topic.
        is_full: whether no more should be sent: from the high water mark to the low one.
        fan_out: seconds from the broker's delivery of a batch's first message to its last
            member, give or take a check_every.
    """

    _log = Logger()

    def __init__(
        self,
        broker: Broker,
        clock: IReactorTime,
        now: Callable[[], float],
        encode: Callable[[Message], bytes],
    ) -> None:
        self._broker = broker
        self._clock = clock
        self._now = now
        self._encode = encode
        self.messages = 0
        self.offered = 0
        self.offered_size = 0
        self.queued = 0
        self.is_full = False
        self._came = 0.0  # when the first message of this turn came
        self.fan_out = Histogram(FAN_OUT_BOUNDS)
        self._channels: dict[TopicAddress, _Channel] = {}
        self._ready: deque[_Channel] = deque()
        self._turn: IDelayedCall | None = None
        self._iteration_ends = 0.0
        self._notifications = CallQueue(clock, NOTIFY_PER_ITERATION)

    @property
    def topics(self) -> int:
        """Topics that somebody listens to or waits for."""
        return len(self._channels)

    @property
    def is_idle(self) -> bool:
        """Whether all that has come is written to all members."""
        return not self._ready

    def join(self, topic: TopicAddress, member: Member) -> Deferred[None]:
        """Make `member` a member of `topic`.

        Fires when the broker has confirmed the subscription; from that moment `member`
        gets what is sent. Cancelling the Deferred withdraws the wish.

        Fails with:
            BrokerUnavailable: the broker cannot confirm now.
        """
        channel = self._channels.get(topic)
        if channel is not None and channel.subscription is not None:
            if not self._broker.is_up:
                return fail(BrokerUnavailable("nobody can tell whether messages arrive"))
            channel.members[member] = None
            return succeed(None)
        is_new = channel is None
        if channel is None:
            channel = self._channels[topic] = _Channel(topic)
        waiting = channel.waiting

        def withdraw(_: Deferred[None]) -> None:
            waiting.pop(member, None)

        joining: Deferred[None] = Deferred(withdraw)
        waiting[member] = joining
        if is_new:
            self._subscribe(channel)
        return joining

    def leave(self, topic: TopicAddress, member: Member) -> None:
        """End the membership of `member`, if it is one."""
        channel = self._channels.get(topic)
        if channel is not None:
            channel.members.pop(member, None)
            self._unsubscribe_if_empty(channel)

    def _subscribe(self, channel: _Channel) -> None:
        asked = maybeDeferred(
            self._broker.subscribe,
            channel.topic,
            lambda message: self._on_message(channel, message),
            lambda: self._lost(channel),
        )
        asked.addCallbacks(
            lambda subscription: self._confirmed(channel, subscription),
            lambda failure: self._denied(channel, failure),
        )
        asked.addErrback(lambda failure: self._log.failure("subscribing failed", failure))

    def _confirmed(self, channel: _Channel, subscription: Subscription) -> None:
        channel.subscription = subscription
        self._unsubscribe_if_empty(channel)
        self._notifications.run(
            [partial(self._welcome, channel, member) for member in channel.waiting]
        )

    def _welcome(self, channel: _Channel, member: Member) -> None:
        joining = channel.waiting.pop(member, None)  # None: withdrawn
        if joining is not None:
            if channel.subscription is None or not self._broker.is_up:
                joining.errback(BrokerUnavailable("the broker has gone again"))
            else:
                channel.members[member] = None
                joining.callback(None)
        self._unsubscribe_if_empty(channel)

    def _denied(self, channel: _Channel, failure: Failure) -> None:
        del self._channels[channel.topic]
        self._notifications.run(
            [partial(_turn_away, channel, each, failure) for each in channel.waiting]
        )

    def _unsubscribe_if_empty(self, channel: _Channel) -> None:
        """End the subscription of a topic that nobody listens to."""
        subscription = channel.subscription
        if channel.members or channel.waiting or subscription is None:
            return
        self._end(channel, subscription)

    def _end(self, channel: _Channel, subscription: Subscription) -> None:
        channel.subscription = None
        del self._channels[channel.topic]
        stopping = maybeDeferred(subscription.stop)
        stopping.addErrback(
            lambda failure: self._log.failure("ending a subscription failed", failure)
        )

    def _lost(self, channel: _Channel) -> None:
        """The broker has broken its promise: all members hear of it, from the next turn on."""
        if self._channels.get(channel.topic) is channel and channel.subscription is not None:
            self._end(channel, channel.subscription)
            self._notifications.defer(partial(_tell_of_loss, member) for member in channel.members)

    def _on_message(self, channel: _Channel, message: Message) -> None:
        """The broker brings a message."""
        if not channel.members and not channel.waiting:
            return
        try:
            frame = self._encode(message)
        except Exception:
            self._log.failure("a message could not be encoded and is dropped")
            return
        self.messages += 1
        if not channel.frames:
            self._came = channel.since = self._came or self._clock.seconds()
        channel.frames.append(frame)
        if not channel.ready:
            channel.ready = True
            self._ready.append(channel)
            self._schedule()
        self.queued += len(frame)
        if self.queued > HIGH_WATER and not self.is_full:
            self.is_full = True
            self._broker.pause()

    def _schedule(self) -> None:
        if self._turn is None:
            self._turn = self._clock.callLater(0, self._deliver_batches)

    def _deliver_batches(self) -> None:
        """Deliver one slice, each ready topic in its turn."""
        self._turn = None
        self._came = 0.0
        self._iteration_ends = self._clock.seconds() + MAX_DELIVERY_TIME
        budget = MAX_DELIVERIES_PER_ITERATION
        while self._ready and budget > 0:
            channel = self._ready.popleft()
            budget -= self._advance(channel, min(TOPIC_QUANTUM, budget))
            if channel.frames or channel.batch is not None:
                self._ready.append(channel)
            else:
                channel.ready = False
        if self._ready:
            self._schedule()
        if self.is_full and self.queued <= LOW_WATER:
            self.is_full = False
            self._broker.resume()

    def _advance(self, channel: _Channel, share: int) -> int:
        """Deliver to at most `share` members of one topic; return what of the slice is used."""
        batch = channel.batch
        if batch is None:
            batch = channel.batch = _Batch(channel)
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
                    share = delivered + 1
            delivered += 1
            try:
                member.deliver(frames, count, now)
            except Exception:
                self._log.failure("a member failed to take a message")
            if delivered == share:
                break
        else:
            channel.batch = None
            self.queued -= len(frames)
            self.fan_out.observe((at or seconds()) - batch.since)
        self.offered += delivered * count
        self.offered_size += delivered * len(frames)
        return MAX_DELIVERIES_PER_ITERATION if at >= self._iteration_ends else max(1, delivered)


def _tell_of_loss(member: Member) -> None:
    member.broker_lost()  # looked up now: one that is gone by now has another


def _turn_away(channel: _Channel, member: Member, failure: Failure) -> None:
    joining = channel.waiting.pop(member, None)
    if joining is not None:
        joining.errback(failure)


class _Channel:
    """One topic."""

    __slots__ = (
        "batch",
        "frames",
        "members",
        "ready",
        "since",
        "subscription",
        "topic",
        "waiting",
    )

    def __init__(self, topic: TopicAddress) -> None:
        self.topic = topic
        self.members: dict[Member, None] = {}
        self.waiting: dict[Member, Deferred[None]] = {}
        self.subscription: Subscription | None = None
        self.frames: deque[bytes] = deque()
        self.since = 0.0  # when the first of the frames came
        self.ready = False
        self.batch: _Batch | None = None


class _Batch:
    """What is being delivered, to whom: those who were members when it began."""

    __slots__ = ("check_every", "count", "frames", "members", "since")

    def __init__(self, channel: _Channel) -> None:
        taken = [channel.frames.popleft()]
        size = len(taken[0])
        while channel.frames and size + len(channel.frames[0]) <= MAX_JOINED:
            taken.append(channel.frames.popleft())
            size += len(taken[-1])
        self.frames = b"".join(taken)
        self.count = len(taken)
        self.check_every = max(1, min(CLOCK_CHECK_EVERY, CLOCK_CHECK_BYTES // len(self.frames)))
        self.since = channel.since  # stays for what stays behind: rather too long than short
        self.members: Iterator[Member] = iter(tuple(channel.members))

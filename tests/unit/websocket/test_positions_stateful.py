"""Positions in any order of events: each client has every message once, or is told.

Hypothesis finds the order. The hub, the sessions and the send queues are the real ones, in memory
and in virtual time.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, cast

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from twisted.internet.defer import Deferred, succeed
from twisted.trial.unittest import SynchronousTestCase

from tests.support import harness
from tests.support.fakes import FakeBroker, FakeCheck, FakeSubscription
from tests.support.harness import SENDER, TOPIC, Client, ServiceTestCase
from topicsvc.delivery import channel, hub
from topicsvc.errors import BrokerUnavailable
from topicsvc.interfaces import Mark, Message, TopicLog
from topicsvc.settings import HistorySettings, LimitSettings, SessionSettings
from topicsvc.topics import TopicAddress

HISTORY = HistorySettings(seconds=20, messages=8, bytes=2000, total=7000)
SESSION = SessionSettings(ping_interval=5, ping_limit=3, send_queue=4000)
NO_LIMITS = LimitSettings(
    unauthenticated=0,
    unauthenticated_per_address=0,
    failed_tokens_per_minute=0,
    messages_per_minute=0,
)
OTHER_TOPIC = TopicAddress("cell1", "box1", ("col",), "other")
OTHER_PATH = "/__topic/box1/col.topic.other"
BIG = b'"%s"' % (b"x" * 800)

LIFETIMES = st.sampled_from([0.5, 3.0, 12.0, 100.0, 100.0, 0.0, None])
"""Seconds; 0: the token is refused; None: it cannot be checked."""

LANES = st.lists(st.integers(0, 1), min_size=1, max_size=4)
SIZES = st.sampled_from([0, 50, 400])


class Broker(FakeBroker):
    """A broker that may be away, and may keep a log.

    Args:
        lanes: the number of lanes of its log; 0: it keeps none.

    Attributes:
        sent: for each lane, the number of messages that it has accepted.
        log_start: for each lane, the number of messages before the log.
        kept: the log, as far as it was passed on: each message with the time of its acceptance.
        held: accepted while it was away from the service, which has not got them.
        recalls: requests for the log that wait.
        epoch: the number of the log's epoch.
        kept_at_most: the number of messages that it returns.
    """

    def __init__(self, lanes: int) -> None:
        super().__init__()
        self.is_storing = lanes > 0
        self.sent = [0] * max(1, lanes)
        self.log_start = list(self.sent)
        self.kept: list[tuple[Message, float]] = []
        self.held: list[Message] = []
        self.recalls: list[Deferred[TopicLog]] = []
        self.epoch = 0
        self.kept_at_most = 20
        self.now = 0.0
        if self.is_storing:
            self.log = self._recall

    def send(self, lane: int, size: int) -> None:
        self.sent[lane] += 1
        number = self.sent[lane]
        body = b'{"lane":%d,"number":%d,"more":"%s"}' % (lane, number, b"x" * size)
        mark = Mark(lane, f"i{number}") if self.is_storing else None
        message = Message(TOPIC, SENDER, body, mark)
        if self.is_down:
            self.held.append(message)
        else:
            self.deliver(message)

    def deliver(self, message: Message) -> None:
        if not self.is_paused and message.mark is not None:
            self.kept.append((message, self.now))
        super().deliver(message)

    @property
    def active(self) -> list[FakeSubscription]:
        """The confirmed subscriptions."""
        return [each for each in super().active if each.result.called]

    @property
    def waits_for_confirmation(self) -> bool:
        return any(not each.result.called for each in self.subscriptions)

    def confirm_all(self) -> None:
        for subscription in self.subscriptions:
            if not subscription.result.called:
                subscription.result.callback(subscription)

    def _recall(self, topic: TopicAddress) -> Deferred[TopicLog]:
        if topic != TOPIC:
            return succeed(TopicLog("other", ("",)))
        self.recalls.append(Deferred())
        return self.recalls[-1]

    def answer_recalls(self) -> None:
        while self.recalls:
            self.recalls.pop(0).callback(self.topic_log())

    def topic_log(self) -> TopicLog:
        while len(self.kept) > self.kept_at_most:
            message, _ = self.kept.pop(0)
            assert message.mark is not None
            self.log_start[message.mark.lane] = int(message.mark.id[1:])
        return TopicLog(
            f"k{self.epoch}",
            tuple(f"i{start}" if start else "" for start in self.log_start),
            tuple((message, self.now - at) for message, at in self.kept),
        )

    def fail_all(self) -> None:
        """The connection is lost: what waits for an answer fails."""
        for subscription in self.subscriptions:
            if not subscription.result.called:
                subscription.stops += 1
                subscription.result.errback(BrokerUnavailable("injected by the test"))
        while self.recalls:
            self.recalls.pop(0).errback(BrokerUnavailable("injected by the test"))

    def trim_all(self) -> None:
        """The log loses all messages, also those that were held."""
        self.held.clear()
        self.kept.clear()
        self.waiting.clear()
        self.log_start = list(self.sent)


class Service(ServiceTestCase):
    """The service of one process."""

    settings = SESSION
    history = HISTORY
    limits_settings = NO_LIMITS

    def __init__(self, broker: Broker) -> None:
        super().__init__("iterate")
        self._broker = broker

    def make_broker(self) -> FakeBroker:
        return self._broker


@dataclass
class Place:
    """What the test knows of a position.

    Attributes:
        after: for each lane, the number of messages before it; None: not known yet.
        at_most: for each lane, a number that this cannot exceed.
        seen_at: when a client got it.
        losses: `Machine.losses` at that time.
    """

    after: list[int | None]
    at_most: list[int]
    seen_at: float
    losses: int


@dataclass
class Reader:
    """A client program, which connects again and again.

    Attributes:
        number: its number.
        has_positions: whether it asks for positions.
        client: its connection; None: there is none.
        since: with what it has connected.
        position: the last that it has read.
        after: for each lane, the last message that it has read; None: not known yet.
        at_most: for each lane, a number that this cannot exceed.
        synced: the position from which its data began.
        check: the check of its token that is in progress.
        has_begun: whether this connection has got a `Success`.
        is_lagging: whether the program does not read.
        was_troubled: whether data of this connection may have been dropped at an expiry, or its
            subscription was lost. A grant that is renewed then says that messages may be missing.
    """

    number: int
    has_positions: bool = True
    client: Client | None = None
    since: str | None = None
    position: str | None = None
    after: list[int | None] = field(default_factory=list)
    at_most: list[int] = field(default_factory=list)
    synced: str | None = None
    check: FakeCheck | None = None
    has_begun: bool = False
    is_lagging: bool = False
    was_troubled: bool = False


class Machine(RuleBasedStateMachine):
    """The events, and what each client may read after them."""

    lanes: ClassVar[int]

    def __init__(self) -> None:
        super().__init__()
        self.broker = Broker(self.lanes)
        self.time = 0.0
        self.losses = 0
        self.losses_at: dict[tuple[int, int], int] = {}
        self.evicted = 0
        self.places: dict[str, Place] = {}
        self.readers = [Reader(number, number < 3) for number in range(4)]
        self.other: Client | None = None
        self.others = 0
        self.start_service()

    def start_service(self) -> None:
        self.service = Service(self.broker)
        self.service.setUp()
        self.evicted = 0

    def stop_service(self) -> None:
        for reader in self.readers:
            self.leave(reader)
        if self.other is not None:
            self.other.disconnect()
            self.other = None
        self.broker.fail_all()
        self.service.websocket_server.stopService()
        self.service.hub.stop()
        for subscription in self.broker.subscriptions:
            subscription.stops += 1
        if self.broker.is_paused:
            self.broker.resume()

    # Sending.

    @rule(lanes=LANES, size=SIZES)
    def send(self, lanes: list[int], size: int) -> None:
        for each in lanes:
            lane = each % len(self.broker.sent)
            self.broker.send(lane, size)
            self.losses_at[lane, self.broker.sent[lane]] = self.losses

    @rule(count=st.integers(1, 3))
    def iterate(self, count: int) -> None:
        for _ in range(count):
            self.service.iterate()

    @rule(seconds=st.sampled_from([0.1, 1.0, 4.0, 9.0, 19.5, 21.0]))
    def advance(self, seconds: float) -> None:
        end = self.service.clock.seconds() + seconds
        while self.service.clock.seconds() < end:
            step = min(1.0, end - self.service.clock.seconds())
            self.time += step
            self.broker.now = self.time
            self.service.clock.advance(step)
            self.read_all()

    @rule(seconds=st.sampled_from([-50, -2, 2, 200]), is_undone=st.booleans())
    def set_the_time_of_day(self, seconds: float, is_undone: bool) -> None:
        for reader in self.readers:
            reader.was_troubled = True
        self.service.wall.jump(seconds)
        if is_undone:
            self.send([0, 1], 0)
            self.iterate(3)
            self.service.wall.jump(-seconds)

    @rule(count=st.integers(1, 6))
    def send_to_another_topic(self, count: int) -> None:
        """Its messages let the total be reached."""
        if self.broker.is_down:
            return
        if self.other is None or self.other.transport.lost is not None:
            self.other = self.service.connect(OTHER_PATH, address="192.0.2.200")
            self.other.present("a-token", Since=None)
            self.service.validator.last.grant(self.service.now + 10000)
            self.broker.confirm_all()
            self.broker.answer_recalls()
        for _ in range(count):
            self.service.iterate()
            self.others += 1
            mark = Mark(0, f"o{self.others}") if self.lanes else None
            FakeBroker.deliver(self.broker, Message(OTHER_TOPIC, SENDER, BIG, mark))
        self.service.iterate()

    # The broker.

    @precondition(lambda self: self.broker.waits_for_confirmation)
    @rule()
    def confirm(self) -> None:
        if not self.broker.is_down:
            self.broker.confirm_all()

    @precondition(lambda self: self.broker.recalls)
    @rule(kept=st.sampled_from([0, 1, 3, 20, 20]))
    def answer_recalls(self, kept: int) -> None:
        if not self.broker.is_down:
            self.broker.kept_at_most = kept
            self.losses += kept < 20
            self.broker.answer_recalls()

    @precondition(lambda self: not self.broker.is_down)
    @rule(closes=st.booleans(), chance=st.integers(0, 2))
    def lose_broker(self, closes: bool, chance: int) -> None:
        """``on_loss`` is "close" or "keep"."""
        if chance:
            return
        self.broker.is_down = True
        self.broker.fail_all()
        if closes:
            self.losses += not self.broker.is_storing
            for reader in self.readers:
                reader.was_troubled = True  # until it comes back
            self.broker.lose_subscriptions()

    @precondition(lambda self: self.broker.is_down)
    @rule(has_gap=st.booleans(), has_new_epoch=st.booleans())
    def find_broker(self, has_gap: bool, has_new_epoch: bool) -> None:
        broker = self.broker
        broker.is_down = False
        if not broker.is_storing:
            self.losses += 1
            broker.held.clear()
            self.tell_gap(None)
        elif has_gap:
            self.losses += 1
            broker.trim_all()
            broker.epoch += has_new_epoch
            self.tell_gap(broker.topic_log())
        else:
            while broker.held:
                broker.deliver(broker.held.pop(0))

    def tell_gap(self, log: TopicLog | None) -> None:
        for subscription in self.broker.active:
            assert subscription.missed is not None
            subscription.missed(log if subscription.topic == TOPIC else None)

    @rule(chance=st.integers(0, 5))
    def restart_the_service(self, chance: int) -> None:
        if chance:
            return
        self.stop_service()
        self.losses += not self.broker.is_storing
        self.start_service()

    # Clients.

    def choose(self, number: int, condition: Callable[[Reader], bool]) -> Reader | None:
        """One of the clients that meet `condition`; None: there is none."""
        readers = [reader for reader in self.readers if condition(reader)]
        return readers[number % len(readers)] if readers else None

    @rule(number=st.integers(0, 3), kind=st.integers(0, 4), data=st.data(), decides=st.booleans())
    def join(self, number: int, kind: int, data: st.DataObject, decides: bool) -> None:
        """A client connects, from now on, from where it was, or from an older position."""
        reader = self.choose(number, lambda reader: reader.client is None)
        if reader is None:
            return
        since = None if kind == 0 else reader.position
        if kind == 1 and self.places:
            since = data.draw(st.sampled_from(list(self.places)))
        self.connect(reader, since)
        if decides:
            self.grant(reader, 100.0)
            if not self.broker.is_down:
                self.broker.confirm_all()

    def connect(self, reader: Reader, since: str | None) -> None:
        reader.client = self.service.connect(address=f"192.0.2.{reader.number + 1}")
        reader.since = reader.position = since
        reader.has_begun = reader.is_lagging = reader.was_troubled = False
        self.present(reader)

    def present(self, reader: Reader) -> None:
        assert reader.client is not None
        more = {"Since": reader.since} if reader.has_positions else {}
        checks = len(self.service.validator.checks)
        reader.client.present("a-token", **more)
        if len(self.service.validator.checks) > checks:
            reader.check = self.service.validator.last

    def grant(self, reader: Reader, lifetime: float) -> None:
        check, reader.check = reader.check, None
        if check is not None and not check.was_cancelled:
            check.grant(self.service.now + lifetime)

    @rule(number=st.integers(0, 3))
    def renew(self, number: int) -> None:
        reader = self.choose(number, lambda reader: reader.has_begun and reader.check is None)
        if reader is not None:
            self.present(reader)

    @precondition(lambda self: any(reader.check for reader in self.readers))
    @rule(number=st.integers(0, 3), lifetime=LIFETIMES)
    def end_check(self, number: int, lifetime: float | None) -> None:
        """A token is granted; or it is refused, or cannot be checked."""
        reader = self.choose(number, lambda reader: reader.check is not None)
        if reader is None:
            return
        if lifetime:
            self.grant(reader, lifetime)
            return
        check, reader.check = reader.check, None
        if check is not None and not check.was_cancelled:
            if lifetime is None:
                check.be_unavailable()
            else:
                check.refuse()

    @rule(number=st.integers(0, 3))
    def lag(self, number: int) -> None:
        """What arrives is not read by the program."""
        reader = self.choose(number, lambda reader: reader.client is not None)
        if reader is not None:
            reader.is_lagging = True

    @rule(number=st.integers(0, 3))
    def congest(self, number: int) -> None:
        """Nothing arrives any more."""
        reader = self.choose(number, lambda reader: reader.client is not None)
        if reader is not None:
            self.congest_one(reader)

    @rule(number=st.integers(0, 3))
    def catch_up(self, number: int) -> None:
        reader = self.choose(number, lambda reader: reader.client is not None)
        if reader is not None:
            self.drain(reader)

    def drain(self, reader: Reader) -> None:
        reader.is_lagging = False
        if reader.client is not None and reader.client.transport.lost is None:
            reader.client.transport.drain()

    @initialize()
    def begin(self) -> None:
        """Two clients have a position."""
        for reader in self.readers[:2]:
            self.connect(reader, None)
            self.grant(reader, 100.0)
            self.broker.confirm_all()
            self.broker.answer_recalls()
        self.iterate(3)
        self.read_all()
        self.send([0, 1], 0)
        self.iterate(3)
        self.read_all()

    @rule(number=st.integers(0, 3), lanes=LANES, size=SIZES, iterations=st.integers(0, 3))
    def return_(self, number: int, lanes: list[int], size: int, iterations: int) -> None:
        """Messages are accepted meanwhile; the delivery of some of them may not have begun."""
        reader = self.choose(number, lambda reader: reader.has_positions and reader.has_begun)
        if reader is None or self.broker.is_down:
            return
        self.leave(reader)
        self.send(lanes, size)
        self.iterate(iterations)
        self.connect(reader, reader.position)
        self.grant(reader, 100.0)

    @rule(
        number=st.integers(0, 3),
        count=st.integers(0, 5),
        is_congested=st.booleans(),
        seconds=st.sampled_from([0.1, 6.0]),
    )
    def renew_too_late(self, number: int, count: int, is_congested: bool, seconds: float) -> None:
        """The new grant comes after the expiry, at which data may have waited.

        The heartbeat may fall due between a message and the grant.
        """
        reader = self.choose(number, lambda reader: reader.has_begun and reader.check is None)
        if reader is None or reader.client is None:
            return
        self.present(reader)
        self.grant(reader, 0.9)
        if is_congested:
            self.congest_one(reader)
        for _ in range(count):
            self.send([0], 400)
            self.iterate(3)
        if reader.client is not None and reader.has_begun:
            self.present(reader)
            self.advance(1.0)
            self.send([1], 0)
            self.iterate(3)
            self.advance(seconds)
            self.drain(reader)
            self.grant(reader, 100.0)

    def congest_one(self, reader: Reader) -> None:
        if reader.client is not None:
            reader.client.transport.is_congested = reader.was_troubled = True

    @rule(number=st.integers(0, 3), read=st.integers(0, 3), closes=st.booleans())
    def cut(self, number: int, read: int, closes: bool) -> None:
        """The connection ends, after the program has read a part of what had arrived."""
        reader = self.choose(number, lambda reader: reader.client is not None)
        if reader is not None:
            self.read(reader, read)
            if reader.client is not None and closes:
                reader.client.send_frame(8, b"\x03\xe8")
            self.leave(reader)

    def leave(self, reader: Reader) -> None:
        if reader.client is not None:
            reader.client.disconnect()
            reader.client = reader.check = None
            reader.has_begun = False

    # What clients read.

    @invariant()
    def each_client_has_every_message_once_or_is_told(self) -> None:
        self.read_all()

    def read_all(self) -> None:
        history = self.service.hub.history
        assert history is not None
        self.losses += history.evicted - self.evicted
        self.evicted = history.evicted
        for reader in self.readers:
            if reader.client is not None and not reader.is_lagging:
                self.read(reader)

    def read(self, reader: Reader, at_most: int | None = None) -> None:
        client = reader.client
        assert client is not None
        for opcode, payload in client.frames()[:at_most]:
            if opcode == 9:
                client.send_frame(10, payload)
            elif opcode == 8:
                self.leave(reader)
                return
            else:
                self.read_text(reader, json.loads(payload))
        if client.transport.lost is not None:
            self.leave(reader)

    def read_text(self, reader: Reader, text: dict[str, Any]) -> None:
        if not reader.has_positions:
            assert "Position" not in text, text
        if text.get("Result") == "Success":
            self.read_success(reader, text)
        elif "Body" in text:
            self.read_data(reader, text)
        elif "Response" not in text:
            assert reader.has_begun, text
            assert text == {"Position": reader.position}, (text, reader)

    def read_success(self, reader: Reader, text: dict[str, Any]) -> None:
        is_first, reader.has_begun = not reader.has_begun, True
        if not reader.has_positions:
            reader.after = [None] * len(self.broker.sent)
            reader.at_most = list(self.broker.sent)
            return
        position = text["Position"]
        if text["Missed"]:
            assert reader.since is not None or not is_first, text
            assert self.may_be_missed(reader), (text, reader)
        elif not is_first or reader.since is not None:
            assert position == reader.position, (text, reader)
            if not is_first:
                return
        reader.position = reader.synced = position
        place = self.place(position)
        reader.after, reader.at_most = list(place.after), list(place.at_most)

    def may_be_missed(self, reader: Reader) -> bool:
        """Whether the service may have been unable to prove that nothing is missing."""
        place = self.places.get(reader.position or "")
        if place is None or None in place.after or reader.was_troubled or self.broker.held:
            return True
        after = cast(list[int], place.after)
        losses = max(self.losses_at.get((lane, number), 0) for lane, number in enumerate(after))
        sent = sum(self.broker.sent) - sum(after)
        return (
            min(place.losses, losses) != self.losses
            or self.time - place.seen_at >= HISTORY.seconds - 1
            or sent >= 4
            or reader.is_lagging
        )

    def place(self, position: str) -> Place:
        place = self.places.get(position)
        if place is None:
            sent = self.broker.sent
            after: list[int | None] = [None] * len(sent)
            if self.broker.is_storing:
                ids = position.partition(".")[2].split("_")
                after = [int(id_[1:] or 0) for id_ in ids]
            place = Place(after, list(sent), self.time, self.losses)
            self.places[position] = place
        place.at_most = [min(pair) for pair in zip(place.at_most, self.broker.sent, strict=True)]
        return place

    def read_data(self, reader: Reader, text: dict[str, Any]) -> None:
        assert reader.has_begun, text
        lane, number = text["Body"]["lane"], text["Body"]["number"]
        before = reader.after[lane]
        if not reader.has_positions:
            # A plain client is told nothing, but gets nothing twice.
            assert before is None or number > before, (text, reader)
            reader.after[lane] = number
            return
        if before is None:
            assert number <= reader.at_most[lane] + 1, (text, reader)
            assert reader.synced is not None
            self.learn(reader.synced, lane, number - 1)
        else:
            assert number == before + 1, (text, reader)
        reader.after[lane] = number
        reader.position = text["Position"]
        self.place(text["Position"])
        for each, after in enumerate(reader.after):
            if after is not None:
                self.learn(text["Position"], each, after)

    def learn(self, position: str, lane: int, number: int) -> None:
        """All clients mean the same place by a position."""
        place = self.place(position)
        assert place.after[lane] in (None, number), (position, lane, number, place)
        assert number <= place.at_most[lane], (position, lane, number, place)
        place.after[lane] = number

    def settle(self) -> None:
        self.broker.kept_at_most = 20
        for _ in range(40):
            for reader in self.readers:
                self.drain(reader)
                self.grant(reader, 10000.0)
            self.broker.confirm_all()
            self.broker.answer_recalls()
            self.service.iterate()
            self.read_all()

    def teardown(self) -> None:
        """In the end all clients come back, and get what is sent then."""
        if self.broker.is_down:
            self.find_broker(False, False)
        for _ in range(3):  # some are closed because they had expired
            self.settle()
            for reader in self.readers:
                if reader.client is None:
                    self.connect(reader, reader.position if reader.has_positions else None)
                elif reader.check is None:
                    self.present(reader)
        self.settle()
        for lane in range(len(self.broker.sent)):
            self.broker.send(lane, 0)
        self.settle()
        for reader in self.readers:
            assert reader.client is not None, reader
            assert reader.after == self.broker.sent, (reader, self.broker.sent)
        self.stop_service()
        self.service.tearDown()


class LocalMachine(Machine):
    """The broker keeps nothing: positions are those of the process."""

    lanes = 0


class StoringMachine(Machine):
    """The broker keeps a log with two lanes: positions outlive the process."""

    lanes = 2


class StatefulTests(SynchronousTestCase):
    def setUp(self) -> None:
        # With small limits, a few events reach them.
        self.patch(harness, "TRANSPORT_BUFFER", 600)
        self.patch(hub, "MAX_DELIVERIES_PER_ITERATION", 2)
        self.patch(hub, "NOTIFY_PER_ITERATION", 1)
        self.patch(channel, "MAX_JOINED", 400)
        self.patch(hub, "HIGH_WATER", 3000)
        self.patch(hub, "LOW_WATER", 1500)

    def run_machine(self, machine: type[Machine]) -> None:
        run_state_machine_as_test(  # type: ignore[no-untyped-call]
            machine,
            settings=settings(
                max_examples=80,
                report_multiple_bugs=False,
                stateful_step_count=60,
                suppress_health_check=list(HealthCheck),
            ),
        )

    def test_over_a_broker_that_keeps_nothing(self) -> None:
        """Each client has every message once, or is told that some may be missing."""
        self.run_machine(LocalMachine)

    def test_over_a_broker_that_keeps_a_log(self) -> None:
        """The same, across lost brokers and restarts of the service."""
        self.run_machine(StoringMachine)

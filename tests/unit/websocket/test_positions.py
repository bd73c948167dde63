"""Sessions with positions, in memory and in virtual time: docs/protocol.md, "Positions"."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any

from twisted.internet.defer import Deferred, fail, succeed

from tests.support.harness import SENDER, TOPIC, Client, ServiceTestCase
from topicsvc.delivery import hub
from topicsvc.delivery.send_queue import SendQueue
from topicsvc.errors import BrokerUnavailable
from topicsvc.interfaces import Mark, Message, TopicLog
from topicsvc.scheduling.call_queue import CallQueue
from topicsvc.settings import HistorySettings, SessionSettings
from topicsvc.topics import TopicAddress
from topicsvc.websocket import messages


class PositionTestCase(ServiceTestCase):
    def returned(self, since: str | None = None, lifetime: float = 3600) -> Client:
        """A client with positions, whose `Success` has not been read."""
        client = self.connect()
        client.present("first-token", Since=since)
        self.validator.last.grant(self.now + lifetime)
        if not self.broker.subscriptions[-1].result.called:
            self.broker.confirm()
        return client

    def begun(self, since: str | None = None, lifetime: float = 3600) -> tuple[Client, str]:
        """A client with positions, and the position of its `Success`."""
        client = self.returned(since, lifetime)
        success = self.success(client)
        self.assertFalse(success["Missed"])
        return client, success["Position"]

    def success(self, client: Client) -> dict[str, Any]:
        [text] = client.texts()
        reply: dict[str, Any] = json.loads(text)
        self.assertEqual(reply["Result"], "Success")
        return reply

    def data(self, client: Client) -> list[tuple[Any, str]]:
        """The body and the position of each message."""
        read = [json.loads(text) for text in client.texts()]
        return [(each["Body"], each["Position"]) for each in read]

    def one_iteration(self) -> None:
        """Run one reactor iteration: a call that it schedules runs in the next one."""
        now = self.clock.seconds()
        for call in [each for each in self.clock.getDelayedCalls() if each.getTime() <= now]:
            self.clock.calls.remove(call)
            call.called = True
            call.func(*call.args, **call.kw)

    def send(self, *bodies: int) -> None:
        for body in bodies:
            self.deliver(b"%d" % body)

    def assert_missed(self, client: Client) -> Any:
        """Nothing but a `Success` which says that messages may be missing; its position."""
        success = self.success(client)
        self.assertIs(success["Missed"], True)
        return success["Position"]

    def assert_continues(self, client: Client, position: str, *bodies: int) -> None:
        """A `Success` which says that nothing is missing, and the messages behind `position`."""
        success, *data = [json.loads(text) for text in client.texts()]
        self.assertEqual((success["Position"], success["Missed"]), (position, False))
        self.assertEqual([each["Body"] for each in data], list(bodies))


class WireTests(PositionTestCase):
    def test_success_has_the_position_before_any_message_was_sent(self) -> None:
        client = self.returned()
        [text] = client.texts()
        position = json.loads(text)["Position"]
        self.assertRegex(position, r"\A[!-~]{1,128}\Z")
        self.assertEqual(
            text,
            b'{"Response":"AccessToken","Result":"Success","ExpiresIn":3600,"Timestamp":%d,'
            b'"Position":"%s","Missed":false,"Heartbeat":60}' % (self.now, position.encode()),
        )

    def test_each_message_has_its_position_behind_the_body(self) -> None:
        client, first = self.begun()
        self.deliver(b'{"a": 1.50}')
        [text] = client.texts()
        position = json.loads(text)["Position"]
        self.assertNotEqual(position, first)
        self.assertEqual(
            text,
            b'{"From":"%s","Body":{"a": 1.50},"Position":"%s"}'
            % (SENDER.encode(), position.encode()),
        )

    def test_a_client_that_does_not_ask_sees_the_plain_protocol(self) -> None:
        self.begun()
        plain = self.subscribe()
        self.send(1)
        self.assertEqual(plain.texts(), [b'{"From":"%s","Body":1}' % SENDER.encode()])
        self.advance(3 * 60)
        self.assertEqual({opcode for opcode, _ in plain.frames()}, {9})
        plain.present("another-token", Since=None)
        self.validator.last.grant(self.now + 60)
        plain.assert_success(60)

    def test_a_malformed_position_is_an_invalid_message(self) -> None:
        for since in ("", 0, True, [], {}, "a b", "\n", "é", "a" * 129):
            with self.subTest(since=since):
                client = self.connect()
                client.present("a-token", Since=since)
                client.assert_refused("Unknown", "Invalid message", 1008)

    def test_since_in_a_later_token_message_is_ignored(self) -> None:
        client, _ = self.begun()
        self.send(1, 2)
        (_, first), (_, second) = self.data(client)
        client.present("another-token", Since=first)
        self.validator.last.grant(self.now + 60)
        success = self.success(client)
        self.assertEqual((success["Position"], success["Missed"]), (second, False))
        client.assert_nothing()

    def test_the_success_of_a_re_sent_token_has_the_three_keys(self) -> None:
        client, first = self.begun()
        client.present("another-token")
        self.validator.last.grant(self.now + 60)
        [text] = client.texts()
        self.assertEqual(
            text,
            b'{"Response":"AccessToken","Result":"Success","ExpiresIn":60,"Timestamp":%d,'
            b'"Position":"%s","Missed":false,"Heartbeat":60}' % (self.now, first.encode()),
        )

    def test_the_position_of_a_re_sent_token_is_not_ahead_of_the_delivered_messages(self) -> None:
        client, first = self.begun()
        client.present("another-token")
        self.broker.deliver(Message(TOPIC, SENDER, b"1"))  # accepted, and not delivered yet
        self.validator.last.grant(self.now + 60)
        self.assertEqual(self.success(client)["Position"], first)
        self.iterate()
        [(body, position)] = self.data(client)
        self.assertEqual(body, 1)
        self.assertNotEqual(position, first)

    def test_errors_have_no_position(self) -> None:
        client = self.connect()
        client.present("a-token", Since=None)
        self.validator.last.refuse()
        client.assert_refused("AccessToken", "Token inactive", 1008)


class ReturnTests(PositionTestCase):
    def test_what_was_sent_meanwhile_follows_once_and_in_order(self) -> None:
        client, _ = self.begun()
        self.send(1)
        [(_, position)] = self.data(client)
        client.disconnect()
        self.send(2, 3)
        again = self.returned(position)
        self.assert_continues(again, position, 2, 3)
        self.send(4)
        self.assertEqual([body for body, _ in self.data(again)], [4])

    def test_a_message_that_is_accepted_and_not_yet_delivered_comes_once(self) -> None:
        # Edge 1: the ring is fed when the delivery begins.
        client, position = self.begun()
        client.disconnect()
        self.broker.deliver(Message(TOPIC, SENDER, b"1"))
        again = self.returned(position)
        self.assertEqual(self.success(again)["Position"], position)
        self.iterate()
        self.assertEqual([body for body, _ in self.data(again)], [1])

    def test_one_that_joins_while_a_message_is_delivered_gets_it_once(self) -> None:
        # Edge 1: the first iteration delivers to a part of the members only.
        members = [self.begun() for _ in range(3)]
        self.patch(hub, "MAX_DELIVERIES_PER_ITERATION", 1)
        self.broker.deliver(Message(TOPIC, SENDER, b"1"))
        self.one_iteration()
        self.assertFalse(self.hub.is_idle)
        again = self.returned(members[0][1])
        for _ in range(5):
            self.iterate()
        _, *data = again.texts()
        self.assertEqual([json.loads(text)["Body"] for text in data], [1])
        for client, _ in members:
            self.assertEqual([body for body, _ in self.data(client)], [1])

    def test_a_renewal_while_a_message_is_delivered_repeats_nothing(self) -> None:
        # The third member has not got the message when its new grant comes after the expiry.
        members = [self.begun(lifetime=10) for _ in range(3)]
        self.advance(9)
        client, position = members[2]
        client.present("another-token")
        check = self.validator.last
        self.advance(2)
        self.send(1)  # to no member: all have expired
        self.patch(hub, "MAX_DELIVERIES_PER_ITERATION", 1)
        self.broker.deliver(Message(TOPIC, SENDER, b"2"))
        self.one_iteration()
        self.one_iteration()
        self.assertFalse(self.hub.is_idle)
        check.grant(self.now + 60)
        for _ in range(5):
            self.iterate()
        self.assert_continues(client, position, 1, 2)

    def test_clients_that_come_back_at_the_same_place_share_the_bytes(self) -> None:
        # Edge 2.
        client, position = self.begun()
        client.disconnect()
        self.send(1, 2)
        replays = []

        def record(queue: SendQueue, frames: bytes, count: int, now: float) -> None:
            if count:
                replays.append((frames, count))

        self.patch(SendQueue, "deliver", record)
        for _ in range(3):
            self.returned(position)
        (first, two), *others = replays
        self.assertEqual(two, 2)
        self.assertEqual(len(others), 2)
        for frames, _ in others:
            self.assertIs(frames, first)

    def test_a_replay_counts_as_queued_bytes(self) -> None:
        # Edge 2.
        client, position = self.begun()
        client.disconnect()
        body = b'"%s"' % (b"x" * 100000)
        for _ in range(5):
            self.deliver(body)
        again = self.connect()
        again.transport.is_congested = True
        again.present("a-token", Since=position)
        self.validator.last.grant(self.now + 60)
        slow_consumers = self.websocket_server.context.slow_consumers
        self.assertGreater(slow_consumers.total, 5 * 100000 - 2 * 65536)
        again.transport.drain()
        self.iterate()
        self.assertEqual(len(again.texts()), 6)
        self.assertEqual(slow_consumers.total, 0)

    def test_the_newest_position_stays_provable_when_its_message_is_too_old(self) -> None:
        # Edge 3.
        client, _ = self.begun()
        self.send(1)
        [(_, position)] = self.data(client)
        self.advance(119)
        client.disconnect()
        self.advance(119)
        again = self.returned(position)
        self.assertFalse(self.success(again)["Missed"])

    def test_a_position_that_is_not_provable(self) -> None:
        # Edge 4.
        _, position = self.begun()
        other_topic = position.replace(position.split(".")[0], "e")
        for since in (
            position[:-1] + "1",  # ahead of the newest
            other_topic,
            "nonsense",
            "!" * 128,
        ):
            with self.subTest(since=since):
                again = self.returned(since)
                self.assertEqual(self.assert_missed(again), position)

    def test_a_position_of_another_topic_is_not_provable(self) -> None:
        # Edge 4.
        _, position = self.begun()
        other = self.connect(path="/__topic/box1/col.topic.other")
        other.present("a-token", Since=position)
        self.validator.last.grant(self.now + 60)
        self.broker.confirm()
        self.assert_missed(other)

    def test_what_is_older_than_the_limit_is_not_replayed(self) -> None:
        # Edges 4, 5: the age goes by the monotonic clock.
        client, position = self.begun()
        self.send(1)
        [(_, first)] = self.data(client)
        self.advance(60)
        self.send(2)
        client.disconnect()
        self.wall.jump(10000)
        self.advance(59.9)
        self.assertEqual(len(self.returned(position).texts()), 3)
        self.wall.jump(-20000)
        self.advance(0.2)
        self.assert_missed(self.returned(position))
        self.assertEqual(len(self.returned(first).texts()), 2)

    def test_a_topic_is_kept_for_some_time_after_the_last_session(self) -> None:
        client, position = self.begun()
        client.disconnect()
        self.advance(119)
        self.assertEqual(self.broker.subscriptions[-1].stops, 0)
        self.assertEqual(self.hub.topics, 0)
        self.send(1)
        again = self.returned(position)
        self.assertEqual(len(again.texts()), 2)
        again.disconnect()
        self.advance(121)
        self.assertEqual(self.broker.subscriptions[-1].stops, 1)
        self.assert_missed(self.returned(position))

    def test_a_bounded_number_of_topics_is_kept_without_sessions(self) -> None:
        self.patch(hub, "MAX_UNUSED_POSITIONS", 2)
        for number in range(3):
            client = self.connect(path=f"/__topic/box1/col.topic.name{number}")
            client.present("a-token", Since=None)
            self.validator.last.grant(self.now + 60)
            self.broker.confirm()
            client.disconnect()
        self.assertEqual([each.stops for each in self.broker.subscriptions], [1, 0, 0])

    def test_a_topic_without_sessions_with_positions_costs_nothing(self) -> None:
        client = self.subscribe()
        self.send(1)
        client.disconnect()
        self.assertEqual(self.broker.subscriptions[-1].stops, 1)
        history = self.hub.history
        assert history is not None
        self.assertEqual((history.messages, len(history)), (0, 0))

    def test_nothing_is_replayed_past_the_expiry(self) -> None:
        # Edge 6.
        client, position = self.begun()
        client.disconnect()
        self.send(1)
        again = self.connect()
        again.present("a-token", Since=position)
        self.validator.last.grant(self.now + 0.5)
        self.clock.advance(0.5)
        self.assertEqual(len(again.texts()), 2)
        expired = self.connect()
        expired.present("a-token", Since=position)
        check = self.validator.last
        expires_at = self.now + 0.5
        self.clock.advance(0.6)
        check.grant(expires_at)
        expired.assert_refused("AccessToken", "Token inactive", 1008)

    def test_a_grant_that_expires_between_success_and_replay_hides_nothing(self) -> None:
        client, position = self.begun()
        client.disconnect()
        self.send(1)
        again = self.connect()
        again.present("a-token", Since=position)
        first = self.validator.last
        again.present("another-token")  # in time: it waits for the first one
        deliver = SendQueue.deliver

        def stall(queue: SendQueue, frames: bytes, count: int, now: float) -> None:
            deliver(queue, frames, count, now)
            if not count:
                self.wall.jump(2)

        self.patch(SendQueue, "deliver", stall)
        first.grant(self.now + 1)
        self.patch(SendQueue, "deliver", deliver)
        self.validator.last.grant(self.now + 60)
        success, after = [json.loads(text) for text in again.texts()]
        self.assertEqual((success["Position"], success["Missed"]), (position, False))
        self.assertIs(after["Missed"], True)

    def test_what_was_sent_without_a_live_token_follows_under_the_new_grant(self) -> None:
        # Edge 6.
        client, _ = self.begun(lifetime=10)
        self.send(1)
        [(_, position)] = self.data(client)
        self.advance(9)
        client.present("another-token")
        self.advance(2)
        self.send(2)
        client.assert_nothing()
        self.validator.last.grant(self.now + 60)
        self.assert_continues(client, position, 2)
        self.send(3)
        self.assertEqual([body for body, _ in self.data(client)], [3])

    def test_after_each_end_the_position_that_the_client_has_read_counts(self) -> None:
        # Edge 7.
        for end in ("drop_slow_consumer", "going_away", "end_by_operator", "abort"):
            with self.subTest(end=end):
                client, _ = self.begun()
                self.send(1)
                [(_, position)] = self.data(client)
                *_, connection = self.websocket_server.active_sessions()
                arguments = {"drop_slow_consumer": (5,), "end_by_operator": ("why",)}
                getattr(connection, end)(*arguments.get(end, ()))
                client.disconnect()
                self.send(2)
                _, *data = self.returned(position).texts()
                self.assertEqual([json.loads(text)["Body"] for text in data], [2])

    def test_the_counts_for_operators(self) -> None:
        client, position = self.begun()
        client.disconnect()
        self.send(1, 2)
        self.returned(position)
        self.returned("nonsense")
        stats = self.hub.position_stats
        self.assertEqual((stats.proved, stats.missed, stats.replayed, stats.gaps), (1, 1, 2, 0))
        self.assertEqual(self.websocket_server.delivered[0], 2)


class MixedTopicTests(PositionTestCase):
    def test_members_with_and_without_positions_get_the_same_messages(self) -> None:
        # Edge 8.
        plain = self.subscribe()
        client, _ = self.begun()
        self.send(1, 2)
        self.assertEqual([json.loads(text)["Body"] for text in plain.texts()], [1, 2])
        self.assertEqual([body for body, _ in self.data(client)], [1, 2])

    def test_each_encoding_is_made_once_and_the_second_only_if_wanted(self) -> None:
        # Edge 8.
        encoded: list[str] = []
        encode = messages.positioned

        def record(frame: bytes, position: str) -> bytes:
            encoded.append(position)
            return encode(frame, position)

        self.patch(self.hub, "_encode_position", record)
        for _ in range(3):
            self.subscribe()
        self.send(1)
        self.assertEqual(encoded, [])
        for _ in range(3):
            self.begun()
        self.send(2, 3)
        self.assertEqual(len(encoded), 2)

    def test_the_last_plain_member_does_not_end_the_topic(self) -> None:
        plain = self.subscribe()
        client, _ = self.begun()
        plain.disconnect()
        self.send(1)
        self.assertEqual([body for body, _ in self.data(client)], [1])
        activity = self.hub.activity(TOPIC)
        assert activity is not None
        self.assertEqual(activity.sessions, 1)


class HeartbeatTests(PositionTestCase):
    def test_a_client_gets_its_position_when_nothing_else_was_sent_for_an_interval(self) -> None:
        client, position = self.begun()
        self.advance(59.5)
        self.assertEqual(self.without_pings(client), [])
        self.advance(0.75)
        expected = b'{"Position":"%s"}' % position.encode()
        self.assertEqual(self.without_pings(client), [expected])
        self.advance(60)
        self.assertEqual(self.without_pings(client), [expected])

    def test_each_message_and_each_reply_moves_the_heartbeat(self) -> None:
        client, _ = self.begun()
        self.advance(50)
        self.send(1)
        self.advance(50)
        [data] = self.without_pings(client)
        client.present("another-token")
        self.validator.last.grant(self.now + 3600)
        self.advance(50)
        self.assertEqual(len(self.without_pings(client)), 1)
        self.advance(10.25)
        position = json.loads(data)["Position"]
        self.assertEqual(self.without_pings(client), [b'{"Position":"%s"}' % position.encode()])

    def test_an_expired_session_gets_no_heartbeat(self) -> None:
        client, _ = self.begun(lifetime=30)
        self.advance(60)
        self.assertEqual([payload for opcode, payload in client.frames() if opcode == 1], [])

    def test_the_heartbeat_ends_with_the_session(self) -> None:
        client, _ = self.begun()
        client.disconnect()
        self.advance(200)
        self.assertEqual(len(self.websocket_server._heartbeats), 0)

    def without_pings(self, client: Client) -> list[bytes]:
        return [payload for opcode, payload in client.frames() if opcode != 9]


class GapTests(PositionTestCase):
    """The broker keeps nothing, was away, and sessions stay open."""

    def test_the_client_is_told_with_the_new_position(self) -> None:
        client, position = self.begun(lifetime=100)
        self.advance(1)
        self.broker.subscriptions[-1].missed(None)
        self.iterate()
        [text] = client.texts()
        success = json.loads(text)
        self.assertEqual((success["Result"], success["ExpiresIn"]), ("Success", 99))
        self.assertIs(success["Missed"], True)
        self.assertNotEqual(success["Position"], position)
        self.send(1)
        [(_, after)] = self.data(client)
        self.assertEqual(after.split(".")[0], success["Position"].split(".")[0])
        self.assertEqual(self.hub.position_stats.gaps, 1)

    def test_messages_from_before_the_gap_come_before_it(self) -> None:
        client, _ = self.begun()
        self.broker.deliver(Message(TOPIC, SENDER, b"1"))
        self.broker.subscriptions[-1].missed(None)
        self.broker.deliver(Message(TOPIC, SENDER, b"2"))
        for _ in range(3):
            self.iterate()
        first, gap, second = [json.loads(text) for text in client.texts()]
        self.assertEqual((first["Body"], gap["Missed"], second["Body"]), (1, True, 2))

    def test_news_of_a_gap_that_expires_on_its_way_are_told_later(self) -> None:
        client, _ = self.begun(lifetime=10)
        self.advance(9)
        client.present("another-token")
        self.patch(SendQueue, "deliver", lambda *_: None)
        session = next(iter(self.websocket_server.active_sessions()))
        self.patch(session._session, "_expires_at", self.now + 100)  # the session decides: in time
        self.patch(session._session, "deliver_until", self.now - 1)  # the queue: too late
        self.broker.subscriptions[-1].missed(None)
        self.iterate()
        self.assertIs(session._send_queue.has_dropped, True)

    def test_a_delivery_that_fails_hides_nothing(self) -> None:
        client, _ = self.begun()

        def fails(*_: object) -> None:
            raise ZeroDivisionError("injected by the test")

        deliver = SendQueue.deliver
        self.patch(SendQueue, "deliver", fails)
        self.send(1)
        self.patch(SendQueue, "deliver", deliver)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.send(2)
        self.assert_missed(client)

    def test_a_position_from_before_the_gap_is_not_provable(self) -> None:
        client, position = self.begun()
        client.disconnect()
        self.broker.subscriptions[-1].missed(None)
        self.iterate()
        self.assert_missed(self.returned(position))

    def test_a_plain_client_gets_nothing(self) -> None:
        plain = self.subscribe()
        self.begun()
        self.broker.subscriptions[-1].missed(None)
        self.iterate()
        plain.assert_nothing()

    def test_a_topic_without_positions_is_not_affected(self) -> None:
        plain = self.subscribe()
        self.broker.subscriptions[-1].missed(None)
        self.send(1)
        self.assertEqual(len(plain.texts()), 1)

    def test_a_session_that_has_expired_is_told_when_it_is_granted_again(self) -> None:
        client, _ = self.begun(lifetime=10)
        self.advance(9)
        client.present("another-token")
        self.advance(2)
        self.broker.subscriptions[-1].missed(None)
        self.iterate()
        client.assert_nothing()
        self.validator.last.grant(self.now + 60)
        self.assert_missed(client)

    def test_each_of_many_members_is_told_once_although_some_have_left(self) -> None:
        clients = [self.begun()[0] for _ in range(450)]
        clients[3].disconnect()
        self.broker.subscriptions[-1].missed(None)
        for _ in range(5):
            self.iterate()
        told = [len(client.texts()) for client in clients if client is not clients[3]]
        self.assertEqual(set(told), {1})
        self.assertEqual(self.hub.position_stats.gaps, 449)

    def test_a_renewal_after_the_loss_of_the_subscription_is_no_internal_error(self) -> None:
        client, _ = self.begun(lifetime=10)
        self.advance(9)
        client.present("another-token")
        self.advance(2)
        self.send(1)
        self.broker.lose_subscriptions()
        self.validator.last.grant(self.now + 60)  # before the session is told
        self.iterate()
        success, close = client.frames()
        self.assertIs(json.loads(success[1])["Missed"], True)
        self.assert_close(close, 1013, "Service unavailable")

    def test_a_lost_subscription_closes_sessions_with_positions_too(self) -> None:
        client, position = self.begun()
        self.broker.lose_subscriptions()
        self.iterate()
        client.assert_closed(1013, "Service unavailable")
        self.assert_missed(self.returned(position))

    def test_data_that_waits_at_the_expiry_makes_the_position_unknown(self) -> None:
        client, position = self.begun(lifetime=5)
        client.transport.is_congested = True
        for _ in range(4):  # the transport takes some of them, the queue the others
            self.deliver(b'"%s"' % (b"x" * 60000))
        self.advance(4)
        client.present("another-token")
        self.advance(2)
        client.transport.drain()  # what waits in the queue is dropped
        self.iterate()
        self.validator.last.grant(self.now + 60)
        *data, success = [json.loads(text) for text in client.texts()]
        self.assertLess(len(data), 4)
        self.assertIs(success["Missed"], True)
        self.assertNotEqual(success["Position"], position)

    def test_data_that_was_dropped_from_the_queue_makes_the_position_unknown(self) -> None:
        client, _ = self.begun()
        session = next(iter(self.websocket_server.active_sessions()))
        session._send_queue.has_dropped = True
        client.present("another-token")
        self.validator.last.grant(self.now + 60)
        self.assert_missed(client)
        client.present("another-token")
        self.validator.last.grant(self.now + 60)
        self.assertFalse(self.success(client)["Missed"])

    def test_a_time_of_day_that_is_set_back_hides_no_gap(self) -> None:
        # The session has expired for a time in which a message was delivered to nobody.
        client, _ = self.begun(lifetime=10)
        self.wall.jump(20)
        self.send(1)
        self.wall.jump(-20)
        client.assert_nothing()
        self.send(2)
        self.assert_missed(client)
        self.send(3)
        self.assertEqual([body for body, _ in self.data(client)], [3])

    def test_the_heartbeat_names_no_position_behind_dropped_data(self) -> None:
        client, _ = self.begun()
        session = next(iter(self.websocket_server.active_sessions()))
        session._send_queue.has_dropped = True
        self.advance(60.25)
        texts = [json.loads(payload) for opcode, payload in client.frames() if opcode == 1]
        self.assertEqual([text["Missed"] for text in texts], [True])
        self.send(1)
        self.assertEqual([body for body, _ in self.data(client)], [1])


class StoringBrokerTests(PositionTestCase):
    """A broker that keeps messages, as Redis and Kafka do."""

    def setUp(self) -> None:
        super().setUp()
        self.logs: list[Deferred[TopicLog]] = []
        self.broker.log = self.recall

    def recall(self, topic: TopicAddress) -> Deferred[TopicLog]:
        self.logs.append(Deferred())
        return self.logs[-1]

    def log(self, *bodies: int, start: int = 0) -> TopicLog:
        kept = tuple((self.marked(body), 1.0) for body in bodies)
        return TopicLog("k", (f"i{start}",), kept)

    def marked(self, body: int) -> Message:
        return Message(TOPIC, SENDER, b"%d" % body, Mark(0, f"i{body}"))

    def test_success_waits_for_what_the_broker_has_kept(self) -> None:
        client = self.returned("k.i1")
        client.assert_nothing()
        self.logs[0].callback(self.log(1, 2, 3))
        self.iterate()
        success, *data = [json.loads(text) for text in client.texts()]
        self.assertEqual((success["Position"], success["Missed"]), ("k.i1", False))
        self.assertEqual([(each["Body"], each["Position"]) for each in data],
                         [(2, "k.i2"), (3, "k.i3")])  # fmt: skip
        self.broker.deliver(self.marked(4))
        self.iterate()
        self.assertEqual(self.data(client), [(4, "k.i4")])

    def test_few_waiting_sessions_join_in_one_iteration(self) -> None:
        """Each may get a replay of half a megabyte."""
        clients = [self.returned("k.i0") for _ in range(2 * hub.RETURNS_PER_ITERATION)]
        made: list[int] = []
        run = CallQueue.run

        def count(queue: CallQueue, calls: Iterable[Callable[[], None]]) -> None:
            before = self.hub.position_stats.proved
            run(queue, calls)
            made.append(self.hub.position_stats.proved - before)

        self.patch(CallQueue, "run", count)
        self.logs[0].callback(self.log(1))
        self.iterate()
        self.assertEqual(max(made), hub.RETURNS_PER_ITERATION)
        self.assertEqual([len(client.texts()) for client in clients], [2] * len(clients))

    def test_the_log_is_read_once_for_a_topic(self) -> None:
        clients = [self.returned(f"k.i{each}") for each in range(3)]
        self.assertEqual(len(self.logs), 1)
        self.logs[0].callback(self.log(1, 2))
        self.iterate()
        self.assertEqual([len(client.texts()) for client in clients], [3, 2, 1])
        self.assertEqual(len(self.returned("k.i1").texts()), 2)
        self.assertEqual(len(self.logs), 1)

    def test_the_first_session_with_positions_on_a_topic_of_plain_ones(self) -> None:
        plain = self.subscribe()
        self.broker.deliver(self.marked(1))
        self.iterate()
        self.assertEqual(len(plain.texts()), 1)
        self.assertEqual(self.logs, [])
        client = self.returned("k.i0")
        self.broker.deliver(self.marked(2))  # waits in the hub
        self.logs[0].callback(self.log(1, 2))
        self.broker.deliver(self.marked(3))
        for _ in range(3):
            self.iterate()
        _, *data = client.texts()
        self.assertEqual([json.loads(text)["Body"] for text in data], [1, 2, 3])
        self.assertEqual([json.loads(text)["Body"] for text in plain.texts()], [2, 3])

    def catch_up_later(self) -> list[Deferred[None]]:
        """Let the test end the broker's catching up; return the Deferreds of all requests."""
        calls: list[Deferred[None]] = []

        def catching_up(_: TopicAddress) -> Deferred[None]:
            calls.append(Deferred())
            return calls[-1]

        self.broker.catching_up = catching_up
        return calls

    def test_a_client_that_is_ahead_waits_until_the_broker_has_caught_up(self) -> None:
        """It comes from another process, which got its last message earlier."""
        calls = self.catch_up_later()
        self.returned("k.i1")
        self.logs[0].callback(self.log(1, 2))
        self.iterate()
        clients = [self.returned("k.i3"), self.returned("k.i9"), self.returned("other.i3")]
        self.assertEqual(len(calls), 2, "only positions of this log are worth waiting for")
        clients[0].assert_nothing()
        self.broker.deliver(self.marked(3))
        self.broker.deliver(self.marked(4))
        calls[0].callback(None)
        calls[1].errback(BrokerUnavailable("injected by the test"))
        for _ in range(3):
            self.iterate()
        self.assert_continues(clients[0], "k.i3", 4)
        self.assertTrue(json.loads(clients[1].texts()[0])["Missed"])
        self.assertEqual(len(self.logs), 1)

    def test_a_client_that_is_ahead_joins_behind_the_messages_that_wait_here(self) -> None:
        """The broker has nothing to wait for: the client's last message waits for its delivery."""
        self.returned("k.i1")
        self.logs[0].callback(self.log(1))
        self.iterate()
        self.broker.deliver(self.marked(2))
        self.broker.deliver(self.marked(3))
        client = self.returned("k.i3")
        client.assert_nothing()
        for _ in range(3):
            self.iterate()
        success = self.success(client)
        self.assertEqual((success["Position"], success["Missed"]), ("k.i3", False))
        self.assertEqual(self.hub.position_stats.missed, 0)
        self.broker.deliver(self.marked(4))
        self.iterate()
        self.assertEqual(self.data(client), [(4, "k.i4")])

    def test_a_client_that_is_ahead_while_messages_go_to_many_members(self) -> None:
        """Its last message waits behind a delivery that has begun."""
        members = [self.returned("k.i1") for _ in range(3)]
        self.logs[0].callback(self.log(1))
        self.iterate()
        for member in members:
            self.success(member)
        self.patch(hub, "MAX_DELIVERIES_PER_ITERATION", 1)
        self.broker.deliver(self.marked(2))
        self.one_iteration()
        self.broker.deliver(self.marked(3))
        clients = [self.returned(f"k.i{each}") for each in (2, 3)]
        for _ in range(9):
            self.iterate()
        for client, bodies in zip(clients, ([3], []), strict=True):
            success, *data = [json.loads(text) for text in client.texts()]
            self.assertFalse(success["Missed"])
            self.assertEqual([each["Body"] for each in data], bodies)
        self.assertEqual([len(member.texts()) for member in members], [2, 2, 2])

    def test_a_position_that_nobody_knows_waits_for_nothing_more(self) -> None:
        self.returned("k.i1")
        self.logs[0].callback(self.log(1))
        self.iterate()
        self.assertEqual(self.assert_missed(self.returned("k.i9")), "k.i1")
        self.broker.deliver(self.marked(2))
        client = self.returned("k.i9")
        self.iterate()
        self.iterate()
        self.assertEqual(self.assert_missed(client), "k.i2")

    def test_a_client_that_is_ahead_of_the_log_that_is_read(self) -> None:
        """It came while the log was read, with a message that was sent after that request."""
        calls = self.catch_up_later()
        first, ahead, left = [self.returned(f"k.i{each}") for each in (1, 2, 2)]
        self.logs[0].callback(self.log(1))
        self.iterate()
        self.assertFalse(self.success(first)["Missed"])
        ahead.assert_nothing()
        self.assertEqual(len(calls), 2)
        left.disconnect()
        self.broker.deliver(self.marked(2))
        for call in calls:
            call.callback(None)
        for _ in range(3):
            self.iterate()
        success = self.success(ahead)
        self.assertEqual((success["Position"], success["Missed"]), ("k.i2", False))

    def test_a_log_that_cannot_be_read_is_service_unavailable(self) -> None:
        client = self.returned("k.i0")
        self.logs[0].errback(BrokerUnavailable("injected by the test"))
        client.assert_refused("AccessToken", "Service unavailable", 1013)
        self.assertEqual(self.broker.subscriptions[-1].stops, 1)
        self.returned("k.i0")
        self.assertEqual(len(self.logs), 2)

    def test_a_log_that_fails_at_once_is_service_unavailable(self) -> None:
        """Also on a topic that has plain sessions already."""
        plain = self.subscribe()
        self.broker.log = lambda _: fail(BrokerUnavailable("injected by the test"))
        for since in (None, "k.i0"):
            client = self.returned(since)
            client.assert_refused("AccessToken", "Service unavailable", 1013)
        self.deliver(b"1")
        self.assertEqual(len(plain.texts()), 1)
        self.assertEqual(self.broker.subscriptions[-1].stops, 0)
        self.broker.log = self.recall
        client = self.returned("k.i0")
        self.logs[0].callback(self.log(1))
        self.iterate()
        self.assertEqual(len(client.texts()), 2)

    def test_a_log_that_is_there_at_once(self) -> None:
        plain = self.subscribe()
        self.broker.log = lambda _: succeed(self.log(1, 2))
        client = self.returned("k.i1")
        self.iterate()
        self.assertEqual(len(client.texts()), 2)
        self.broker.deliver(self.marked(3))
        self.iterate()
        self.assertEqual((len(client.texts()), len(plain.texts())), (1, 1))

    def test_an_internal_error_while_a_log_is_read_is_logged(self) -> None:
        client = self.returned("k.i0")
        self.logs[0].errback(ZeroDivisionError("injected by the test"))
        [(_, _), (opcode, close)] = client.frames()
        self.assertEqual((opcode, int.from_bytes(close[:2], "big")), (8, 1011))
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 2)

    def test_a_client_that_leaves_while_the_log_is_read(self) -> None:
        client = self.returned("k.i0")
        client.disconnect()
        self.logs[0].callback(self.log(1))
        self.iterate()
        self.advance(121)
        self.assertEqual(self.broker.subscriptions[-1].stops, 1)

    def test_the_broker_is_lost_while_the_log_is_read(self) -> None:
        client = self.returned("k.i0")
        self.broker.lose_subscriptions()
        self.iterate()
        client.assert_refused("AccessToken", "Service unavailable", 1013)
        self.logs[0].callback(self.log(1))
        self.iterate()

    def test_a_gap_has_the_broker_s_new_position(self) -> None:
        client = self.returned("k.i0")
        self.logs[0].callback(self.log())
        self.iterate()
        self.success(client)
        self.broker.subscriptions[-1].missed(TopicLog("k2", ("i7",)))
        self.iterate()
        self.assertEqual(self.assert_missed(client), "k2.i7")
        self.broker.deliver(self.marked(8))
        self.iterate()
        self.assertEqual(self.data(client), [(8, "k2.i8")])

    def test_messages_that_are_too_old_are_not_replayed(self) -> None:
        old = (self.marked(1), 121.0), (self.marked(2), 119.0)
        client = self.returned("k.i0")
        self.logs[0].callback(TopicLog("k", ("i0",), old))
        self.iterate()
        self.assert_missed(client)
        self.assertEqual(len(self.returned("k.i1").texts()), 2)


class OffTests(PositionTestCase):
    """``history.seconds = 0``."""

    history = HistorySettings(seconds=0)

    def test_there_is_no_position(self) -> None:
        for since, missed in ((None, b"false"), ("m4x7.1", b"true")):
            with self.subTest(since=since):
                [text] = self.returned(since).texts()
                self.assertEqual(
                    text,
                    b'{"Response":"AccessToken","Result":"Success","ExpiresIn":3600,'
                    b'"Timestamp":%d,"Position":null,"Missed":%s,"Heartbeat":60}'
                    % (self.now, missed),
                )

    def test_data_is_plain_and_the_heartbeat_has_no_position(self) -> None:
        client = self.returned()
        client.texts()
        self.send(1)
        self.assertEqual(client.texts(), [b'{"From":"%s","Body":1}' % SENDER.encode()])
        self.advance(60.25)
        self.assertIn((1, b'{"Position":null}'), client.frames())
        client.disconnect()
        self.assertEqual(self.broker.subscriptions[-1].stops, 1)

    def renewed(self, client: Client) -> None:
        self.validator.last.grant(self.now + 60)
        self.assertIsNone(self.assert_missed(client))

    def test_a_renewal_says_that_messages_were_dropped_since_the_expiry(self) -> None:
        """Positions are off, so they cannot follow."""
        client = self.returned(lifetime=10)
        client.texts()
        self.advance(9)
        client.present("another-token")
        self.advance(2)
        self.send(1)
        client.assert_nothing()
        self.renewed(client)
        client.present("another-token")
        self.validator.last.grant(self.now + 60)
        self.assertFalse(self.success(client)["Missed"])

    def test_a_renewal_says_that_data_which_waited_was_dropped(self) -> None:
        client = self.returned()
        client.texts()
        session = next(iter(self.websocket_server.active_sessions()))
        session._send_queue.has_dropped = True
        client.present("another-token")
        self.renewed(client)

    def test_a_gap_is_told_behind_the_messages_before_it(self) -> None:
        plain, client, left = self.subscribe(), self.returned(), self.returned()
        client.texts()
        left.disconnect()
        self.broker.deliver(Message(TOPIC, SENDER, b"1"))
        self.broker.subscriptions[-1].missed(None)
        self.broker.deliver(Message(TOPIC, SENDER, b"2"))
        for _ in range(3):
            self.iterate()
        first, gap, second = [json.loads(text) for text in client.texts()]
        self.assertEqual((first["Body"], second["Body"]), (1, 2))
        self.assertEqual((gap["Position"], gap["Missed"]), (None, True))
        self.assertEqual(len(plain.texts()), 2)
        self.assertEqual(self.hub.position_stats.gaps, 1)

    def test_a_gap_after_the_expiry_is_told_under_the_new_grant(self) -> None:
        client = self.returned(lifetime=10)
        client.texts()
        self.advance(9)
        client.present("another-token")
        self.advance(2)
        self.broker.subscriptions[-1].missed(None)
        self.iterate()
        client.assert_nothing()
        self.renewed(client)

    def test_a_time_of_day_that_is_set_back_hides_no_gap(self) -> None:
        client = self.returned(lifetime=10)
        client.texts()
        self.wall.jump(20)
        self.send(1)
        self.wall.jump(-20)
        client.assert_nothing()
        self.send(2)
        gap, data = [json.loads(text) for text in client.texts()]
        self.assertEqual((gap["Position"], gap["Missed"]), (None, True))
        self.assertEqual(data["Body"], 2)


class ShortIntervalTests(PositionTestCase):
    """Heartbeats fall due while a new token is checked after the expiry."""

    settings = SessionSettings(ping_interval=5)

    def expired(self) -> tuple[Client, str]:
        """A client whose new token is being checked, 1 s after the old one has expired."""
        client, position = self.begun(lifetime=10)
        self.advance(9)
        client.present("another-token")
        self.advance(2)
        client.frames()
        return client, position

    def assert_no_text(self, client: Client) -> None:
        self.assertEqual([payload for opcode, payload in client.frames() if opcode == 1], [])

    def test_a_heartbeat_after_the_expiry_keeps_what_can_be_proved(self) -> None:
        client, position = self.expired()
        self.send(1)
        self.advance(6)
        self.assert_no_text(client)
        self.validator.last.grant(self.now + 60)
        self.assert_continues(client, position, 1)
        self.send(2)
        self.assertEqual([body for body, _ in self.data(client)], [2])

    def test_a_gap_after_the_expiry_is_told_under_the_new_grant(self) -> None:
        """Before the heartbeat, or behind it; also with a message before or behind the gap."""
        for order in ("gm", "mg", "g", "hg", "gh", "mhg", "hgm"):
            with self.subTest(order=order):
                client, position = self.expired()
                for each in order:
                    if each == "g":
                        self.broker.subscriptions[-1].missed(None)
                        self.iterate()
                    elif each == "m":
                        self.send(1)
                    else:
                        self.advance(6)
                self.advance(6)
                self.assert_no_text(client)
                self.validator.last.grant(self.now + 60)
                self.assertNotEqual(self.assert_missed(client), position)
                self.send(2)
                self.assertEqual([body for body, _ in self.data(client)], [2])
                client.disconnect()

    def test_data_that_was_dropped_is_told_under_the_new_grant(self) -> None:
        client, _ = self.expired()
        session = next(iter(self.websocket_server.active_sessions()))
        session._send_queue.has_dropped = True
        self.send(1)
        self.advance(6)
        self.assert_no_text(client)
        self.validator.last.grant(self.now + 60)
        self.assert_missed(client)

    def test_news_that_cannot_be_told_keep_what_can_be_proved(self) -> None:
        """The queue's time of day is before the expiry, and that of the session behind it."""
        client, position = self.expired()
        self.send(1)
        session = next(iter(self.websocket_server.active_sessions()))
        session._send_queue.deliver_until = self.now + 100
        self.send(2)
        self.assert_no_text(client)
        self.validator.last.grant(self.now + 60)
        self.assert_continues(client, position, 1, 2)


class OtherIntervalTests(PositionTestCase):
    settings = SessionSettings(ping_interval=20.5)

    def test_the_heartbeat_is_the_ping_interval(self) -> None:
        client = self.returned()
        self.assertEqual(self.success(client)["Heartbeat"], 20.5)
        self.advance(20.75)
        self.assertIn(1, [opcode for opcode, _ in client.frames()])

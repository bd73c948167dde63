"""Many messages in one request."""

from __future__ import annotations

import json

from twisted.internet.defer import Deferred

from tests.support.harness import HOST, MAX_BATCH, SEND_PATH, Client, ServiceTestCase
from topicsvc.errors import BrokerUnavailable
from topicsvc.interfaces import Grant, Message
from topicsvc.web import batch
from topicsvc.web.senders import Senders

NDJSON = {"Authorization": "Bearer t", "Content-Type": "application/x-ndjson"}


class BatchTests(ServiceTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.validator.known = lambda *_: Grant(None, self.now + 60, True, True)
        self.broker.accepts_at_once = True
        self.site.max_body = 10**6

    def send(self, body: bytes, headers: dict[str, str] = NDJSON) -> tuple[Client, bytes]:
        client = self.client()
        return client, client.request("POST", SEND_PATH, headers, body)

    @property
    def bodies(self) -> list[bytes]:
        return [message.body for message in self.broker.published]

    def assert_error(self, body: bytes, status: int, code: str, text: str) -> None:
        client, answer = self.send(body)
        self.assertEqual((client.status, self.bodies), (status, []))
        error = json.loads(answer)
        self.assertEqual((error["code"], error["message"]["value"]), (code, text))

    def test_each_line_is_sent_as_a_message_in_order(self) -> None:
        client, answer = self.send(b'1\n {"a": 2.50} \r\n"x"\n')
        self.assertEqual((client.status, answer), (200, b""))
        self.assertEqual(self.bodies, [b"1", b'{"a": 2.50}', b'"x"'])
        self.assertEqual(self.broker.published[0].sender, f"https://{HOST}/")

    def test_subscribers_receive_the_messages_in_order(self) -> None:
        self.validator.known = None
        subscriber = self.subscribe()
        self.validator.known = lambda *_: Grant(None, self.now + 60, True, True)
        self.send(b"1\n2\n3")
        self.iterate()
        self.assertEqual([json.loads(text)["Body"] for text in subscriber.texts()], [1, 2, 3])

    def test_the_media_type_may_have_parameters(self) -> None:
        self.send(b"1\n2", {**NDJSON, "Content-Type": "Application/X-NDJSON; charset=utf-8"})
        self.assertEqual(self.bodies, [b"1", b"2"])

    def test_with_another_media_type_the_body_is_one_message(self) -> None:
        client, _ = self.send(b"1\n2", {"Authorization": "Bearer t"})
        self.assertEqual((client.status, self.bodies), (400, []))

    def test_if_one_line_is_invalid_nothing_is_sent(self) -> None:
        for body, number in ((b"1\nx\n3", 2), (b"1\n\n3", 2), (b"", 1), (b"\n", 1), (b"1\n\xff", 2),
                             (b"1\n" * 70 + b"x", 71)):  # fmt: skip
            text = f"Line {number} is not one JSON value."
            self.assert_error(body, 400, "PR400-SV-0002", text)

    def test_the_number_of_lines_is_limited(self) -> None:
        client, _ = self.send(b"1\n" * MAX_BATCH)
        self.assertEqual((client.status, len(self.bodies)), (200, MAX_BATCH))
        self.broker.published.clear()
        text = f"The body has more than {MAX_BATCH} lines."
        self.assert_error(b"1\n" * (MAX_BATCH + 1), 413, "PR413-SV-0002", text)

    def test_the_lines_of_a_batch_are_counted_once_and_those_of_a_message_never(self) -> None:
        counted: list[bytes] = []
        count_lines = batch.count_lines
        self.patch(batch, "count_lines", lambda body: counted.append(body) or count_lines(body))
        resource = self.site.resource._send
        resource.senders = Senders(self.clock)
        self.send(b"1\n2\n")
        self.send(b"3", {"Authorization": "Bearer t"})
        self.assertEqual((counted, self.bodies), ([b"1\n2\n"], [b"1", b"2", b"3"]))
        self.assertEqual([each.messages for each in resource.senders.top(9)], [3])

    def test_a_long_batch_is_spread_over_reactor_iterations(self) -> None:
        self.site.resource._send.max_batch = 10_000
        spent = 0.0
        seconds = self.clock.seconds

        def now() -> float:
            nonlocal spent
            spent += 0.0005
            return seconds() + spent

        self.patch(self.clock, "seconds", now)
        client, _ = self.send(b"1\n" * 5000)
        self.assertEqual((client.status, self.bodies), (0, []))
        iterations = 0
        while len(self.site.budget):
            iterations += 1
            other = self.client()
            other.request("OPTIONS", "*")
            self.site.budget._next_iteration()
        client.read_answer()
        self.assertEqual((client.status, len(self.bodies)), (200, 5000))
        self.assertGreater(iterations, 10)

    def test_a_broker_that_confirms_later(self) -> None:
        self.site.resource._send.max_batch = 10_000
        self.broker.accepts_at_once = False
        answers: list[Deferred[None]] = []
        bodies: list[bytes] = []

        def publish(message: Message) -> Deferred[None]:
            bodies.append(message.body)
            answers.append(Deferred())
            return answers[-1]

        self.patch(self.broker, "publish", publish)
        count = 2 * batch.MAX_UNCONFIRMED + 10
        client, _ = self.send(b"\n".join(b"%d" % number for number in range(count)))
        self.assertEqual((client.status, len(answers)), (0, batch.MAX_UNCONFIRMED))
        for number in range(count):
            answers[number].callback(None)
        client.read_answer()
        self.assertEqual(client.status, 200)
        self.assertEqual(bodies, [b"%d" % number for number in range(count)])

    def test_a_broker_that_refuses(self) -> None:
        self.site.resource._send.max_batch = 10_000
        self.broker.accepts_at_once = False
        answers: list[Deferred[None]] = []
        self.patch(self.broker, "publish", lambda _: answers.append(Deferred()) or answers[-1])
        client, _ = self.send(b"1\n" * (batch.MAX_UNCONFIRMED + 10))
        answers[3].errback(BrokerUnavailable("no"))
        client.read_answer()
        self.assertEqual(client.status, 503)
        for number, answer in enumerate(answers):
            if number != 3:
                answer.callback(None)
        self.assertEqual(len(answers), batch.MAX_UNCONFIRMED, "no other is sent")

    def test_a_disconnect_stops_the_batch(self) -> None:
        self.broker.accepts_at_once = False
        cancelled: list[object] = []
        self.patch(self.broker, "publish", lambda _: Deferred(cancelled.append))
        client, _ = self.send(b"1\n2")
        client.disconnect()
        self.assertEqual(len(cancelled), 2)
        self.assert_nothing_left()

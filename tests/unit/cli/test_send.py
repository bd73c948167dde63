"""``topicsvc send`` waits when the service asks for it, in virtual time."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactorClock
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.http_headers import Headers

from topicsvc.cli import send
from topicsvc.cli.client import parse_url
from topicsvc.cli.terminal import CommandFailed
from topicsvc.validators.http_client import Response

TOO_MANY = b'{"code":"PR429-SV-0001","message":{"lang":"en","value":"Too many messages."}}'


def response(status: int, retry_after: str = "", body: bytes = b"") -> Response:
    headers = {"retry-after": [retry_after]} if retry_after else {}
    return Response(status, Headers(headers), body)


class FakeClient:
    """Answers requests with these responses, in their order."""

    def __init__(self, *responses: Response) -> None:
        self.responses = list(responses)
        self.bodies: list[bytes] = []

    def request(self, method: str, url: str, headers: Any, body: bytes) -> Deferred[Response]:
        self.bodies.append(body)
        return succeed(self.responses.pop(0))


class SendTestCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.told: list[str] = []
        self.patch(send, "print_error", self.told.append)
        self.clock: Clock = MemoryReactorClock()

    def sender(self, *responses: Response) -> send.Sender:
        """A sender whose requests get these responses."""
        url = parse_url("http://localhost/cell1/box1/col/topic/name", "http")
        sender = send.Sender(self.clock, url, "token")
        self.client = sender._client = FakeClient(*responses)
        return sender


class RetryTests(SendTestCase):
    def send(self, *responses: Response) -> Deferred[str]:
        """Send a message; fires with the reason if it was not accepted."""
        return self.sender(*responses).post_all([b"1"]).addCallback(lambda result: result[2])

    def test_after_429_the_message_is_sent_again_when_the_service_says(self) -> None:
        done = self.send(response(429, "10", TOO_MANY), response(200))
        self.assertEqual(self.told, ["429 Too many messages. Waiting 10 s"])
        self.clock.advance(9.9)
        self.assertEqual(len(self.client.bodies), 1)
        self.clock.advance(0.2)
        self.assertEqual(self.client.bodies, [b"1", b"1"])
        self.assertEqual(self.successResultOf(done), "")

    def test_all_pauses_together_are_at_most_60_seconds(self) -> None:
        done = self.send(*[response(429, "25", TOO_MANY)] * 3)
        self.clock.pump([25.0] * 2)
        self.assertEqual(self.successResultOf(done), "429 Too many messages.")
        self.assertEqual(len(self.client.bodies), 3)

    def test_without_a_time_that_can_be_waited_it_is_an_error_at_once(self) -> None:
        for retry_after in ("", "61", "3600", "soon", "-1", "Sun, 06 Nov 1994 08:49:37 GMT"):
            done = self.send(response(429, retry_after, TOO_MANY))
            self.assertEqual(self.successResultOf(done), "429 Too many messages.")

    def test_after_503_it_is_not_known_whether_the_message_was_taken(self) -> None:
        done = self.send(response(503, "1"))
        self.assertEqual(self.successResultOf(done), "503 Service Unavailable")

    def test_doctor_does_not_wait(self) -> None:
        done = self.sender(response(429, "10", TOO_MANY)).post(b"1")
        self.assertEqual(self.successResultOf(done), "429 Too many messages.")


class BatchTests(SendTestCase):
    """Messages go in as few requests as the service allows."""

    def test_all_go_in_one_request(self) -> None:
        done = self.sender(response(200)).post_all([b"1", b"2", b"3"])
        self.assertEqual(self.successResultOf(done), (3, 0, ""))
        self.assertEqual(self.client.bodies, [b"1\n2\n3"])

    def test_a_request_that_is_too_long_is_halved_and_so_are_the_next(self) -> None:
        sender = self.sender(response(413), response(413), *[response(200)] * 8)
        bodies = [b"%d" % number for number in range(8)]
        self.assertEqual(self.successResultOf(sender.post_all(bodies)), (8, 0, ""))
        self.assertEqual(
            self.client.bodies,
            [b"0\n1\n2\n3\n4\n5\n6\n7", b"0\n1\n2\n3", b"0\n1", b"2\n3", b"4\n5", b"6\n7"],
        )
        self.client.bodies.clear()
        self.assertEqual(self.successResultOf(sender.post_all(bodies[:3])), (3, 0, ""))
        self.assertEqual(self.client.bodies, [b"0\n1", b"2"])

    def test_one_message_that_is_too_long_is_an_error(self) -> None:
        done = self.sender(response(413), response(200), response(413)).post_all([b"1", b"22"])
        self.assertEqual(self.successResultOf(done), (1, 1, "413 Request Entity Too Large"))

    def test_what_is_refused_is_told_with_its_place(self) -> None:
        sender = self.sender(response(413), response(200), response(403))
        done = send._send_batch(sender, [b"1", b"2", b"3", b"4"], 11)
        error = self.failureResultOf(done, CommandFailed).value
        self.assertEqual(str(error), "messages 13 to 14: 403 Forbidden")

    def test_it_waits_when_the_service_says_so(self) -> None:
        sender = self.sender(response(413), response(200), response(429, "10"), response(200))
        done = sender.post_all([b"1", b"2"])
        self.assertNoResult(done)
        self.clock.advance(10)
        self.assertEqual(self.successResultOf(done), (2, 0, ""))

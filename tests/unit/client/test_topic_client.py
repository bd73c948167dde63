"""The Twisted client, where the scripted servers do not reach."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import txaio
from twisted.application.service import IService, MultiService
from twisted.internet import error
from twisted.internet.defer import CancelledError, Deferred, fail
from twisted.internet.task import Clock
from twisted.logger import Logger, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from tests.support.fake_server import FakeEndpoint, FakeServer
from topicsvc.client import Failed, Gap, Policy, TokenRefused, TopicClient
from topicsvc.client.connection import CLOSE_TIMEOUT

LOST = "the connection was lost, without a close frame of the service"
PLACED = {
    "Response": "AccessToken", "Result": "Success", "ExpiresIn": 3600, "Timestamp": 1,
    "Position": "a.0", "Missed": False, "Heartbeat": 60,
}  # fmt: skip


class ClientTestCase(SynchronousTestCase):
    """Fixture: a client whose servers are fakes."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.patch(txaio.config, "loop", self.clock)
        self.received: list[Any] = []
        self.closed: list[Any] = []
        self.servers: list[FakeServer] = []

    def start(self, get_token: Any = lambda _: "t1", **options: Any) -> TopicClient:
        options.setdefault("on_message", lambda message: self.received.append(message.body))
        options.setdefault("endpoint", FakeEndpoint(self.make_server))
        client = TopicClient(self.clock, "ws://localhost/x", get_token, **options)
        client.startService()
        return client

    def make_server(self) -> FakeServer:
        self.servers.append(FakeServer(lambda _: None, self.closed.append))
        return self.servers[-1]

    def live(self, **members: Any) -> FakeServer:
        self.servers[-1].accept()
        self.servers[-1].send_text(json.dumps({**PLACED, **members}))
        return self.servers[-1]

    def send(self, *numbers: int) -> None:
        for number in numbers:
            message = {"From": None, "Body": number, "Position": f"a.{number}"}
            self.servers[-1].send_text(json.dumps(message))


class MessageTests(ClientTestCase):
    def test_the_next_message_waits_for_the_result_of_the_function(self) -> None:
        results: list[Deferred[None]] = []

        def on_message(message: Any) -> Deferred[None]:
            self.received.append(message.body)
            results.append(Deferred())
            return results[-1]

        client = self.start(on_message=on_message)
        self.live()
        self.send(1, 2)
        self.assertEqual((self.received, client.position), ([1], "a.1"))
        results[0].callback(None)
        self.assertEqual((self.received, client.position), ([1, 2], "a.2"))

    def test_no_more_is_read_than_the_application_takes(self) -> None:
        done: Deferred[None] = Deferred()
        self.start(on_message=lambda _: done, policy=Policy(buffer=2))
        server = self.live()
        self.send(1, 2)
        self.assertEqual(server.producerState, "producing")
        self.send(3)
        self.assertEqual(server.producerState, "paused")
        done.callback(None)
        self.assertEqual(server.producerState, "producing")

    def test_a_function_that_fails_is_logged_and_the_next_message_follows(self) -> None:
        def on_message(message: Any) -> None:
            self.received.append(message.body)
            raise ValueError("a fault of the application")

        self.start(on_message=on_message)
        self.live()
        self.send(1, 2)
        self.assertEqual(self.received, [1, 2])
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 2)

    def test_functions_may_be_coroutines(self) -> None:
        async def get_token(_: str) -> str:
            return "t1"

        async def on_message(message: Any) -> None:
            self.received.append(message.body)

        async def on_gap(gap: Gap) -> None:
            self.received.append(gap)

        self.start(get_token, on_message=on_message, on_gap=on_gap, since="b.1")
        self.live(Missed=True)
        self.send(1)
        self.assertEqual(self.received, [Gap("b.1", "a.0"), 1])

    def test_many_messages_at_once_do_not_nest(self) -> None:
        self.start()
        server = self.live()
        frame = b'\x81\x16{"From":null,"Body":1}'
        server.receive(frame * 5000)
        self.assertEqual(len(self.received), 5000)


class ServiceTests(ClientTestCase):
    def test_it_is_a_service(self) -> None:
        self.assertTrue(IService.providedBy(self.start()))
        parent = MultiService()
        client = TopicClient(
            self.clock, "ws://localhost/x", lambda _: "t1", print,
            endpoint=FakeEndpoint(self.make_server),
        )  # fmt: skip
        client.setServiceParent(parent)
        self.assertEqual(client.state, "idle")
        parent.startService()
        self.assertEqual(client.state, "connecting")
        parent.stopService()
        self.assertEqual(client.state, "closed")

    def test_stopping_ends_when_the_connection_is_closed(self) -> None:
        client = self.start()
        ended = client.when_ended()
        self.live()
        stopped = client.stopService()
        self.assertEqual(self.closed, [1000])
        self.assertNoResult(stopped)
        self.assertIsNone(self.successResultOf(ended))
        self.clock.advance(CLOSE_TIMEOUT + 1)
        self.assertIsNone(self.successResultOf(stopped))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_a_client_can_be_stopped_by_each_of_its_functions(self) -> None:
        for state in ("connecting", "live", "waiting"):
            clients: list[TopicClient] = []

            def on_state(new: str, state: str = state, clients: list[Any] = clients) -> None:
                if new == state and clients:
                    clients[0].stopService()

            client = TopicClient(
                self.clock, "ws://localhost/x", lambda _: "t1", print,
                on_state=on_state, endpoint=FakeEndpoint(self.make_server),
            )  # fmt: skip
            clients.append(client)
            client.startService()
            if state != "connecting":
                self.live()
            if state == "waiting":
                self.servers[-1].drop()
            self.clock.advance(30)
            self.assertEqual(client.state, "closed", state)
            self.assertEqual(self.clock.getDelayedCalls(), [], state)

    def test_a_client_that_has_given_up_says_why(self) -> None:
        client = self.start()
        self.live().cut(1003, "Invalid message")
        failed = self.failureResultOf(client.when_ended(), Failed)
        self.assertEqual(failed.getErrorMessage(), "Invalid message (1003)")
        self.assertIsNone(self.successResultOf(client.stopService()))

    def test_an_application_without_a_token_ends_the_client(self) -> None:
        client = self.start(lambda _: fail(TokenRefused("signed out")))
        failed = self.failureResultOf(client.when_ended(), TokenRefused)
        self.assertEqual(failed.getErrorMessage(), "signed out")

    def test_an_endpoint_that_fails_is_tried_again(self) -> None:
        attempts: list[int] = []

        class Endpoint:
            def connect(self, _: Any) -> Deferred[Any]:
                attempts.append(1)
                return fail(error.ConnectionRefusedError())

        client = self.start(endpoint=Endpoint(), random=lambda: 1.0)
        self.clock.pump([0.5, 1.0, 2.0])
        self.assertEqual(len(attempts), 4)
        self.assertEqual(str(client.end), "the connection was refused")

    def test_an_endpoint_that_hangs_is_cancelled(self) -> None:
        cancelled: list[Any] = []

        class Endpoint:
            def connect(self, _: Any) -> Deferred[Any]:
                return Deferred(cancelled.append)

        client = self.start(endpoint=Endpoint())
        self.clock.advance(10)
        self.assertEqual((len(cancelled), client.state), (1, "waiting"))
        client.refresh()
        self.assertIsNone(self.successResultOf(client.stopService()))
        self.assertEqual(len(cancelled), 2)

    def test_wrong_urls(self) -> None:
        """The error comes before the service starts, and says what is wrong."""
        for url, part in (
            ("http://localhost/", "must begin with wss:// or ws://"),
            ("ws://", "must begin with wss:// or ws://"),
            ("localhost", "must begin with wss:// or ws://"),
            ("ws://localhost:99999/", "port"),
            ("ws://localhost:x/", "port"),
            ("ws://localhost/#x", "fragment"),
            ("ws://me:secret@localhost/", "user name"),
            ("ws://localhost/a b", "blank"),
            ("ws://localhost/c\u00f6l", "not in ASCII"),
            ("ws://b\u00fccher.example/", "not in ASCII"),
        ):
            with self.assertRaises(ValueError) as caught:
                TopicClient(self.clock, url, str, print)
            self.assertIn(part, str(caught.exception))
            self.assertNotIn("secret", str(caught.exception))

    def test_what_is_not_a_token_is_a_failed_call(self) -> None:
        """It is never sent: the service would end the client with ``Invalid message``."""
        for value, name in (
            (b"secret", "bytes"),
            ({"secret": 1}, "dict"),
            ({1}, "set"),
            (1, "int"),
            (None, "NoneType"),
        ):
            tokens: list[Any] = [value, "t1"]
            notes: list[str] = []
            client = self.start(lambda _, tokens=tokens: tokens.pop(0), on_note=notes.append)
            self.assertEqual(client.state, "waiting")
            self.assertEqual(notes, [f"get_token returned a {name}, not a string"])
            self.clock.advance(1)
            self.live()
            self.assertEqual(client.state, "live")
            client.stopService()
            self.clock.advance(CLOSE_TIMEOUT + 1)

    def test_functions_that_end_with_a_cancellation_of_their_own_are_called_again(self) -> None:
        """Of Twisted or of asyncio: as after another failure."""
        for cancelled in (CancelledError(), asyncio.CancelledError()):
            calls: list[str] = []

            async def get_token(
                reason: str, error: Any = cancelled, calls: list[str] = calls
            ) -> str:
                calls.append(reason)
                if len(calls) == 1:
                    raise error
                return "t1"

            async def on_gap(_: Gap, error: Any = cancelled, calls: list[str] = calls) -> None:
                calls.append("gap")
                if calls.count("gap") == 1:
                    raise error

            client = self.start(get_token, on_gap=on_gap, since="b.1")
            self.clock.advance(1)
            self.live(Missed=True)
            self.clock.advance(1)
            self.send(1)
            self.assertEqual(calls, ["first", "first", "gap", "gap"])
            self.assertEqual(self.received.pop(), 1)
            self.assertEqual(len(self.flushLoggedErrors(type(cancelled))), 1)
            client.stopService()
            self.clock.advance(CLOSE_TIMEOUT + 1)

    def log_of(self) -> list[str]:
        """The lines of the client's log, each with its level, as they come."""
        lines: list[str] = []
        self.patch(
            TopicClient,
            "_log",
            Logger(
                observer=lambda each: lines.append(f"{each['log_level'].name} {formatEvent(each)}")
            ),
        )
        return lines

    def test_each_outage_is_logged_once(self) -> None:
        lines = self.log_of()
        client = self.start()
        line = "warn ws://localhost/x: not connected: {}; trying again"
        for _ in range(2):
            self.live()
            self.servers[-1].drop()
            for _ in range(3):
                before = len(self.servers)
                while len(self.servers) == before:
                    self.clock.advance(0.5)
                self.servers[-1].drop()
            while len(self.servers) == before + 1:
                self.clock.advance(0.5)
        self.assertEqual(lines, [line.format(LOST)] * 2)
        client.stopService()
        self.clock.advance(CLOSE_TIMEOUT + 0.3)

    def test_the_first_failure_to_connect_is_logged(self) -> None:
        class Endpoint:
            def connect(self, _: Any) -> Deferred[Any]:
                return fail(error.ConnectionRefusedError())

        lines = self.log_of()
        client = self.start(endpoint=Endpoint())
        self.clock.pump([0.5] * 100)
        [line] = lines
        self.assertTrue(line.startswith("warn ws://localhost/x: not connected: "), line)
        client.stopService()

    def test_a_failure_that_nobody_waits_for_is_logged_as_an_error(self) -> None:
        def get_token(_: str) -> str:
            raise TokenRefused("no more tokens")

        lines = self.log_of()
        self.start(get_token)
        self.assertEqual(lines, ["error ws://localhost/x: the client has given up: no more tokens"])

    def test_a_failure_that_the_application_waits_for_is_not_logged(self) -> None:
        token: Deferred[str] = Deferred()
        lines = self.log_of()
        client = self.start(lambda _: token)
        ended = client.when_ended()
        token.errback(TokenRefused("no more tokens"))
        self.failureResultOf(ended, TokenRefused)
        self.assertEqual(lines, [])

    def test_what_it_says_is_logged_without_the_query(self) -> None:
        events: list[dict[str, Any]] = []
        self.patch(TopicClient, "_log", Logger(observer=events.append))
        endpoint = FakeEndpoint(self.make_server)
        client = TopicClient(
            self.clock, "ws://localhost/x?key=secret", str, print, endpoint=endpoint
        )
        client._log_note("a note")
        [event] = events
        self.assertEqual((event["url"], event["text"]), ("ws://localhost/x", "a note"))

"""The asyncio client, where the scripted servers do not reach: mostly in virtual time."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import socket
import ssl
from collections.abc import Callable, Coroutine
from typing import Any

from twisted.trial.unittest import SynchronousTestCase
from websockets.exceptions import InvalidProxy

from tests.support.fake_websockets import FakeWebSocket
from tests.support.python_client import client
from tests.support.virtual_loop import VirtualLoop

LOST = "the connection was lost"
URL = "ws://localhost/cell1/__topic/box1/col.topic.name"
GRANTED = {"Response": "AccessToken", "Result": "Success", "ExpiresIn": 3600, "Timestamp": 1}
PLACED = {**GRANTED, "Position": "a.0", "Missed": False, "Heartbeat": 60}


async def cancelled() -> None:
    """Wait for work that another has cancelled."""
    work = asyncio.get_running_loop().create_future()
    work.cancel()
    await work


class TopicTestCase(SynchronousTestCase):
    """Fixture: a loop in virtual time, and topics whose connections are fakes."""

    def setUp(self) -> None:
        self.loop = VirtualLoop()
        self.addCleanup(self.loop.close)
        self.sockets: list[FakeWebSocket] = []
        self.sent: list[str] = []
        self.records: list[logging.LogRecord] = []
        handler = logging.Handler()
        handler.emit = self.records.append  # type: ignore[method-assign]
        logger = logging.getLogger("topicsvc_client")
        self.patch(logger, "handlers", [handler])
        self.patch(logger, "propagate", False)
        logger.setLevel(logging.DEBUG)
        self.addCleanup(logger.setLevel, logging.NOTSET)

    def run_test(self, test: Coroutine[Any, Any, None]) -> None:
        self.loop.run_until_complete(test)

    def topic(self, get_token: Callable[[str], Any] = lambda _: "t1", **options: Any) -> Any:
        case = self

        class FakedTopic(client.Topic):
            async def _connect(self) -> Any:
                case.sockets.append(FakeWebSocket(case.sent.append))
                return await case.sockets[-1].open()

        return FakedTopic(URL, get_token, **options)

    async def live(self, reply: dict[str, Any] = PLACED) -> FakeWebSocket:
        """Accept the newest connection and grant its token."""
        await asyncio.sleep(0.001)
        self.sockets[-1].accept()
        await asyncio.sleep(0.001)
        self.send(reply)
        await asyncio.sleep(0.001)
        return self.sockets[-1]

    def send(self, *messages: dict[str, Any]) -> None:
        for message in messages:
            self.sockets[-1].send_text(json.dumps(message, separators=(",", ":")))

    def numbers(self, *numbers: int) -> None:
        self.send(*({"From": None, "Body": each, "Position": f"a.{each}"} for each in numbers))


class IterationTests(TopicTestCase):
    def test_no_more_is_read_than_the_application_takes(self) -> None:
        """The service then sees a slow consumer, and the client comes back behind the last one."""

        async def test() -> None:
            async with self.topic(policy=client.Policy(buffer=4)) as topic:
                await self.live()
                self.numbers(*range(1, 11))
                await asyncio.sleep(3600)
                self.assertEqual(self.sockets[0].unread, 6)
                self.assertEqual(topic.state, "live")
                taken = [(await anext(topic)).body for _ in range(10)]
                self.assertEqual(taken, list(range(1, 11)))
                self.assertEqual((topic.position, self.sockets[0].unread), ("a.10", 0))

        self.run_test(test())

    def test_an_iteration_that_is_cancelled_can_begin_anew(self) -> None:
        async def test() -> None:
            async with self.topic() as topic:
                await self.live()
                with self.assertRaises(TimeoutError):
                    async with asyncio.timeout(5):
                        await anext(topic)
                self.numbers(1)
                self.assertEqual((await anext(topic)).body, 1)

        self.run_test(test())

    def test_a_gap_whose_handling_is_cancelled_is_handled_again(self) -> None:
        calls: list[Any] = []

        async def on_gap(gap: Any) -> None:
            calls.append(gap)
            await asyncio.sleep(10)

        async def test() -> None:
            async with self.topic(since="b.1", on_gap=on_gap) as topic:
                await self.live({**PLACED, "Missed": True})
                self.numbers(1)
                with self.assertRaises(TimeoutError):
                    async with asyncio.timeout(5):
                        await anext(topic)
                self.assertEqual(topic.position, "b.1")
                self.assertEqual((await anext(topic)).body, 1)

        self.run_test(test())
        self.assertEqual(calls, [client.Gap("b.1", "a.0")] * 2)

    def test_an_on_gap_that_ends_with_a_cancellation_of_its_own_is_called_again(self) -> None:
        """As after another failure: the client has not cancelled it."""
        calls: list[Any] = []

        async def on_gap(gap: Any) -> None:
            calls.append(gap)
            if len(calls) == 1:
                raise asyncio.CancelledError
            if len(calls) == 2:
                await cancelled()

        async def test() -> None:
            async with self.topic(since="b.1", on_gap=on_gap) as topic:
                await self.live({**PLACED, "Missed": True})
                self.numbers(1)
                async with asyncio.timeout(30):
                    self.assertEqual((await anext(topic)).body, 1)

        self.run_test(test())
        self.assertEqual(calls, [client.Gap("b.1", "a.0")] * 3)
        failed = [each for each in self.records if each.getMessage() == "on_gap failed"]
        self.assertEqual(len(failed), 2)

    def test_an_on_gap_that_the_client_cancels_has_not_failed(self) -> None:
        """Whatever it does then: it is called with the new gap, and nothing is logged."""
        for error in (None, asyncio.CancelledError(), ValueError("while it is cancelled")):
            calls: list[Any] = []

            async def on_gap(gap: Any, error: Any = error, calls: list[Any] = calls) -> None:
                calls.append(gap)
                if len(calls) == 1:
                    try:
                        await asyncio.sleep(3600)
                    except asyncio.CancelledError:
                        if error is not None:
                            raise error from None

            async def test(on_gap: Any = on_gap) -> None:
                async with self.topic(since="b.1", on_gap=on_gap) as topic:
                    await self.live({**PLACED, "Missed": True})
                    taking = asyncio.create_task(anext(topic))
                    await asyncio.sleep(0.001)
                    self.send({**PLACED, "Position": "a.7", "Missed": True})
                    self.numbers(8)
                    async with asyncio.timeout(30):
                        self.assertEqual((await taking).body, 8)

            self.run_test(test())
            self.assertEqual(calls, [client.Gap("b.1", "a.0"), client.Gap("b.1", "a.7")])
        self.assertNotIn("on_gap failed", [each.getMessage() for each in self.records])

    def test_messages_that_arrived_before_the_failure_are_returned_before_it(self) -> None:
        async def test() -> None:
            async with self.topic() as topic:
                await self.live()
                self.numbers(1, 2)
                self.sockets[-1].cut(1003, "Invalid message")
                await asyncio.sleep(1)
                self.assertEqual([(await anext(topic)).body for _ in range(2)], [1, 2])
                with self.assertRaises(client.Failed) as caught:
                    await anext(topic)
                self.assertEqual(str(caught.exception), "Invalid message (1003)")
                self.assertEqual(caught.exception.end.code, 1003)

        self.run_test(test())

    def test_leaving_the_block_closes_the_connection(self) -> None:
        async def test() -> None:
            async with self.topic() as topic:
                socket = await self.live()
            self.assertEqual((topic.state, socket.closed), ("closed", [1000]))
            with self.assertRaises(StopAsyncIteration):
                await anext(topic)

        self.run_test(test())


class TokenTests(TopicTestCase):
    def test_an_application_without_a_token_ends_the_topic(self) -> None:
        def get_token(_: str) -> str:
            raise client.TokenRefused("signed out")

        async def test() -> None:
            async with self.topic(get_token) as topic:
                with self.assertRaises(client.TokenRefused) as caught:
                    await anext(topic)
                self.assertEqual(str(caught.exception), "signed out")

        self.run_test(test())

    def test_the_text_of_an_error_of_get_token_is_not_logged_as_a_warning(self) -> None:
        """It may have a secret, as those of HTTP clients have the URL."""

        def get_token(_: str) -> str:
            raise OSError("https://as.example/?client_secret=secret")

        async def test() -> None:
            async with self.topic(get_token):
                await asyncio.sleep(1)

        self.run_test(test())
        warnings = [each.getMessage() for each in self.records if each.levelno >= logging.WARNING]
        self.assertEqual(set(warnings), {"get_token failed: OSError"})

    def test_each_outage_is_a_warning_once(self) -> None:
        async def test() -> None:
            async with self.topic():
                for _ in range(2):
                    await self.live()
                    self.sockets[-1].drop()
                    for _ in range(3):
                        before = len(self.sockets)
                        while len(self.sockets) == before:
                            await asyncio.sleep(0.5)
                        self.sockets[-1].drop()
                    while len(self.sockets) == before + 1:
                        await asyncio.sleep(0.5)

        self.run_test(test())
        warnings = [each.getMessage() for each in self.records if each.levelno >= logging.WARNING]
        self.assertEqual(warnings, [f"not connected: {LOST}; trying again"] * 2)

    def test_no_record_has_the_error_of_get_token(self) -> None:
        """Also on the level debug, and in a traceback."""

        def get_token(_: str) -> str:
            raise OSError("secret")

        async def test() -> None:
            async with self.topic(get_token):
                await asyncio.sleep(1)

        self.run_test(test())
        text = "".join(logging.Formatter().format(each) for each in self.records)
        self.assertIn("get_token failed: OSError", text)
        self.assertNotIn("secret", text)

    def test_a_get_token_that_ends_with_a_cancellation_of_its_own_is_called_again(self) -> None:
        """As after another failure, not after the 30 s that a call may last."""
        calls: list[str] = []

        async def get_token(reason: str) -> str:
            calls.append(reason)
            if len(calls) == 1:
                raise asyncio.CancelledError
            if len(calls) == 2:
                await cancelled()
            return "t1"

        async def test() -> None:
            async with self.topic(get_token) as topic:
                await asyncio.sleep(3)
                await self.live()
                self.assertEqual(topic.state, "live")

        self.run_test(test())
        self.assertEqual(calls, ["first"] * 3)
        warnings = [each.getMessage() for each in self.records if each.levelno == logging.WARNING]
        self.assertEqual(set(warnings), {"get_token failed: CancelledError"})

    def test_what_is_not_a_token_is_a_failed_call(self) -> None:
        """It is never sent: the service would end the client with ``Invalid message``."""
        for value, name in (
            (b"secret", "bytes"),
            ({"secret": 1}, "dict"),
            ({1}, "set"),
            (1, "int"),
        ):
            self.records.clear()
            tokens = [value, "t1"]

            async def test(tokens: Any = tokens) -> None:
                async with self.topic(lambda _: tokens.pop(0)) as topic:
                    await asyncio.sleep(1)
                    await self.live()
                    self.assertEqual(topic.state, "live")

            self.run_test(test())
            warnings = [each.getMessage() for each in self.records if each.levelno > logging.INFO]
            self.assertEqual(warnings, [f"get_token returned a {name}, not a string"])

    def test_a_line_end_behind_the_token_is_not_sent(self) -> None:
        async def test() -> None:
            async with self.topic(lambda _: "t1\n"):
                await self.live()
            self.assertEqual([json.loads(each)["AccessToken"] for each in self.sent], ["t1"])

        self.run_test(test())

    def test_a_call_that_ignores_its_cancellation_does_not_count(self) -> None:
        """Its token comes while the next call is under way."""
        reasons: list[str] = []

        async def get_token(reason: str) -> str:
            reasons.append(reason)
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(31)
            await asyncio.sleep(10)
            return f"t{len(reasons)}"

        async def test() -> None:
            async with self.topic(get_token) as topic:
                await asyncio.sleep(45)
                self.assertEqual((reasons, topic.state), (["first"] * 2, "connecting"))
                self.assertEqual(self.sockets, [])

        self.run_test(test())

    def test_no_token_is_in_the_log(self) -> None:
        async def test() -> None:
            async with self.topic(lambda _: "secret"):
                await self.live()
                self.sockets[-1].cut(1001, "Going away")
                await asyncio.sleep(5)

        self.run_test(test())
        self.assertNotIn("secret", "".join(each.getMessage() for each in self.records))
        self.assertGreater(len(self.records), 3)


class ConnectTests(TopicTestCase):
    def test_an_attempt_that_fails_with_any_exception_is_followed_by_another(self) -> None:
        """The log has the reason, as for a proxy whose package is missing."""
        attempts: list[float] = []

        class Failing(client.Topic):
            _random = staticmethod(lambda: 0.5)

            async def _connect(self) -> Any:
                attempts.append(asyncio.get_running_loop().time())
                raise ImportError("connecting through a SOCKS proxy requires python-socks")

        async def test() -> None:
            async with Failing(URL, lambda _: "t1") as topic:
                await asyncio.sleep(1)
                self.assertEqual((len(attempts), topic.state), (3, "waiting"))

        self.run_test(test())
        warnings = [each.getMessage() for each in self.records if each.levelno == logging.WARNING]
        why = "connecting through a SOCKS proxy requires python-socks"
        self.assertEqual(warnings, [f"not connected: ImportError: {why}; trying again"])

    def test_the_url_of_a_proxy_is_not_logged(self) -> None:
        """It may have a password."""

        class Failing(client.Topic):
            async def _connect(self) -> Any:
                raise InvalidProxy("gopher://user:secret@proxy/", "scheme gopher isn't supported")

        async def test() -> None:
            async with Failing(URL, lambda _: "t1"):
                await asyncio.sleep(1)

        self.run_test(test())
        text = "".join(each.getMessage() for each in self.records)
        self.assertIn("waiting; last end: the URL of the proxy is not valid", text)
        self.assertNotIn("secret", text)


class StateTests(TopicTestCase):
    def test_an_on_state_that_fails_is_logged(self) -> None:
        def on_state(_: str) -> None:
            raise ValueError("a fault of the application")

        async def test() -> None:
            async with self.topic(on_state=on_state) as topic:
                await self.live()
                self.assertEqual(topic.state, "live")

        self.run_test(test())
        failed = [each for each in self.records if each.getMessage() == "on_state failed"]
        self.assertGreater(len(failed), 1)

    def test_wrong_urls(self) -> None:
        for url in (
            "http://localhost/",
            "ws://",
            "localhost",
            "wss://me:secret@localhost/",
            "ws://localhost:99999/",
            "ws://localhost/#x",
            "ws://localhost/a b",
        ):
            with self.assertRaises(ValueError) as caught:
                client.Topic(url, str)
            self.assertNotIn("secret", str(caught.exception))


class WebSocketsTests(SynchronousTestCase):
    """With the library's own connections, on a loopback port."""

    def meet(self, *answers: bytes, path: str = "/x", **options: Any) -> tuple[list[bytes], Any]:
        """Answer connections of a topic with these bytes; return the requests and its failure."""
        requests: list[bytes] = []

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            requests.append(await reader.readuntil(b"\r\n\r\n"))
            writer.write(answers[len(requests) - 1])
            writer.close()

        async def run() -> Any:
            server = await asyncio.start_server(serve, "127.0.0.1", 0)
            async with server:
                port = server.sockets[0].getsockname()[1]
                url = f"ws://127.0.0.1:{port}{path}"
                policy = client.Policy(min_delay=0.001)
                with self.assertRaises(client.Failed) as caught:
                    async with client.Topic(url, lambda _: "t1", policy=policy, **options) as topic:
                        await anext(topic)
                return caught.exception

        return requests, asyncio.run(run())

    def test_a_refusal_has_the_reason_of_the_service(self) -> None:
        body = b'{"code":"PR404-DV-0001","message":{"lang":"en","value":"Resource not found."}}'
        head = b"HTTP/1.1 404 Not Found\r\nContent-Length: %d\r\n\r\n" % len(body)
        _, failed = self.meet(head + body)
        self.assertEqual((str(failed), failed.end.status), ("404 Resource not found.", 404))

    def test_no_redirect_is_followed(self) -> None:
        """The token is for the server of the URL."""
        with socket.create_server(("127.0.0.1", 0)) as other:
            port = other.getsockname()[1]
            head = b"HTTP/1.1 307 X\r\nLocation: ws://127.0.0.1:%d/\r\nContent-Length: 0\r\n\r\n"
            _, failed = self.meet(head % port)
            other.setblocking(False)
            self.assertRaises(BlockingIOError, other.accept)
        self.assertEqual(failed.end.status, 307)

    def test_a_path_in_any_script_is_sent_as_encoded_utf_8(self) -> None:
        """As `send` sends it. What is encoded stays as it is."""
        requests, _ = self.meet(b"HTTP/1.1 404 X\r\n\r\n", path="/c\u00f6l%20")
        self.assertTrue(requests[0].startswith(b"GET /c%C3%B6l%20 HTTP/1.1\r\n"), requests)

    def test_a_host_that_has_no_valid_name_is_tried_again(self) -> None:
        """The codec idna raises UnicodeError for it."""
        states: list[str] = []

        async def run() -> None:
            is_waiting = asyncio.Event()

            def on_state(state: str) -> None:
                states.append(state)
                if state == "waiting":
                    is_waiting.set()

            async with client.Topic("ws://a..b/", lambda _: "t1", on_state=on_state):
                async with asyncio.timeout(60):
                    await is_waiting.wait()

        with self.assertLogs("topicsvc_client", "WARNING") as logs:
            asyncio.run(run())
        self.assertEqual(states, ["connecting", "waiting", "closed"])
        self.assertRegex(logs.output[0], "not connected: Unicode.*label")

    def test_what_is_no_websocket_server_is_tried_again(self) -> None:
        requests, _ = self.meet(b"SSH-2.0\r\n", b"", b"HTTP/1.1 403 X\r\nContent-Length: 0\r\n\r\n")
        self.assertEqual(len(requests), 3)

    def test_an_untrusted_certificate_is_not_accepted(self) -> None:
        context = ssl.create_default_context()
        topic = client.Topic("wss://localhost/", lambda _: "t1", ssl=context)
        self.assertIs(topic._ssl, context)
        topic = client.Topic("wss://localhost/", lambda _: "t1")
        self.assertEqual(topic._ssl.verify_mode, ssl.CERT_REQUIRED)
        self.assertTrue(topic._ssl.check_hostname)

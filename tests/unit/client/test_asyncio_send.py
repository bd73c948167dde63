"""Sending with the asyncio client."""

from __future__ import annotations

import asyncio
import importlib
import logging
import socket
import threading
import traceback
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from tests.support.python_client import client
from tests.support.virtual_loop import VirtualLoop

sender = importlib.import_module("topicsvc_client.sender")
URL = "http://localhost/cell1/box1/col/topic/name"
REFUSED = b'{"code":"PR401-AU-0006","message":{"lang":"en","value":"Token parse error."}}'


class RetryTests(SynchronousTestCase):
    """In virtual time, with responses that the test gives."""

    def setUp(self) -> None:
        self.loop = VirtualLoop()
        self.addCleanup(self.loop.close)
        self.reasons: list[str] = []
        self.requests: list[tuple[bytes, str]] = []

    def send(self, *responses: Any, value: Any = 1) -> float:
        """Send; return how long it took, in virtual seconds."""
        left = list(responses)

        async def at_once(post: Any) -> Any:
            url, body, token, _ = post.args
            self.assertEqual(url, URL)
            self.requests.append((body, token))
            return left.pop(0)

        self.patch(sender._threads, "run", at_once)
        began = self.loop.time()
        self.loop.run_until_complete(client.send(URL, value, self.get_token))
        return self.loop.time() - began

    def get_token(self, reason: str) -> str:
        self.reasons.append(reason)
        return f"t{len(self.reasons)}"

    def test_any_value_is_sent(self) -> None:
        for value, body in (({"a": [1]}, b'{"a": [1]}'), ("\u00e9", b'"\\u00e9"'), (None, b"null")):
            self.send(sender.Response(200), value=value)
            self.assertEqual(self.requests.pop()[0], body)

    def test_a_value_without_a_json_form_is_a_valueerror(self) -> None:
        """Nothing is asked for and nothing is sent. The text says why."""
        circular: list[Any] = []
        circular.append(circular)
        deep: list[Any] = []
        for _ in range(100000):
            deep = [deep]
        for value, why in (
            (float("nan"), "Out of range float values are not JSON compliant"),
            ({1}, "Object of type set is not JSON serializable"),
            (b"x", "Object of type bytes is not JSON serializable"),
            ({(1, 2): 3}, "keys must be str, int"),
            (circular, "Circular reference detected"),
            (10**5000, "Exceeds the limit"),
            (deep, "it is nested too deeply"),
        ):
            with self.assertRaises(ValueError) as caught:
                self.send(value=value)
            text = str(caught.exception)
            self.assertTrue(text.startswith(f"the value has no JSON form: {why}"), text)
        self.assertEqual((self.reasons, self.requests), ([], []))
        while deep:  # its deallocation must not nest
            deep = deep.pop()

    def test_a_line_end_behind_the_token_is_not_sent(self) -> None:
        """A file with a token ends so."""
        self.patch(self, "get_token", lambda reason: f" {reason}\r\n")
        self.send(sender.Response(401), sender.Response(200))
        self.assertEqual([token for _, token in self.requests], ["first", "refused"])

    def test_what_is_not_a_token_is_not_sent_and_is_in_no_error(self) -> None:
        """Neither in its text nor in that of an exception behind it."""
        for token in ("a\nsecret", "a secret", "a\u20acsecret", b"secret", ["secret"], None, "\n"):
            self.patch(self, "get_token", lambda _, token=token: token)
            with self.assertRaises(ValueError) as caught:
                self.send()
            error = caught.exception
            self.assertTrue(str(error).startswith("get_token returned "), error)
            self.assertEqual((error.__cause__, error.__context__), (None, None))
            self.assertNotIn("secret", "".join(traceback.format_exception(error)))
        self.assertEqual(self.requests, [])

    def test_a_fresh_token_that_is_not_a_token_is_a_valueerror(self) -> None:
        self.patch(self, "get_token", lambda reason: "t1" if reason == "first" else b"t2")
        with self.assertRaises(ValueError) as caught:
            self.send(sender.Response(401))
        self.assertEqual(str(caught.exception), "get_token returned a bytes, not a string")

    def test_after_429_it_is_sent_again_when_the_service_says(self) -> None:
        seconds = self.send(sender.Response(429, "10"), sender.Response(200))
        self.assertEqual((round(seconds), len(self.requests)), (10, 2))

    def test_after_429_without_a_time_it_is_an_error_at_once(self) -> None:
        for retry_after in ("", "soon", "Sun, 06 Nov 1994 08:49:37 GMT"):
            with self.assertRaises(client.SendFailed) as caught:
                self.send(sender.Response(429, retry_after))
            self.assertEqual(caught.exception.status, 429)
        self.assertEqual(len(self.requests), 3)

    def test_after_60_seconds_it_is_an_error(self) -> None:
        with self.assertRaises(client.SendFailed) as caught:
            self.send(*[sender.Response(429, "25")] * 3)
        self.assertEqual(caught.exception.status, 429)

    def test_a_refused_token_is_replaced_once(self) -> None:
        self.send(sender.Response(401, body=REFUSED), sender.Response(200))
        self.assertEqual(self.reasons, ["first", "refused"])
        self.assertEqual([token for _, token in self.requests], ["t1", "t2"])
        with self.assertRaises(client.SendFailed) as caught:
            self.send(*[sender.Response(401, body=REFUSED)] * 2)
        self.assertEqual(str(caught.exception), "401 Token parse error.")
        self.assertEqual((caught.exception.status, caught.exception.code), (401, "PR401-AU-0006"))

    def test_after_503_it_is_not_sent_again(self) -> None:
        with self.assertRaises(client.SendFailed):
            self.send(sender.Response(503, "1"))

    def test_wrong_urls(self) -> None:
        """Before a token is asked for."""
        for url in (
            "ws://localhost/",
            "file:///etc/passwd",
            "http://me:secret@localhost/",
            "http://localhost:99999/",
            "http://localhost/#x",
            "http://localhost/a b",
        ):
            with self.assertRaises(ValueError) as caught:
                self.loop.run_until_complete(client.send(url, 1, self.get_token))
            self.assertNotIn("secret", str(caught.exception))
        self.assertEqual(self.reasons, [])


class RequestTests(SynchronousTestCase):
    """On a loopback port."""

    def post(self, answer: bytes) -> tuple[bytes, Any]:
        """Answer one request with these bytes; return it, and the response or the failure."""
        requests: list[bytes] = []

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            requests.append(await reader.readuntil(b"\r\n\r\n"))
            writer.write(answer)
            writer.close()

        async def run() -> Any:
            server = await asyncio.start_server(serve, "127.0.0.1", 0)
            async with server:
                url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/x"
                try:
                    return await asyncio.to_thread(sender.post, url, b"1", "t1", None)
                except client.SendFailed as error:
                    return error

        result = asyncio.run(run())
        return requests[0], result

    def test_the_request_and_an_error(self) -> None:
        head = b"HTTP/1.1 429 X\r\nRetry-After: 7\r\nContent-Length: 2\r\n\r\n{}"
        request, response = self.post(head)
        self.assertTrue(request.startswith(b"POST /x HTTP/1.1\r\n"))
        self.assertIn(b"\r\nAuthorization: Bearer t1\r\n", request)
        self.assertIn(b"\r\nContent-Type: application/json\r\n", request)
        self.assertEqual(response, sender.Response(429, "7", b"{}"))

    def test_no_redirect_is_followed(self) -> None:
        """The token is for the server of the URL."""
        _, response = self.post(
            b"HTTP/1.1 307 X\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n"
        )
        self.assertEqual(response.status, 307)

    def test_without_a_response_the_status_is_0(self) -> None:
        for answer in (b"", b"nonsense\r\n\r\n"):
            _, error = self.post(answer)
            self.assertIsInstance(error, client.SendFailed)
            self.assertEqual(error.status, 0)
            self.assertIn("no response: ", str(error))

    def test_a_path_in_any_script_is_sent_as_encoded_utf_8(self) -> None:
        """As `Topic` sends it."""
        requests: list[bytes] = []

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            requests.append(await reader.readuntil(b"\r\n"))
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
            writer.close()

        async def run() -> None:
            server = await asyncio.start_server(serve, "127.0.0.1", 0)
            async with server:
                port = server.sockets[0].getsockname()[1]
                await client.send(f"http://127.0.0.1:{port}/c\u00f6l%20", 1, lambda _: "t1")

        asyncio.run(run())
        self.assertEqual(requests, [b"POST /c%C3%B6l%20 HTTP/1.1\r\n"])


class HangingServerTests(SynchronousTestCase):
    """A server on a loopback port accepts connections, and does not respond."""

    def setUp(self) -> None:
        self.patch(sender, "TIMEOUT", 120.0)
        self.patch(sender, "_threads", sender.Threads(sender.MAX_REQUESTS))
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=100)
        self.connections: list[socket.socket] = []
        self.addCleanup(self.end)

    def end(self) -> None:
        """Close all connections, and wait for the threads."""
        self.listener.close()
        for connection in self.connections:
            connection.close()
        for thread in self.threads():
            thread.join(60)

    def threads(self) -> list[threading.Thread]:
        return [each for each in threading.enumerate() if each.name == "topicsvc_client"]

    def begin(self, number: int = 0) -> asyncio.Task[None]:
        url = f"http://127.0.0.1:{self.listener.getsockname()[1]}/{number}"
        return asyncio.create_task(client.send(url, 1, lambda _: "t1"))

    async def accept(self, number: int) -> None:
        """Wait until the server has accepted so many connections."""
        self.listener.setblocking(False)
        async with asyncio.timeout(60):
            for _ in range(number):
                accepting = asyncio.get_running_loop().sock_accept(self.listener)
                self.connections.append((await accepting)[0])

    def test_sends_that_hang_do_not_fill_the_executor_of_the_loop(self) -> None:
        """It looks up names, also for `Topic`."""

        async def run() -> None:
            sending = [self.begin() for _ in range(sender.MAX_REQUESTS)]
            await self.accept(sender.MAX_REQUESTS)
            async with asyncio.timeout(60):
                self.assertEqual(await asyncio.to_thread(lambda: "done"), "done")
            self.assertFalse(any(each.done() for each in sending))
            for each in sending:
                each.cancel()

        asyncio.run(run())

    def test_a_cancelled_send_holds_neither_the_loop_nor_the_process(self) -> None:
        async def run() -> None:
            sending = self.begin()
            await self.accept(1)
            sending.cancel()

        asyncio.run(run())
        [thread] = self.threads()
        self.assertTrue(thread.daemon)
        self.assertTrue(thread.is_alive())

    def test_the_result_of_a_cancelled_send_is_dropped(self) -> None:
        """Also after the end of its loop: nothing is logged."""
        records: list[logging.LogRecord] = []
        handler = logging.Handler()
        handler.emit = records.append  # type: ignore[method-assign]
        logger = logging.getLogger()
        logger.addHandler(handler)
        self.addCleanup(logger.removeHandler, handler)

        async def run() -> None:
            sending = self.begin()
            await self.accept(1)
            sending.cancel()

        asyncio.run(run())
        self.end()
        self.assertEqual((self.threads(), records), ([], []))

    def test_more_sends_wait_for_those_under_way(self) -> None:
        self.patch(sender, "_threads", sender.Threads(2))

        async def run() -> None:
            sending = [self.begin(number) for number in range(4)]
            await self.accept(2)
            self.assertEqual(len(self.threads()), 2)
            sending[2].cancel()  # it waits, and is never sent
            await asyncio.wait([sending[2]])
            self.connections[0].close()
            await self.accept(1)
            receiving = asyncio.get_running_loop().sock_recv(self.connections[2], 100)
            self.assertTrue((await receiving).startswith(b"POST /3 "))
            for each in self.connections[1:]:
                each.close()
            results = await asyncio.gather(*sending, return_exceptions=True)
            kinds = [type(each) for each in results]
            failed = client.SendFailed
            self.assertEqual(kinds, [failed, failed, asyncio.CancelledError, failed])

        asyncio.run(run())
        self.assertEqual(len(self.connections), 3)

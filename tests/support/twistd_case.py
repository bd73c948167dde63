"""A test case for a whole ``twistd topicsvc`` process, real sockets and independent clients."""

from __future__ import annotations

import json
import socket
import ssl
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.support.processes import TwistdProcess
from tests.support.websocket_client import WebSocketClient
from topicsvc.validators.local import make_key, sign_token, write_key

LOOPBACK = "tcp:0:interface=127.0.0.1"
WEBSOCKET_PATH = "/__topic/box1/col.topic.name"
SEND_PATH = "/box1/col/topic/name"
TOPIC = "/cell1/box1/col/topic/name"
SUBJECT = "https://cell2.unit1.example/#me"
FAR = 2**31
"""An expiry in the far future, in seconds since the epoch."""


class TwistdTestCase(SynchronousTestCase):
    """Fixture: a token key in a directory of the test's own."""

    def setUp(self) -> None:
        self.directory = Path(self.mktemp()).absolute()
        self.directory.mkdir()
        self.key = make_key()
        self.key_file = self.directory / "key"
        write_key(self.key_file, self.key)

    def start(self, *arguments: str) -> TwistdProcess:
        """Start a service, which the end of the test stops."""
        service = TwistdProcess(*arguments, directory=self.directory)
        self.addCleanup(service.stop)
        return service

    def configure(self, *endpoints: str, more: str = "") -> Path:
        """Write a configuration file; return its path."""
        file = self.directory / "topicsvc.toml"
        file.write_text(
            f"""
            listen = {json.dumps(endpoints)}
            unit_url = "https://unit1.example/"
            [validator]
            kind = "local"
            key_file = "{self.key_file}"
            [stop]
            drain = 0
            {more}
            """
        )
        return file

    def token(self, *may: str) -> str:
        return sign_token(self.key, SUBJECT, [TOPIC], may or ("receive", "send"), FAR)

    def connect(
        self, port: int, host: str, path: str, context: ssl.SSLContext | None = None
    ) -> WebSocketClient:
        client = WebSocketClient(port, host, path, context)
        self.addCleanup(client.close)
        return client

    def present(self, client: WebSocketClient, token: str) -> None:
        """Present a token and check that it is accepted."""
        client.send(json.dumps({"AccessToken": token}))
        reply = json.loads(client.recv())
        self.assertEqual((reply["Response"], reply["Result"]), ("AccessToken", "Success"))

    def send(
        self, port: int, host: str, path: str, body: bytes, method: str = "POST",
        context: ssl.SSLContext | None = None,
    ) -> int:  # fmt: skip
        """Send a message over HTTP to the loopback address; return the status."""
        raw = socket.create_connection(("127.0.0.1", port), timeout=60)
        stream = context.wrap_socket(raw, server_hostname=host) if context else raw
        with stream:
            head = (
                f"{method} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n"
                f"Authorization: Bearer {self.token()}\r\nContent-Length: {len(body)}\r\n\r\n"
            )
            stream.sendall(head.encode() + body)
            with stream.makefile("rb") as response:
                return int(response.read().split(b" ")[1])

    def assert_delivers(
        self, port: int, host: str, prefix: str, context: ssl.SSLContext | None = None
    ) -> None:
        """A message sent by POST and a message sent by PUT reach a subscriber."""
        client = self.connect(port, host, prefix + WEBSOCKET_PATH, context)
        self.present(client, self.token("receive"))
        for method in ("POST", "PUT"):
            body = b'{"hoge": "testmessage", "by": "%s"}' % method.encode()
            status = self.send(port, host, prefix + SEND_PATH, body, method, context)
            self.assertEqual(status, 200)
            self.assertEqual(
                client.recv(),
                '{"From":"https://cell2.unit1.example/","Body":' + body.decode() + "}",
            )

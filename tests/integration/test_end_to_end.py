"""The service as its users have it: a process, real sockets, real TLS, an independent client."""

from __future__ import annotations

import json
import re
import socket
import ssl
import subprocess
import urllib.error
import urllib.request
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.integration.support.certificates import Authority
from tests.integration.support.client import Client
from tests.integration.support.process import TOPICSVC, Process, Service, environment
from topicsvc.validators.local import make_key, sign_token, write_key

LOOPBACK = "tcp:0:interface=127.0.0.1"
WEBSOCKET_PATH = "/__topic/box1/col.topic.name"
SEND_PATH = "/box1/col/topic/name"
TOPIC = "/cell1/box1/col/topic/name"
SUBJECT = "https://cell2.unit1.example/#me"
FAR = 2**31


class EndToEndTestCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.directory = Path(self.mktemp()).absolute()
        self.directory.mkdir()
        self.key = make_key()
        self.key_file = self.directory / "key"
        write_key(self.key_file, self.key)

    def start(self, *arguments: str) -> Service:
        service = Service(*arguments, directory=self.directory)
        self.addCleanup(service.stop)
        return service

    def configure(self, *endpoints: str, more: str = "") -> Path:
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
    ) -> Client:
        client = Client(port, host, path, context)
        self.addCleanup(client.close)
        return client

    def present(self, client: Client, token: str) -> None:
        client.send(json.dumps({"AccessToken": token}))
        reply = json.loads(client.recv())
        self.assertEqual((reply["Response"], reply["Result"]), ("AccessToken", "Success"))

    def send(
        self, port: int, host: str, path: str, body: bytes, method: str = "POST",
        context: ssl.SSLContext | None = None,
    ) -> int:  # fmt: skip
        """Send like any HTTP client, to the loopback address but under the unit's name."""
        raw = socket.create_connection(("127.0.0.1", port), timeout=10)
        stream = context.wrap_socket(raw, server_hostname=host) if context else raw
        with stream:
            head = (
                f"{method} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n"
                f"Authorization: Bearer {self.token()}\r\nContent-Length: {len(body)}\r\n\r\n"
            )
            stream.sendall(head.encode() + body)
            with stream.makefile("rb") as answer:
                return int(answer.read().split(b" ")[1])

    def assert_works(
        self, port: int, host: str, prefix: str, context: ssl.SSLContext | None = None
    ) -> None:
        """A message sent by POST and by PUT reaches a subscriber."""
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


class PlainTests(EndToEndTestCase):
    def test_both_forms_of_the_url_on_several_ports(self) -> None:
        service = self.start("--config", str(self.configure(LOOPBACK, LOOPBACK)))
        first, second = service.ports
        self.assert_works(first, "cell1.unit1.example", "")
        self.assert_works(second, "unit1.example", "/cell1")

    def test_a_message_sent_to_one_port_reaches_a_subscriber_of_another(self) -> None:
        service = self.start("--config", str(self.configure(LOOPBACK, LOOPBACK)))
        client = self.connect(service.ports[0], "cell1.unit1.example", WEBSOCKET_PATH)
        self.present(client, self.token())
        self.send(service.ports[1], "cell1.unit1.example", SEND_PATH, b"1")
        self.assertEqual(json.loads(client.recv())["Body"], 1)

    def test_what_a_client_is_told_when_it_does_wrong(self) -> None:
        [port] = self.start("--config", str(self.configure(LOOPBACK))).ports
        for message, reason, code in (
            ("hello", "Invalid message", 1008),
            (b"hello", "Invalid message", 1003),
            ('{"AccessToken":"nonsense"}', "Token inactive", 1008),
            (json.dumps({"AccessToken": self.token("send")}), "Token inactive", 1008),
        ):
            with self.subTest(reason=reason, code=code):
                client = self.connect(port, "cell1.unit1.example", WEBSOCKET_PATH)
                client.send(message)
                self.assertEqual(json.loads(client.recv())["Reason"], reason)
                closed = self.assertRaises(ConnectionClosed, client.recv)
                self.assertEqual((closed.rcvd.code, closed.rcvd.reason), (code, reason))
        client = self.connect(port, "cell1.unit1.example", WEBSOCKET_PATH)
        client.send("x" * 100_000)
        self.assertEqual(self.assertRaises(ConnectionClosed, client.recv).rcvd.code, 1009)
        for host, path, status in (
            ("unit2.example", WEBSOCKET_PATH, 400),
            ("cell1.unit1.example", "/__topic/box1/col,x.topic.name", 404),
        ):
            refused = self.assertRaises(InvalidStatus, self.connect, port, host, path)
            self.assertEqual(refused.response.status_code, status)

    def test_a_body_that_is_too_big_is_answered_while_it_is_still_being_sent(self) -> None:
        [port] = self.start("--config", str(self.configure(LOOPBACK))).ports
        raw = socket.create_connection(("127.0.0.1", port), timeout=10)
        self.addCleanup(raw.close)
        raw.sendall(
            f"POST {SEND_PATH} HTTP/1.1\r\nHost: cell1.unit1.example\r\n"
            "Content-Length: 20000000\r\n\r\n".encode()
        )
        try:
            for _ in range(300):
                raw.sendall(b"x" * 65536)
        except OSError:
            self.fail("the answer would have been lost")
        self.assertTrue(raw.recv(1000).startswith(b"HTTP/1.1 413 "))

    def test_stopping_says_going_away(self) -> None:
        service = self.start("--config", str(self.configure(LOOPBACK)))
        client = self.connect(service.ports[0], "cell1.unit1.example", WEBSOCKET_PATH)
        self.present(client, self.token())
        service.child.terminate()
        closed = self.assertRaises(ConnectionClosed, client.recv)
        self.assertEqual((closed.rcvd.code, closed.rcvd.reason), (1001, "Going away"))
        self.assertEqual(service.wait(), -15)

    def test_health(self) -> None:
        file = self.configure(LOOPBACK)
        service = self.start("--config", str(file), "--admin", LOOPBACK)
        admin = f"http://127.0.0.1:{service.ports[1]}"
        with urllib.request.urlopen(f"{admin}/health/live", timeout=10) as answer:
            self.assertEqual(answer.status, 200)
        with urllib.request.urlopen(f"{admin}/health/ready", timeout=10) as answer:
            self.assertTrue(json.load(answer)["ready"])


class TlsTests(EndToEndTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.authority = Authority(self.directory)

    def test_ssl_endpoint(self) -> None:
        key, cert = self.authority.issue("unit1.example", "*.unit1.example")
        endpoint = f"ssl:0:privateKey={key}:certKey={cert}:interface=127.0.0.1"
        [port] = self.start("--config", str(self.configure(endpoint))).ports
        context = self.authority.client_context()
        self.assert_works(port, "cell1.unit1.example", "", context)
        self.assert_works(port, "unit1.example", "/cell1", context)

    def test_tls_directory_endpoint_chooses_the_certificate_by_name(self) -> None:
        chosen = self.directory / "certificates"
        chosen.mkdir()
        for number, host in enumerate(("unit1.example", "cell1.unit1.example")):
            key, cert = self.authority.issue(host, name=f"host{number}")
            (chosen / f"{host}.pem").write_bytes(cert.read_bytes() + key.read_bytes())
        endpoint = f"tls:{chosen}:port=0:interface=127.0.0.1"
        [port] = self.start("--config", str(self.configure(endpoint))).ports
        context = self.authority.client_context()
        self.assert_works(port, "cell1.unit1.example", "", context)
        self.assert_works(port, "unit1.example", "/cell1", context)

    def test_a_client_that_verifies_is_not_fooled(self) -> None:
        key, cert = self.authority.issue("unit1.example")
        endpoint = f"ssl:0:privateKey={key}:certKey={cert}:interface=127.0.0.1"
        [port] = self.start("--config", str(self.configure(endpoint))).ports
        with self.assertRaises(ssl.SSLCertVerificationError):
            self.connect(
                port, "cell1.unit1.example", WEBSOCKET_PATH, self.authority.client_context()
            )
        with self.assertRaises(ssl.SSLCertVerificationError):
            self.connect(port, "unit1.example", "/", ssl.create_default_context())

    def test_a_close_code_arrives_over_tls(self) -> None:
        key, cert = self.authority.issue("*.unit1.example")
        endpoint = f"ssl:0:privateKey={key}:certKey={cert}:interface=127.0.0.1"
        [port] = self.start("--config", str(self.configure(endpoint))).ports
        for message, code in (("x" * 100_000, 1009), ("hello", 1008), (b"\xff", 1003)):
            client = self.connect(
                port, "cell1.unit1.example", WEBSOCKET_PATH, self.authority.client_context()
            )
            client.send(message)
            closed = None
            while closed is None:
                try:
                    client.recv()
                except ConnectionClosed as error:
                    closed = error
            self.assertEqual(closed.rcvd.code, code)


class DemoTests(EndToEndTestCase):
    def test_what_the_demo_prints_works_as_printed(self) -> None:
        text = self.start("--demo", "--listen", LOOPBACK).demo_text()
        token = re.search(r"one hour:\n +(\S+)\n", text)[1]
        subscribe = re.search(r"topicsvc subscribe (\S+)\n", text)[1]
        send, body = re.search(r"topicsvc send (\S+) '(.*)'\n", text).groups()
        given = {**environment(), "TOPICSVC_TOKEN": token}
        subscriber = Process([*TOPICSVC, "subscribe", subscribe, "--count", "2", "--token", token])
        self.addCleanup(subscriber.stop)
        subscriber.wait_for("subscribed for 3[56][0-9][0-9] seconds")
        subprocess.run([*TOPICSVC, "send", send, body], env=given, check=True, timeout=20)
        curl = re.search(r"curl .*\n", text)[0].replace("curl", "curl -sS", 1)
        subprocess.run(curl, shell=True, env=given, check=True, timeout=20)
        self.assertEqual(subscriber.wait(), 0)
        received = [json.loads(line) for line in subscriber.output if line.startswith('{"From"')]
        self.assertEqual(
            received,
            [
                {"From": "http://cell1.localhost/", "Body": json.loads(body)},
                {"From": "http://cell1.localhost/", "Body": {"hoge": "testmessage"}},
            ],
        )

    def test_authentication_is_on(self) -> None:
        text = self.start("--demo", "--listen", LOOPBACK).demo_text()
        url = re.search(r"topicsvc send (\S+) ", text)[1]
        refused = self.assertRaises(
            urllib.error.HTTPError, urllib.request.urlopen, url, b"1", timeout=10
        )
        self.addCleanup(refused.close)
        self.assertEqual(refused.code, 401)

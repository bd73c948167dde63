"""The service without TLS: subscribing, sending, errors, stopping and the health endpoints."""

from __future__ import annotations

import json
import socket
import urllib.request

from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.support.twistd_case import LOOPBACK, SEND_PATH, WEBSOCKET_PATH, TwistdTestCase


class PlainTests(TwistdTestCase):
    def test_both_url_forms_on_several_ports(self) -> None:
        service = self.start("--config", str(self.configure(LOOPBACK, LOOPBACK)))
        first, second = service.ports
        self.assert_delivers(first, "cell1.unit1.example", "")
        self.assert_delivers(second, "unit1.example", "/cell1")

    def test_a_message_sent_to_one_port_reaches_a_subscriber_of_another(self) -> None:
        service = self.start("--config", str(self.configure(LOOPBACK, LOOPBACK)))
        client = self.connect(service.ports[0], "cell1.unit1.example", WEBSOCKET_PATH)
        self.present(client, self.token())
        self.send(service.ports[1], "cell1.unit1.example", SEND_PATH, b"1")
        self.assertEqual(json.loads(client.recv())["Body"], 1)

    def test_errors_have_a_reason_and_a_close_code(self) -> None:
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

    def test_a_body_over_the_limit_gets_413_while_it_is_still_being_sent(self) -> None:
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
            self.fail("the client cannot read the response")
        self.assertTrue(raw.recv(1000).startswith(b"HTTP/1.1 413 "))

    def test_stopping_closes_sessions_with_going_away(self) -> None:
        service = self.start("--config", str(self.configure(LOOPBACK)))
        client = self.connect(service.ports[0], "cell1.unit1.example", WEBSOCKET_PATH)
        self.present(client, self.token())
        service.child.terminate()
        closed = self.assertRaises(ConnectionClosed, client.recv)
        self.assertEqual((closed.rcvd.code, closed.rcvd.reason), (1001, "Going away"))
        self.assertEqual(service.wait(), -15)

    def test_health_endpoints(self) -> None:
        file = self.configure(LOOPBACK)
        service = self.start("--config", str(file), "--admin", LOOPBACK)
        admin = f"http://127.0.0.1:{service.ports[1]}"
        with urllib.request.urlopen(f"{admin}/health/live", timeout=10) as response:
            self.assertEqual(response.status, 200)
        with urllib.request.urlopen(f"{admin}/health/ready", timeout=10) as response:
            self.assertTrue(json.load(response)["ready"])

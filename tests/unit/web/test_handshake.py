"""The WebSocket opening handshake."""

from __future__ import annotations

from tests.support.harness import HANDSHAKE, HOST, TOPIC, WEBSOCKET_PATH, HttpTestCase


class HandshakeTests(HttpTestCase):
    def test_the_rfc_s_sample(self) -> None:
        client = self.client()
        self.assertEqual(client.upgrade(), 101)
        self.assertEqual(
            client.headers,
            {
                "upgrade": ["WebSocket"],
                "connection": ["Upgrade"],
                "sec-websocket-accept": ["s3pPLMBiTxaQ9kYGzzhZRbK+xOo="],
            },
        )

    def test_the_cell_may_be_in_the_host_or_in_the_path(self) -> None:
        for host, path in (
            (HOST, WEBSOCKET_PATH),
            ("unit1.example:443", "/cell1" + WEBSOCKET_PATH),
        ):
            client = self.connect(path, host)
            client.present("a-token")
            self.assertEqual(self.validator.last.topic, TOPIC)

    def test_a_query_is_ignored(self) -> None:
        client = self.connect(WEBSOCKET_PATH + "?access_token=secret&AccessToken=x")
        client.assert_nothing()
        self.assertEqual(self.validator.checks, [])

    def test_no_extension_and_no_subprotocol_is_negotiated(self) -> None:
        client = self.client()
        offers = {
            "Sec-WebSocket-Extensions": "permessage-deflate; client_max_window_bits, x-webkit",
            "Sec-WebSocket-Protocol": "chat, superchat",
        }
        client.request("GET", WEBSOCKET_PATH, {**HANDSHAKE, **offers})
        self.assertEqual(client.status, 101)
        self.assertEqual(len(client.headers), 3)

    def test_frames_in_the_same_packet_as_the_request_are_read(self) -> None:
        client = self.client()
        lines = [f"GET {WEBSOCKET_PATH} HTTP/1.1", f"Host: {HOST}"]
        lines += [f"{name}: {value}" for name, value in HANDSHAKE.items()]
        client.send_raw("\r\n".join([*lines, "", ""]).encode() + b"\x89\x80\0\0\0\0")
        client.read_answer()
        self.assertEqual((client.status, client.frames()), (101, [(10, b"")]))

    def test_header_names_and_values_are_case_insensitive(self) -> None:
        client = self.client()
        client.request(
            "GET",
            WEBSOCKET_PATH,
            {
                "UPGRADE": "h2c, WebSocket",
                "connection": "keep-alive, UPGRADE",
                "sec-websocket-version": "13",
                "SEC-WEBSOCKET-KEY": HANDSHAKE["Sec-WebSocket-Key"],
            },
        )
        self.assertEqual(client.status, 101)

    def test_names_outside_the_grammar_get_404(self) -> None:
        for path in ("/__topic/box1/col.topics.name", "/__topic/box1/col,x.topic.name",
                     "/__topic/box1/%2e%2e.topic.name", "/__topic/box1/col.topic.name/x",
                     "/__topic", "/__topic/", "/__topic/b"):  # fmt: skip
            with self.subTest(path=path):
                self.assertEqual(self.client().upgrade(path), 404)

    def test_hosts_of_another_unit_get_400(self) -> None:
        for host in ("unit2.example", "a.b.unit1.example", "unit1.example,x"):
            with self.subTest(host=host):
                self.assertEqual(self.client().upgrade(host=host), 400)

    def test_invalid_handshake_headers(self) -> None:
        def change(**changes: str) -> dict[str, str]:
            names = {name.replace("-", "_").lower(): name for name in HANDSHAKE}
            return {**HANDSHAKE, **{names[name]: value for name, value in changes.items()}}

        table = [
            (change(upgrade="h2c"), 426),
            (change(sec_websocket_version="8"), 426),
            (change(sec_websocket_version="13, 8"), 426),
            (change(connection="close"), 400),
            (change(sec_websocket_key="short=="), 400),
            (change(sec_websocket_key="dGhlIHNhbXBsZSBub25jZQ="), 400),
            (change(sec_websocket_key="dGhlIHNhbXBsZSBub25jZQ==x"), 400),
        ]
        for headers, status in table:
            with self.subTest(headers=headers):
                client = self.client()
                client.request("GET", WEBSOCKET_PATH, headers)
                self.assertEqual(client.status, status)
                if status == 426:
                    self.assertEqual(client.headers["sec-websocket-version"], ["13"])

    def test_other_methods_bodies_and_http_versions(self) -> None:
        client = self.client()
        client.request("POST", WEBSOCKET_PATH, HANDSHAKE)
        self.assertEqual((client.status, client.headers["allow"]), (405, ["GET"]))
        client = self.client()
        client.request("GET", WEBSOCKET_PATH, HANDSHAKE, b"body")
        self.assertEqual(client.status, 400)
        client = self.client()
        client.request("GET", WEBSOCKET_PATH, HANDSHAKE, version="HTTP/1.0")
        self.assertEqual(client.status, 400)
        client = self.client()
        twice = [*HANDSHAKE.items(), ("Sec-WebSocket-Key", HANDSHAKE["Sec-WebSocket-Key"])]
        client.request("GET", WEBSOCKET_PATH, twice)
        self.assertEqual(client.status, 400)

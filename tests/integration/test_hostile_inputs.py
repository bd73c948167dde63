"""Each hostile input of an untrusted client, sent to one service once, and what its log has.

The inputs are the corpus of requests, TLS handshakes, headers of the PROXY protocol, frames and
tokens. Each token and each query string has a marker, which must not be in the log.
"""

from __future__ import annotations

import base64
import contextlib
import json
import signal
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path

from tests.integration.support.broker_cases import figure
from tests.support.certificates import Authority
from tests.support.harness import HOST, SEND_PATH, WEBSOCKET_PATH
from tests.support.processes import TwistdProcess
from tests.support.raw_client import (
    BINARY,
    CLOSE,
    PING,
    PONG,
    TEXT,
    close,
    frame,
    handshake,
)
from tests.support.request_corpus import ROWS
from tests.support.twistd_case import FAR, SUBJECT, TOPIC, TwistdTestCase
from topicsvc.validators.local import make_key, sign_token

AT_ONCE = 16
"""Connections that are open at a time."""

READ_TIMEOUT = 0.3
"""Seconds without a byte after which a connection is closed."""

CONNECT_TIMEOUT = 60.0

MARKER = "~S3~"
"""Is in each token and query string. An identifier of a token cannot have it."""

ENCODED = base64.b64encode(f"user:{MARKER}".encode()).decode()

MAX_LOG = 60_000
"""Bytes of the whole log: 10 lines a second about connections without a valid token, and one
line for each kind of problem."""

LEAST_INPUTS = 900

Input = Callable[[socket.socket], None]
"""Uses a connected socket; OSError means that the service has closed it."""


def read(stream: socket.socket) -> bytes:
    """Read until the end of the stream, or until no byte arrives for a short time."""
    stream.settimeout(READ_TIMEOUT)
    data = b""
    try:
        while part := stream.recv(65536):
            data += part
    except OSError:
        return data
    return data


def sends(data: bytes) -> Input:
    """An input of plain bytes."""

    def use(stream: socket.socket) -> None:
        stream.sendall(data)
        read(stream)

    return use


def shakes_hands(
    server_name: str | None, then: bytes = b"", alpn: tuple[str, ...] = (), most: str = ""
) -> Input:
    """A TLS handshake, and the bytes behind it."""

    def use(stream: socket.socket) -> None:
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        if alpn:
            context.set_alpn_protocols(list(alpn))
        if most:
            context.maximum_version = ssl.TLSVersion[most]
        with context.wrap_socket(stream, server_hostname=server_name) as encrypted:
            encrypted.sendall(then)
            read(encrypted)

    return use


def client_hello(name: bytes) -> bytes:
    """The first record of a handshake, with any bytes as the server name."""
    placeholder = "".join("." if at % 30 == 29 else "x" for at in range(len(name)))
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = ssl.create_default_context()
    with contextlib.suppress(ssl.SSLWantReadError):
        context.wrap_bio(incoming, outgoing, server_hostname=placeholder).do_handshake()
    return outgoing.read().replace(placeholder.encode(), name)


def get(target: str, *headers: str, method: str = "GET", host: str = HOST) -> bytes:
    lines = [f"{method} {target} HTTP/1.1", f"Host: {host}", *headers]
    return "\r\n".join([*lines, "", ""]).encode("utf-8", "surrogateescape")


def rows() -> Iterator[bytes]:
    """The corpus, with the marker in each token."""
    for row in ROWS:
        yield row.data.replace(b"good", MARKER.encode()).replace(b"smuggled", MARKER.encode() * 2)


def requests() -> Iterator[bytes]:
    """Requests with tokens in the wrong place, of the wrong form and of great length."""
    query = f"{SEND_PATH}?access_token={MARKER}"
    for method in ("HEAD", "GET", "POST", "PUT", "DELETE", "OPTIONS", "TRACE", "PROPFIND", "X"):
        yield get(query, "Content-Length: 0", method=method)
        yield get(f"/nowhere?access_token={MARKER}", "Content-Length: 0", method=method)
        yield get(f"{WEBSOCKET_PATH}?access_token={MARKER}", "Content-Length: 0", method=method)
    yield get(f"http://user:{MARKER}@{HOST}{SEND_PATH}", method="POST")
    yield get(SEND_PATH, method="POST", host=f"user:{MARKER}@{HOST}")
    yield get(f"/{MARKER}?{MARKER}", host="")
    schemes = [
        f"Bearer {MARKER}",
        f"Bearer {MARKER * 1000}",
        f"Bearer {MARKER * 3000}",
        f"Bearer {MARKER * 20000}",
        f"Bearer \t {MARKER} ",
        f"Bearer {MARKER} {MARKER}",
        f"Bearer {MARKER}\udcff\udcfe",
        f"Bearer ü{MARKER}",
        f"Bearer {MARKER}\x00",
        f"Bearer {MARKER}\r\nAuthorization: Bearer {MARKER}",
        f"bearer{MARKER}",
        f"Basic {ENCODED}",
        f"Digest username={MARKER}",
        MARKER,
    ]
    for scheme in schemes:
        yield get(SEND_PATH, f"Authorization: {scheme}", "Content-Length: 1", method="POST") + b"1"
    for body in (f"access_token={MARKER}", f'{{"access_token":"{MARKER}"', f"--{MARKER}\r\n"):
        length = f"Content-Length: {len(body)}"
        form = "Content-Type: application/x-www-form-urlencoded"
        yield get(SEND_PATH, length, form, method="POST") + body.encode()


def upgrades() -> Iterator[bytes]:
    """Opening handshakes that are refused, or that carry a token in the wrong place."""
    yield handshake(f"{WEBSOCKET_PATH}?access_token={MARKER}", HOST)
    yield handshake(f"{WEBSOCKET_PATH}?{MARKER * 5000}", HOST)
    yield handshake("/__topic/box1/" + ".".join("abcdefghijklmnopqrstuvw"), HOST)
    yield handshake("/__topic/box1/%zz", HOST)
    yield handshake("/__topic/%00/col", HOST)
    yield handshake("/__topic/box1/%F0%9F%98%80", HOST)
    yield handshake(WEBSOCKET_PATH, "other.example")
    for header in (
        f"Authorization: Bearer {MARKER}",
        f"Authorization: Basic {ENCODED}",
        f"Cookie: p_cookie={MARKER}",
        f"Sec-WebSocket-Protocol: access_token, {MARKER}",
        f"Sec-WebSocket-Protocol: ,,{MARKER}",
        "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits=999",
        "Sec-WebSocket-Extensions: ;;;=",
        "Sec-WebSocket-Version: 14",
        "Sec-WebSocket-Key: x",
        "Origin: null",
        "Origin: \x7fé",
        "Origin: https://[::1",
        "X-Forwarded-For: \x01, ::, 999.1.1.1",
        'Forwarded: for="_x, by=;;',
    ):
        yield handshake(WEBSOCKET_PATH, HOST, header)


def frames() -> Iterator[bytes]:
    """What a client sends after a good opening handshake."""
    text = MARKER.encode()
    yield b""
    yield text
    for opcode in range(16):
        yield frame(opcode, text)
        yield frame(opcode, text, masked=False)
        yield frame(opcode, text, fin=False)
    for rsv in range(1, 8):
        yield frame(TEXT, text, rsv=rsv)
    for control in (CLOSE, PING, PONG):
        yield frame(control, text * 40)
    yield frame(TEXT, text, width=8)
    yield frame(TEXT, b"", width=8, announced=2**63)
    yield frame(TEXT, b"", width=8, announced=2**40)
    yield frame(TEXT, text * 100_000)
    yield frame(TEXT, b"\xff\xfe" + text)
    yield frame(TEXT, text, fin=False) + frame(TEXT, text)
    for code in (0, 999, 1004, 1005, 1006, 1015, 2999, 5000, 65535):
        yield close(code, text)
    yield close(1000, b"\xff" + text)
    yield frame(CLOSE, b"x")


def tokens() -> Iterator[object]:
    """Contents of the first message of a client; a str is sent as it is."""
    yield from (MARKER, f"{{{MARKER}", "", "null", "[]", "NaN", "\ufeff{}", "[" * 100_000)
    yield f'{{"AccessToken":"{MARKER}","AccessToken":"{MARKER}"}}'
    yield f'{{"AccessToken":"{MARKER}"}}{MARKER}'
    yield f'{{"{MARKER}":"{MARKER}"}}'
    yield '{"AccessToken":' + "9" * 5000 + "}"
    yield '{"AccessToken":"' + MARKER + '\\ud800"}'
    for token in (
        MARKER, MARKER * 1000, MARKER * 4000, "", None, 1, 1.5e300, True, [MARKER], {"a": MARKER},
        f" {MARKER}\n", f"{MARKER}\0", f"{MARKER}\u2028\u202e", f"é{MARKER}", f"{MARKER}\r\nx: y",
        f"{MARKER}.{MARKER}.{MARKER}", f"eyJhbGciOiJub25lIn0.{MARKER}.", f"{{token:{MARKER}}}",
        f"%s%n{MARKER}", f"topicsvc.{MARKER}",
    ):  # fmt: skip
        yield {"AccessToken": token}
    yield {"Ping": MARKER}
    yield {"AccessToken": MARKER, "Ping": 1}


def proxy_headers() -> Iterator[bytes]:
    """Headers of the PROXY protocol that are wrong, and none."""
    signature = b"\r\n\r\n\0\r\nQUIT\n"
    request = get(f"/?access_token={MARKER}")
    yield b""
    yield request
    yield b"PROXY " + MARKER.encode() * 200
    for line in (
        b"PROXY UNKNOWN", b"PROXY TCP4", b"PROXY TCP4 1.2.3.4 5.6.7.8 99999 1",
        b"PROXY TCP4 ::1 ::1 1 1", b"PROXY TCP6 1.2.3.4 ::1 1 1", b"PROXY TCP4 \xff\xfe x 1 1",
        b"PROXY TCP4 1.2.3.4 5.6.7.8 01 1", b"PROXY TCP5 1.2.3.4 5.6.7.8 1 1", b"proxy TCP4",
    ):  # fmt: skip
        yield line + b"\r\n" + request
        yield line + b"\n" + request
    for command in (b"\x20", b"\x21", b"\x22", b"\x31", b"\xff"):
        for family in (b"\x00", b"\x11", b"\x12", b"\x21", b"\x31", b"\xff"):
            for length in (b"\0\0", b"\0\x0c", b"\0\x24", b"\xff\xff"):
                yield signature + command + family + length + b"\xff" * 36 + request


def records() -> Iterator[bytes]:
    """Bytes at a port with TLS that are no handshake, and a first record that is wrong."""
    yield b""
    yield get(f"/?access_token={MARKER}")
    yield get(SEND_PATH, f"Authorization: Bearer {MARKER}", method="POST")
    yield handshake(f"{WEBSOCKET_PATH}?access_token={MARKER}", HOST)
    yield b"\x80\x2e\x01\x00\x02"  # SSL 2
    yield b"\x16\x03\x01\xff\xff" + b"\xff" * 100
    yield b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00"
    yield b"\x15\x03\x03\x00\x02\x02\x28"
    yield b"\x17\x03\x03\x00\x05" + b"12345"
    yield b"PROXY TCP4 1.2.3.4 5.6.7.8 1 1\r\n"
    yield b"\0" * 1000
    for name in (
        b"\xff\xfe.unit1.example", b"a\0b.unit1.example", b"\r\nlog line.example",
        b"xn--\xc3\xa9.example", b"..unit1.example", b"*.unit1.example", b"[::1]", b" " * 20,
        b"%s%n{x}.unit1.example", b"x" * 250,
    ):  # fmt: skip
        hello = client_hello(name)
        yield hello
        yield hello[: len(hello) // 2]


class HostileInputTests(TwistdTestCase):
    def test_the_log_of_all_hostile_inputs_has_no_traceback_and_no_token(self) -> None:
        """The service runs on, and the size of the log is below a bound and is reported."""
        service, context = self.serve()
        began = time.monotonic()
        inputs = self.inputs(service)
        self.assertGreater(len(inputs), LEAST_INPUTS)
        self.assertGreater(self.throw(inputs), LEAST_INPUTS)
        figure("all hostile inputs", time.monotonic() - began)
        # The service still works, at each port that takes plain connections or TLS.
        plain, single, by_name, _ = service.ports
        for port, settings in ((plain, None), (single, context), (by_name, context)):
            self.assertEqual(self.send(port, HOST, SEND_PATH, b"1", context=settings), 200)
        self.assertIsNone(service.child.poll(), service.text)
        self.assertEqual(service.stop(), -signal.SIGTERM, service.text)
        self.assert_harmless(service.text, len(inputs))

    def serve(self) -> tuple[TwistdProcess, ssl.SSLContext]:
        authority = Authority(self.directory)
        key, certificate = authority.issue(HOST)
        certificates = self.directory / "certificates"
        certificates.mkdir()
        (certificates / f"{HOST}.pem").write_bytes(certificate.read_bytes() + key.read_bytes())
        file: Path = self.configure(
            "tcp:0:interface=127.0.0.1",
            f"ssl:0:privateKey={key}:certKey={certificate}:interface=127.0.0.1",
            f"tls:{certificates}:port=0:interface=127.0.0.1",
            "haproxy:tcp:0:interface=127.0.0.1",
        )
        service = self.start("--config", str(file))
        self.assertEqual(len(service.ports), 4, service.text)
        return service, authority.client_context()

    def inputs(self, service: TwistdProcess) -> list[tuple[int, Input]]:
        """Each input with the port that it is sent to."""
        plain, single, by_name, proxied = service.ports
        opening = handshake(WEBSOCKET_PATH, HOST)
        signed = [
            sign_token(make_key(), SUBJECT, [TOPIC], ["receive", "send"], FAR),
            sign_token(self.key, SUBJECT, [TOPIC], ["receive", "send"], 1) + MARKER,
            sign_token(self.key, MARKER, ["/cell2/*"], ["receive"], 1),
        ]
        texts = [each if isinstance(each, str) else json.dumps(each) for each in tokens()]
        texts += [json.dumps({"AccessToken": token}) for token in signed]
        self.secrets = [MARKER, ENCODED, *signed]
        at_plain = [
            *rows(), *requests(), *upgrades(),
            *(opening + each for each in frames()),
            *(opening + frame(TEXT, each.encode()) for each in texts),
            *(opening + frame(BINARY, each.encode()) for each in texts),
            *(get(SEND_PATH, f"Authorization: Bearer {each}", "Content-Length: 1", method="POST")
              + b"1" for each in signed),
        ]  # fmt: skip
        thrown = [(plain, sends(each)) for each in at_plain]
        thrown += [(proxied, sends(each)) for each in proxy_headers()]
        request = get(f"/?access_token={MARKER}")
        for port in (single, by_name):
            thrown += [(port, sends(each)) for each in records()]
            for name in (None, "127.0.0.1", "unknown.example", "CELL1.Unit1.Example", HOST):
                for alpn in ((), ("h2",), ("h2", "http/1.1"), ("xyz",)):
                    thrown.append((port, shakes_hands(name, request, alpn)))
                thrown.append((port, shakes_hands(name, opening + frame(TEXT, texts[0].encode()))))
                thrown.append((port, shakes_hands(name, request, most="TLSv1_2")))
        return thrown

    def throw(self, inputs: list[tuple[int, Input]]) -> int:
        """Use each input once, a few at a time; return how many connections were accepted."""
        sources = count()

        def use(thrown: tuple[int, Input]) -> bool:
            port, act = thrown
            # Many addresses, so that the limits of one address refuse none of the inputs.
            source = f"127.0.{1 + next(sources) % 200}.1"
            stream = socket.create_connection(("127.0.0.1", port), CONNECT_TIMEOUT, (source, 0))
            with stream:
                try:
                    act(stream)
                except OSError:
                    # The service has refused the rest of the input, or the handshake.
                    return True
            return True

        with ThreadPoolExecutor(AT_ONCE) as threads:
            return sum(threads.map(use, inputs))

    def assert_harmless(self, log: str, thrown: int) -> None:
        figure("hostile inputs", thrown, "inputs")
        figure("log after all hostile inputs", len(log.encode()), "bytes")
        figure("log after all hostile inputs", log.count("\n"), "lines")
        # The log did note them.
        self.assertRegex(log, r"ends after .* s, 0 messages, 0 bytes: ")
        self.assertRegex(log, r"[1-9]\d* more connections ended within .* without a valid token")
        self.assertRegex(log, r"a send of 127\.0\.\d+\.1:\d+ to .* is refused: ")
        for word in ("Traceback", "Unhandled", "[critical]", "internal error"):
            self.assertNotIn(word, log)
        for secret in self.secrets:
            self.assertNotIn(secret, log)
        self.assertLess(len(log.encode()), MAX_LOG)

"""A process with clients that end in 18 ways; half of them do not close their connection.

``python -m tests.integration.support.mixed_clients`` reads `ClientSettings` as JSON from its
standard input. It writes as JSON how many clients ended in each way. It fails if a client does
not get the expected replies.
"""

from __future__ import annotations

import json
import random
import ssl
import sys
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from tests.support.raw_client import CLOSE, PING, PONG, TEXT, RawClient, close, frame
from tests.support.raw_client import handshake as handshake_bytes

AT_ONCE = 25


@dataclass
class ClientSettings:
    """What the process does.

    Attributes:
        port: port of the service.
        ca_file: the authority that clients trust, for TLS; empty: no TLS.
        host: host name of the cell.
        websocket_path: path of a topic.
        send_path: path for sending to the same topic.
        token: a valid token.
        short_token: a token that expires at `short_until`.
        short_until: seconds since the epoch.
        count: number of clients.
    """

    port: int
    ca_file: str
    host: str
    websocket_path: str
    send_path: str
    token: str
    short_token: str
    short_until: float
    count: int


class Clients:
    """One method for each way in which a client ends."""

    def __init__(self, settings: ClientSettings) -> None:
        self.settings = settings
        self.context = None
        if settings.ca_file:
            self.context = ssl.create_default_context(cafile=settings.ca_file)

    def connect(self) -> RawClient:
        return RawClient(self.settings.port, self.context, self.settings.host)

    def upgraded(self) -> RawClient:
        client = self.connect()
        assert client.upgrade(self.settings.websocket_path, self.settings.host) == 101
        return client

    def active(self) -> RawClient:
        client = self.upgraded()
        client.write(token_request(self.settings.token))
        expect(client, b'"Success"')
        return client

    def request(self, client: RawClient, body: bytes, length: int | None = None) -> None:
        client.write(
            f"POST {self.settings.send_path} HTTP/1.1\r\nHost: {self.settings.host}\r\n"
            f"Authorization: Bearer {self.settings.token}\r\n"
            f"Content-Length: {len(body) if length is None else length}\r\n\r\n".encode()
            + body
        )

    # These clients end in order.

    def close_session(self) -> None:
        client = self.active()
        client.write(close(1000))
        assert client.read_to_end().code == 1000
        client.close()

    def renew_and_close_session(self) -> None:
        client = self.active()
        client.write(token_request(self.settings.token) + frame(PING, b"hello"))
        expect(client, b'"Success"')
        expect(client, b"hello", PONG)
        client.write(close(1001))
        assert client.read_to_end().code == 1001
        client.close()

    def use_invalid_token(self) -> None:
        client = self.upgraded()
        client.write(token_request("nonsense"))
        expect(client, b"Token inactive")
        assert client.read_to_end().code == 1008
        client.close()

    def let_token_expire(self) -> None:
        client = self.upgraded()
        client.write(token_request(self.settings.short_token))
        reply = client.read_frame()
        if reply is not None and b'"Success"' in reply[1]:
            time.sleep(max(0, self.settings.short_until - time.time()) + 0.05)
            client.write(token_request(self.settings.token))
            expect(client, b"Session expired")
        assert client.read_to_end().code == 1008
        client.close()

    def break_protocol(self) -> None:
        client = self.active()
        client.write(frame(TEXT, b"x", masked=False))
        assert client.read_to_end().code == 1002
        client.close()

    def half_close(self) -> None:
        client = self.active()
        if self.context is None:
            client.socket.shutdown(1)
            client.read_to_end()
        client.close()

    def send_messages(self) -> None:
        client = self.connect()
        for _ in range(2):
            self.request(client, b'"sent"')
            assert client.read_head()[0] == 200
        client.close()

    def send_too_much(self) -> None:
        client = self.connect()
        self.request(client, b"", 2**30)
        assert client.read_head()[0] == 413
        client.close()

    # These clients reset their connection.

    def reset_after_connecting(self) -> None:
        self.connect().reset()

    def reset_in_request_head(self) -> None:
        client = self.connect()
        client.write(handshake_bytes(self.settings.websocket_path, self.settings.host)[:50])
        client.reset()

    def reset_in_first_bytes(self) -> None:
        client = RawClient(self.settings.port)
        client.write(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" if self.context else b"G")
        client.reset()

    def reset_without_token(self) -> None:
        self.upgraded().reset()

    def reset_in_token(self) -> None:
        client = self.upgraded()
        client.write(token_request(self.settings.token)[:20])
        client.reset()

    def reset_before_validation(self) -> None:
        client = self.upgraded()
        client.write(token_request(self.settings.token))
        client.reset()

    def reset_before_rejection(self) -> None:
        client = self.upgraded()
        client.write(token_request("nonsense"))
        client.reset()

    def reset_active_session(self) -> None:
        self.active().reset()

    def reset_in_request_body(self) -> None:
        client = self.connect()
        self.request(client, b'"half', 1000)
        client.reset()

    def reset_after_close_frame(self) -> None:
        client = self.active()
        client.write(close(1000))
        client.reset()


def token_request(token: str) -> bytes:
    return frame(TEXT, json.dumps({"AccessToken": token}).encode())


def expect(client: RawClient, piece: bytes, opcode: int = TEXT) -> None:
    """Read until a frame contains `piece`; all frames before it must be data messages."""
    while (received := client.read_frame()) is not None:
        if received[0] == opcode and piece in received[1]:
            return
        assert received[1].startswith(b'{"From"'), received
        assert received[0] != CLOSE, received
    raise AssertionError(f"the stream ended before {piece!r}")


def ways(clients: Clients) -> list[Callable[[], None]]:
    """All ways, so often that half of them reset the connection."""
    in_order = [
        clients.close_session,
        clients.renew_and_close_session,
        clients.use_invalid_token,
        clients.let_token_expire,
        clients.break_protocol,
        clients.half_close,
        clients.send_messages,
        clients.send_too_much,
    ]
    resets = [
        clients.reset_after_connecting,
        clients.reset_in_request_head,
        clients.reset_in_first_bytes,
        clients.reset_without_token,
        clients.reset_in_token,
        clients.reset_before_validation,
        clients.reset_before_rejection,
        clients.reset_active_session,
        clients.reset_in_request_body,
        clients.reset_after_close_frame,
    ]
    return [*in_order * len(resets), *resets * len(in_order)]


def main() -> None:
    settings = ClientSettings(**json.load(sys.stdin))
    available = ways(Clients(settings))
    chosen = [available[at % len(available)] for at in range(settings.count)]
    random.Random(settings.count).shuffle(chosen)
    counts: Counter[str] = Counter()
    with ThreadPoolExecutor(AT_ONCE) as threads:
        for way, _ in zip(chosen, threads.map(lambda way: way(), chosen), strict=True):
            counts[way.__name__] += 1
    json.dump(counts, sys.stdout)


if __name__ == "__main__":
    main()

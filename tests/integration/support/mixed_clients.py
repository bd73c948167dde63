"""A process of clients with mixed fates: half of them end as they should, half just go.

``python -m tests.integration.support.mixed_clients`` reads what to do from its standard input,
as JSON, and writes how often each fate was met. Whoever does not see what they should ends it.
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
class Orders:
    """What the process is told.

    Attributes:
        port: of the service.
        ca_file: over TLS, trusting this; empty: plain.
        host: the cell's.
        websocket_path: of a topic.
        send_path: of the same.
        token: a good one.
        short_token: one that runs out at `short_until`, seconds since the epoch.
        short_until: see above.
        count: of sessions.
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

    def __post_init__(self) -> None:
        self.context = None
        if self.ca_file:
            self.context = ssl.create_default_context(cafile=self.ca_file)

    # What a client does.

    def connect(self) -> RawClient:
        return RawClient(self.port, self.context, self.host)

    def upgraded(self) -> RawClient:
        client = self.connect()
        assert client.upgrade(self.websocket_path, self.host) == 101
        return client

    def active(self) -> RawClient:
        client = self.upgraded()
        client.write(present(self.token))
        expect(client, b'"Success"')
        return client

    def request(self, client: RawClient, body: bytes, length: int | None = None) -> None:
        client.write(
            f"POST {self.send_path} HTTP/1.1\r\nHost: {self.host}\r\n"
            f"Authorization: Bearer {self.token}\r\n"
            f"Content-Length: {len(body) if length is None else length}\r\n\r\n".encode()
            + body
        )

    # Fates that come to an end.

    def leaves(self) -> None:
        client = self.active()
        client.write(close(1000))
        assert client.read_to_end().code == 1000
        client.close()

    def renews_and_leaves(self) -> None:
        client = self.active()
        client.write(present(self.token) + frame(PING, b"hello"))
        expect(client, b'"Success"')
        expect(client, b"hello", PONG)
        client.write(close(1001))
        assert client.read_to_end().code == 1001
        client.close()

    def is_refused(self) -> None:
        client = self.upgraded()
        client.write(present("nonsense"))
        expect(client, b"Token inactive")
        assert client.read_to_end().code == 1008
        client.close()

    def runs_out(self) -> None:
        client = self.upgraded()
        client.write(present(self.short_token))
        told = client.read_frame()
        if told is not None and b'"Success"' in told[1]:
            time.sleep(max(0, self.short_until - time.time()) + 0.05)
            client.write(present(self.token))
            expect(client, b"Session expired")
        assert client.read_to_end().code == 1008
        client.close()

    def breaks_the_rules(self) -> None:
        client = self.active()
        client.write(frame(TEXT, b"x", masked=False))
        assert client.read_to_end().code == 1002
        client.close()

    def closes_its_half(self) -> None:
        client = self.active()
        if self.context is None:
            client.socket.shutdown(1)
            client.read_to_end()
        client.close()

    def sends(self) -> None:
        client = self.connect()
        for _ in range(2):
            self.request(client, b'"from a stranger"')
            assert client.read_head()[0] == 200
        client.close()

    def sends_too_much(self) -> None:
        client = self.connect()
        self.request(client, b"", 2**30)
        assert client.read_head()[0] == 413
        client.close()

    # Fates that are cut off.

    def connects_and_goes(self) -> None:
        abort(self.connect())

    def goes_in_its_head(self) -> None:
        client = self.connect()
        client.write(handshake_bytes(self.websocket_path, self.host)[:50])
        abort(client)

    def goes_in_its_greeting(self) -> None:
        client = RawClient(self.port)
        client.write(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" if self.context else b"G")
        abort(client)

    def goes_without_a_token(self) -> None:
        abort(self.upgraded())

    def goes_in_its_token(self) -> None:
        client = self.upgraded()
        client.write(present(self.token)[:20])
        abort(client)

    def goes_before_it_is_judged(self) -> None:
        client = self.upgraded()
        client.write(present(self.token))
        abort(client)

    def goes_before_it_is_refused(self) -> None:
        client = self.upgraded()
        client.write(present("nonsense"))
        abort(client)

    def goes_when_active(self) -> None:
        abort(self.active())

    def goes_in_its_body(self) -> None:
        client = self.connect()
        self.request(client, b'"half', 1000)
        abort(client)

    def goes_in_its_close(self) -> None:
        client = self.active()
        client.write(close(1000))
        abort(client)


def present(token: str) -> bytes:
    return frame(TEXT, json.dumps({"AccessToken": token}).encode())


def expect(client: RawClient, piece: bytes, opcode: int = TEXT) -> None:
    """Read on until a frame holds `piece`; others may only be data."""
    while (told := client.read_frame()) is not None:
        if told[0] == opcode and piece in told[1]:
            return
        assert told[1].startswith(b'{"From"'), told
        assert told[0] != CLOSE, told
    raise AssertionError(f"the end before {piece!r}")


def abort(client: RawClient) -> None:
    """Go without a word: the service sees a reset."""
    client.reset()


def fates(orders: Orders) -> list[Callable[[], None]]:
    """Two equal halves."""
    ends = [
        orders.leaves,
        orders.renews_and_leaves,
        orders.is_refused,
        orders.runs_out,
        orders.breaks_the_rules,
        orders.closes_its_half,
        orders.sends,
        orders.sends_too_much,
    ]
    goes = [
        orders.connects_and_goes,
        orders.goes_in_its_head,
        orders.goes_in_its_greeting,
        orders.goes_without_a_token,
        orders.goes_in_its_token,
        orders.goes_before_it_is_judged,
        orders.goes_before_it_is_refused,
        orders.goes_when_active,
        orders.goes_in_its_body,
        orders.goes_in_its_close,
    ]
    return [*ends * len(goes), *goes * len(ends)]


def main() -> None:
    orders = Orders(**json.load(sys.stdin))
    some = fates(orders)
    chosen = [some[at % len(some)] for at in range(orders.count)]
    random.Random(orders.count).shuffle(chosen)
    met: Counter[str] = Counter()
    with ThreadPoolExecutor(AT_ONCE) as threads:
        for fate, _ in zip(chosen, threads.map(lambda fate: fate(), chosen), strict=True):
            met[fate.__name__] += 1
    json.dump(met, sys.stdout)


if __name__ == "__main__":
    main()

"""Senders that are faster than the fan-out: memory is bounded, and accepted messages arrive.

100 clients read as fast as they can, so that the service is the slowest part.
"""

from __future__ import annotations

import json
import os
import re
import select
import socket
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

from twisted.trial.unittest import SynchronousTestCase

from tests.support.processes import TwistdProcess
from tests.support.raw_client import TEXT, RawClient, frame
from topicsvc.delivery.hub import HIGH_WATER
from topicsvc.topics import TopicAddress
from topicsvc.validators.local import make_key, sign_token, write_key

HOST = "127.0.0.1"
TOPIC = TopicAddress("cell1", "box1", ("flood",), "name")
READERS = 100
PARSING_READERS = 3
"""Readers that parse the messages; the others only count bytes."""

SENDERS = 80
MESSAGES_PER_SENDER = 60

SIZE = 90_000
"""Bytes of a body: all messages together are more than six times the hub's high-water mark."""

MAX_GROWTH = HIGH_WATER + 80_000_000
"""Bytes: the hub's queue, and the requests in progress, with some copies of each body."""

TIMEOUT = 300.0
"""Seconds for all messages to arrive."""

_BUFFER = bytearray(1 << 20)
_NUMBERS = re.compile(rb'"Body":\[(\d+),(\d+),')


class Reader:
    """A subscriber that parses messages or only counts bytes.

    Attributes:
        is_open: the service has not closed its connection.
        size: bytes that it has read since its session started.
        numbers: pairs of sender and message number, in order; empty if it does not parse.
    """

    def __init__(self, port: int, token: str, parses: bool) -> None:
        self.client = RawClient(port)
        assert self.client.upgrade(TOPIC.websocket_path, HOST) == 101
        self.client.write(frame(TEXT, json.dumps({"AccessToken": token}).encode()))
        reply = self.client.read_frame()
        assert reply is not None
        assert b'"Success"' in reply[1], reply
        self.parses = parses
        self.is_open = True
        self.size = 0
        self.numbers: list[tuple[int, int]] = []
        self._rest = b""

    def read(self) -> None:
        """Read the available bytes."""
        try:
            self._read()
        except ConnectionError:
            self.is_open = False

    def _read(self) -> None:
        if not self.parses:
            # With this flag the system discards the bytes instead of copying them.
            size = self.client.socket.recv_into(_BUFFER, 0, socket.MSG_TRUNC)
            self.size += size
            self.is_open = size > 0
            return
        data = self.client.socket.recv(len(_BUFFER))
        self.size += len(data)
        self.is_open = bool(data)
        self._rest += data
        at = 0
        for each in _NUMBERS.finditer(self._rest):
            self.numbers.append((int(each[1]), int(each[2])))
            at = each.end()
        self._rest = self._rest[max(at, len(self._rest) - 100) :]


class PressureTests(SynchronousTestCase):
    def setUp(self) -> None:
        directory = Path(self.mktemp()).absolute()
        directory.mkdir()
        key = make_key()
        write_key(directory / "key", key)
        self.token = sign_token(key, "x", ["/*"], ("receive", "send"), int(time.time()) + 3600)
        file = directory / "topicsvc.toml"
        file.write_text(
            f"""
            listen = ["tcp:0:interface=127.0.0.1"]
            unit_url = "http://localhost/"
            hosts = ["{HOST}"]
            [session]
            send_queue = 8388608  # so that few readers are slow consumers on a busy machine
            [validator]
            kind = "local"
            key_file = "{directory / "key"}"
            [stop]
            drain = 0
            """
        )
        self.service = TwistdProcess("--config", str(file), directory=directory)
        self.addCleanup(self.service.stop)
        self.port = self.service.ports[0]
        self.statuses: Counter[int] = Counter()
        self.finished = Event()

    def memory(self, name: str) -> int:
        """Memory of the service in bytes, by its name in proc(5)."""
        status = Path(f"/proc/{self.service.child.pid}/status").read_text()
        return int(status.partition(f"{name}:")[2].split()[0]) * 1024

    def read(self, readers: list[Reader]) -> None:
        """Read until the end of the test; a connection that the service has closed is left out."""
        poll = select.epoll()
        by_file = {reader.client.socket.fileno(): reader for reader in readers}
        for each in by_file:
            poll.register(each, select.EPOLLIN)
        while not self.finished.is_set():
            for each, _ in poll.poll(0.1):
                by_file[each].read()
                if not by_file[each].is_open:
                    poll.unregister(each)
        poll.close()

    def send(self, sender: int) -> list[tuple[int, int]]:
        """Send without a pause; return the numbers of the accepted messages."""
        client = RawClient(self.port)
        client.socket.settimeout(TIMEOUT)
        accepted = []
        for number in range(MESSAGES_PER_SENDER):
            message = b'[%d,%d,"%s"]' % (sender, number, b"x" * SIZE)
            client.write(
                f"POST {TOPIC.send_path} HTTP/1.1\r\nHost: {HOST}\r\n"
                f"Authorization: Bearer {self.token}\r\n"
                f"Content-Length: {len(message)}\r\n\r\n".encode()
                + message
            )
            status, body = client.read_response()
            self.statuses[status] += 1
            if status == 200:
                accepted.append((sender, number))
            else:
                assert b'"PR503-SV-0001"' in body, body
        client.close()
        return accepted

    def test_memory_is_bounded_and_accepted_messages_arrive(self) -> None:
        self.assertGreater(SENDERS * MESSAGES_PER_SENDER * SIZE, 6 * HIGH_WATER)
        readers = [
            Reader(self.port, self.token, number < PARSING_READERS) for number in range(READERS)
        ]
        before = self.memory("VmRSS")
        began = time.monotonic()
        with ThreadPoolExecutor(SENDERS + 1) as threads:
            reading = threads.submit(self.read, readers)
            try:
                sent = threads.map(self.send, range(SENDERS))
                accepted = [each for numbers in sent for each in numbers]
                sent_after = time.monotonic() - began
                while not has_all(
                    still_open := [each for each in readers if each.is_open], accepted
                ):
                    self.assertFalse(reading.done(), "the readers have failed")
                    self.assertLess(time.monotonic() - began, TIMEOUT, "all arrive in time")
                    time.sleep(0.1)
                read_after = time.monotonic() - began
            finally:
                self.finished.set()
            reading.result()
        for reader in readers:
            reader.client.close()
        growth = self.memory("VmHWM") - before
        if os.environ.get("TOPICSVC_FIGURES"):
            print(
                f"\n    {len(accepted)} of {SENDERS * MESSAGES_PER_SENDER} messages accepted in "
                f"{sent_after:.1f} s, all read by {len(still_open)} after {read_after:.1f} s, "
                f"memory from {before / 1e6:.0f} MB by {growth / 1e6:.0f} MB"
            )
        self.assertEqual(set(self.statuses), {200, 503})
        self.assertLess(growth, MAX_GROWTH)
        self.assertGreater(len(still_open), READERS / 2)
        parsing = [each for each in still_open if each.parses]
        self.assertTrue(parsing)
        for reader in parsing:
            self.assertEqual(sorted(reader.numbers), sorted(accepted))
            for sender in range(SENDERS):
                numbers = [number for each, number in reader.numbers if each == sender]
                self.assertEqual(numbers, sorted(numbers), "in the order of acceptance")


def has_all(readers: list[Reader], accepted: list[tuple[int, int]]) -> bool:
    """Whether all readers have all messages: by number if they parse, by bytes if not.

    The bytes may differ by less than one message, because of pings.
    """
    sizes = [reader.size for reader in readers]
    counts = {len(reader.numbers) for reader in readers if reader.parses}
    return counts <= {len(accepted)} and max(sizes) - min(sizes) < SIZE

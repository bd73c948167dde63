"""Senders that outrun the fan-out: memory stays bounded, and what was accepted arrives.

The readers read as fast as they can and are many, so that it is the service that cannot keep up.
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
LOOK = 3
"""Of the readers, how many look at what they read; the others only count the bytes."""

SENDERS = 80
EACH = 60
"""Messages that each of them tries to send."""

SIZE = 90_000
"""Bytes of a body: all that is tried is more than six times what may wait."""

MOST_GROWTH = HIGH_WATER + 80_000_000
"""Bytes: what may wait, and the requests under way, each with some copies of its body."""

TIMEOUT = 60.0
"""Seconds."""

_NOWHERE = bytearray(1 << 20)
_NUMBERS = re.compile(rb'"Body":\[(\d+),(\d+),')


class Reader:
    """A subscriber, and whether it looks at what it reads.

    Attributes:
        stays: the service has not closed its connection.
        size: bytes that it has read since its session began.
        numbers: senders and their numbers, as they came, where it looks.
    """

    def __init__(self, port: int, token: str, looks: bool) -> None:
        self.client = RawClient(port)
        assert self.client.upgrade(TOPIC.websocket_path, HOST) == 101
        self.client.write(frame(TEXT, json.dumps({"AccessToken": token}).encode()))
        told = self.client.read_frame()
        assert told is not None
        assert b'"Success"' in told[1], told
        self.looks = looks
        self.stays = True
        self.size = 0
        self.numbers: list[tuple[int, int]] = []
        self._rest = b""

    def read(self) -> None:
        """Read what there is."""
        try:
            self._read()
        except ConnectionError:
            self.stays = False

    def _read(self) -> None:
        if not self.looks:
            # With this flag the system throws away what it would have copied.
            size = self.client.socket.recv_into(_NOWHERE, 0, socket.MSG_TRUNC)
            self.size += size
            self.stays = size > 0
            return
        data = self.client.socket.recv(len(_NOWHERE))
        self.size += len(data)
        self.stays = bool(data)
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
            send_queue = 8388608  # so that few are too slow on a machine that has much to do
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
        """Bytes that the service has of it, or has had at most."""
        status = Path(f"/proc/{self.service.child.pid}/status").read_text()
        return int(status.partition(f"{name}:")[2].split()[0]) * 1024

    def read(self, readers: list[Reader]) -> None:
        """Read until the test is over, or until the service has closed a connection."""
        poll = select.epoll()
        by_file = {reader.client.socket.fileno(): reader for reader in readers}
        for each in by_file:
            poll.register(each, select.EPOLLIN)
        while not self.finished.is_set():
            for each, _ in poll.poll(0.1):
                by_file[each].read()
                if not by_file[each].stays:
                    poll.unregister(each)
        poll.close()

    def send(self, sender: int) -> list[tuple[int, int]]:
        """Send as fast as the answers come; returns what was accepted."""
        client = RawClient(self.port)
        client.socket.settimeout(TIMEOUT)
        accepted = []
        for number in range(EACH):
            body = b'[%d,%d,"%s"]' % (sender, number, b"x" * SIZE)
            client.write(
                f"POST {TOPIC.send_path} HTTP/1.1\r\nHost: {HOST}\r\n"
                f"Authorization: Bearer {self.token}\r\n"
                f"Content-Length: {len(body)}\r\n\r\n".encode()
                + body
            )
            status, answer = client.read_answer()
            self.statuses[status] += 1
            if status == 200:
                accepted.append((sender, number))
            else:
                assert b'"PR503-SV-0001"' in answer, answer
        client.close()
        return accepted

    def test_memory_is_bounded_and_what_was_accepted_arrives(self) -> None:
        self.assertGreater(SENDERS * EACH * SIZE, 6 * HIGH_WATER)
        readers = [Reader(self.port, self.token, number < LOOK) for number in range(READERS)]
        before = self.memory("VmRSS")
        began = time.monotonic()
        with ThreadPoolExecutor(SENDERS + 1) as threads:
            reading = threads.submit(self.read, readers)
            try:
                sent = threads.map(self.send, range(SENDERS))
                accepted = [each for mine in sent for each in mine]
                sent_after = time.monotonic() - began
                while not has_all(staying := [each for each in readers if each.stays], accepted):
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
                f"\n    {len(accepted)} of {SENDERS * EACH} messages accepted in "
                f"{sent_after:.1f} s, all read by {len(staying)} after {read_after:.1f} s, "
                f"memory from {before / 1e6:.0f} MB by {growth / 1e6:.0f} MB"
            )
        self.assertEqual(set(self.statuses), {200, 503})
        self.assertLess(growth, MOST_GROWTH)
        self.assertGreater(len(staying), READERS / 2)
        looking = [each for each in staying if each.looks]
        self.assertTrue(looking)
        for reader in looking:
            self.assertEqual(sorted(reader.numbers), sorted(accepted))
            for sender in range(SENDERS):
                mine = [number for each, number in reader.numbers if each == sender]
                self.assertEqual(mine, sorted(mine), "in the order in which they were accepted")


def has_all(readers: list[Reader], accepted: list[tuple[int, int]]) -> bool:
    """Whether those who look have as many as were accepted, and the others as many bytes.

    A ping in between is a few bytes, a message is many.
    """
    sizes = [reader.size for reader in readers]
    looking = [reader for reader in readers if reader.looks]
    counts = {len(reader.numbers) for reader in looking}
    return counts <= {len(accepted)} and max(sizes) - min(sizes) < SIZE

"""The system clock of a running service is set back by an hour, and forward."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from unittest.mock import patch

from twisted.trial.unittest import SynchronousTestCase

from tests.integration.support.requirements import need
from tests.support.processes import TwistdProcess
from tests.support.raw_client import CLOSE, PING, PONG, TEXT, RawClient, frame
from topicsvc.validators.local import make_key, sign_token, write_key

LIBRARIES = sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))
HOST = "unit1.example"
TOPIC = "/cell1/box1/col/topic/name"
PATH = "/cell1/__topic/box1/col.topic.name"
PING_INTERVAL = 1
TOKEN_TIMEOUT = 3
HOUR = 3600


class TimeOfDayTests(SynchronousTestCase):
    def setUp(self) -> None:
        need(LIBRARIES, "libfaketime (tests/integration/install.sh)")
        self.directory = Path(self.mktemp()).absolute()
        self.directory.mkdir()
        self.key = make_key()
        write_key(self.directory / "key", self.key)
        self.offset = self.directory / "offset"
        self.set_clock(0)
        file = self.directory / "topicsvc.toml"
        file.write_text(
            f"""
            listen = ["tcp:0:interface=127.0.0.1"]
            unit_url = "https://{HOST}/"
            [session]
            ping_interval = {PING_INTERVAL}
            token_timeout = {TOKEN_TIMEOUT}
            [validator]
            kind = "local"
            key_file = "{self.directory / "key"}"
            [stop]
            drain = 0
            """
        )
        faking = {
            "LD_PRELOAD": str(LIBRARIES[0]),
            "FAKETIME_TIMESTAMP_FILE": str(self.offset),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }
        with patch.dict(os.environ, faking):
            self.service = TwistdProcess("--config", str(file), directory=self.directory)
        self.addCleanup(self.service.stop)

    def set_clock(self, seconds: int) -> None:
        """Set the clock of the service so many seconds ahead of the real time."""
        new = self.offset.with_name("new")
        new.write_text(f"{seconds:+d}\n")
        new.rename(self.offset)

    def connect(self) -> RawClient:
        client = RawClient(self.service.ports[0])
        self.addCleanup(client.socket.close)
        self.assertEqual(client.upgrade(PATH, HOST), 101)
        return client

    def join(self, lifetime: int) -> RawClient:
        client = self.connect()
        expires_at = int(time.time()) + lifetime
        token = sign_token(self.key, None, [TOPIC], ["receive"], expires_at)
        client.write(frame(TEXT, json.dumps({"AccessToken": token}).encode()))
        opcode, reply = client.read_frame()
        self.assertEqual((opcode, json.loads(reply)["Result"]), (TEXT, "Success"))
        return client

    def assert_pinged(self, client: RawClient, count: int) -> None:
        """So many pings arrive, each in time."""
        for _ in range(count):
            began = time.monotonic()
            opcode, payload = client.read_frame()
            self.assertEqual(opcode, PING)
            self.assertLess(time.monotonic() - began, 5 * PING_INTERVAL)
            client.write(frame(PONG, payload))

    def assert_closed(self, client: RawClient, reason: bytes, seconds: float) -> None:
        """The session is closed within so many seconds; pings may arrive before."""
        began = time.monotonic()
        while (received := client.read_frame()) is not None:
            opcode, payload = received
            if opcode == CLOSE:
                self.assertEqual(payload[2:], reason)
                self.assertLess(time.monotonic() - began, seconds)
                return
        self.fail("the stream has ended")

    def test_timers_are_not_disturbed_and_tokens_expire_by_the_time_of_day(self) -> None:
        long_lived, short_lived = self.join(5 * HOUR), self.join(HOUR // 2)
        for client in (long_lived, short_lived):
            self.assert_pinged(client, 2)
        waiting = self.connect()
        self.set_clock(-HOUR)
        for client in (long_lived, short_lived):
            self.assert_pinged(client, 3)
        self.assert_closed(waiting, b"Token timeout", TOKEN_TIMEOUT + 4)
        waiting, began = self.connect(), time.monotonic()
        self.set_clock(HOUR)
        self.assert_closed(waiting, b"Token timeout", TOKEN_TIMEOUT + 4)
        self.assertGreater(time.monotonic() - began, TOKEN_TIMEOUT - 0.5, "closed too early")
        self.assert_closed(short_lived, b"Session expired", 5 * PING_INTERVAL)
        self.assert_pinged(long_lived, 3)

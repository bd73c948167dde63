"""Clients with positions that are cut again and again get each message once: ``bench.jitter``."""

from __future__ import annotations

import sys
from typing import Any

from twisted.internet import reactor
from twisted.internet.utils import getProcessOutputAndValue
from twisted.trial.unittest import TestCase

from tests.support.processes import environment

CLIENTS = 300
TIMES = ("--seconds", "8", "--stays", "3", "--away", "0.5", "--interval", "0.1")


class JitterTests(TestCase):
    timeout = 300

    async def run_jitter(self, *arguments: str) -> tuple[str, Any]:
        command = ["-m", "bench.jitter", "--clients", str(CLIENTS), *TIMES, *arguments]
        output, errors, status = await getProcessOutputAndValue(
            sys.executable, command, env=environment(), reactor=reactor
        )
        return output.decode() + errors.decode(), status

    async def test_each_client_has_each_message_once(self) -> None:
        """Each is cut every 3 s, and comes back half a second later with its position."""
        text, status = await self.run_jitter()
        self.assertEqual(status, 0, text)
        self.assertIn("0 missing, 0 doubled, 0 told", text)
        self.assertRegex(text, r"[1-9]\d* replays")

    async def test_clients_without_positions_miss_messages(self) -> None:
        """So the test before this one has something to find."""
        text, status = await self.run_jitter("--plain")
        self.assertEqual(status, 0, text)
        self.assertRegex(text, r"[1-9]\d* missing, 0 doubled, 0 told")

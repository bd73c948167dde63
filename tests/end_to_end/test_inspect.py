"""Lists for operators and ending sessions, by ``curl``'s requests and by ``topicsvc top``."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import time
import urllib.error
import urllib.request
from typing import Any

from websockets.exceptions import ConnectionClosed

from tests.support.processes import TOPICSVC, TwistdProcess, environment
from tests.support.twistd_case import (
    LOOPBACK,
    SEND_PATH,
    SUBJECT,
    TOPIC,
    WEBSOCKET_PATH,
    TwistdTestCase,
)
from tests.support.websocket_client import WebSocketClient

HOST = "cell1.unit1.example"
TOKEN = "a-token-of-an-operator"


class InspectTestCase(TwistdTestCase):
    settings = "inspect = true"

    def setUp(self) -> None:
        super().setUp()
        self.token_file = self.directory / "admin-token"
        self.token_file.write_text(f"{TOKEN}\n")
        self.file = self.configure(LOOPBACK, more=self.admin(self.settings))
        self.service: TwistdProcess = self.start("--config", str(self.file))
        self.port, admin = self.service.ports
        self.url = f"http://127.0.0.1:{admin}"

    def admin(self, settings: str) -> str:
        return f'[admin]\nlisten = "{LOOPBACK}"\n{settings}\ntoken_file = "{self.token_file}"'

    def join(self) -> WebSocketClient:
        client = self.connect(self.port, HOST, WEBSOCKET_PATH)
        self.present(client, self.token())
        return client

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(self.url + path, timeout=10) as response:
            return json.load(response)

    def status(self, path: str) -> int:
        try:
            urllib.request.urlopen(self.url + path, timeout=10).close()
        except urllib.error.HTTPError as error:
            error.close()
            return error.code
        return 200

    def end(self, members: dict[str, Any]) -> Any:
        request = urllib.request.Request(
            f"{self.url}/sessions/end",
            json.dumps(members).encode(),
            {"Authorization": f"Bearer {TOKEN}"},
        )
        with urllib.request.urlopen(request, timeout=10) as response:
            return json.load(response)

    def top(self, *arguments: str) -> str:
        """Run ``topicsvc top`` with a pipe as its standard output."""
        return subprocess.run(
            [*TOPICSVC, "top", "--admin", self.url, *arguments],
            check=True,
            capture_output=True,
            env=environment(),
            timeout=30,
        ).stdout.decode()


class InspectTests(InspectTestCase):
    def test_each_question_is_answered_by_one_command(self) -> None:
        sessions = [self.join() for _ in range(3)]
        for _ in range(5):
            self.assertEqual(self.send(self.port, HOST, SEND_PATH, b"1"), 200)
        sessions[0].send("no token message")
        self.assertRaises(ConnectionClosed, lambda: [sessions[0].recv() for _ in range(9)])
        self.assertRegex(self.top("ended", "--subject", SUBJECT), r"  Invalid message\n$")
        self.assertRegex(self.top(), rf"\n +2 +5 +\d+ +0  {TOPIC}\n$")
        self.assertIn(f"2 sessions on {TOPIC}\n", self.top("--topic", TOPIC))
        self.assertRegex(self.top("senders"), rf"\n +5  127\.0\.0\.1  {SUBJECT}\n$")
        listed = self.top("sessions", "--address", "127.0.0.0/8")
        self.assertEqual(listed.count(TOPIC), 2)

    def test_an_operator_ends_a_session_that_is_listed(self) -> None:
        first, second = self.join(), self.join()
        [listed, kept] = self.get("/sessions")["sessions"]
        self.assertEqual(self.end({"id": listed["id"], "reason": "ticket 17"}), {"ended": 1})
        closed = self.assertRaises(ConnectionClosed, first.recv)
        self.assertEqual((closed.rcvd.code, closed.rcvd.reason), (1008, "Ended by operator"))
        self.send(self.port, HOST, SEND_PATH, b"1")
        self.assertEqual(json.loads(second.recv())["Body"], 1)
        self.assertEqual([each["id"] for each in self.get("/sessions")["sessions"]], [kept["id"]])
        [ended] = self.get("/sessions/ended")["sessions"]
        self.assertEqual((ended["reason"], ended["detail"]), ("Ended by operator", "ticket 17"))
        self.service.wait_for(r"Ended by operator \(ticket 17\)")
        self.service.wait_for(r"1 session of id \d+ ended by the operator at 127.0.0.1: ticket 17")
        self.assertNotIn(TOKEN, self.service.text)

    def test_a_reload_switches_the_lists_off_and_on(self) -> None:
        for settings, status in (("inspect = false", 404), ("inspect = true", 200)):
            self.configure(LOOPBACK, more=self.admin(settings))
            lines = len(self.service.output)
            self.service.child.send_signal(signal.SIGHUP)
            self.service.wait_for(r"reloaded: \[admin\]", after=lines)
            self.assertEqual(self.status("/topics"), status)
        self.token_file.unlink()
        lines = len(self.service.output)
        self.service.child.send_signal(signal.SIGHUP)
        self.service.wait_for("not reloaded, .* admin.token_file: .*: No such file", after=lines)
        self.assertEqual(self.end({"id": 1, "reason": "x"}), {"ended": 0})


class OffTests(InspectTestCase):
    settings = ""

    def test_the_command_says_which_setting_is_missing(self) -> None:
        self.assertEqual(self.status("/topics"), 404)
        done = subprocess.run(
            [*TOPICSVC, "top", "--admin", self.url],
            check=False,
            capture_output=True,
            env=environment(),
            timeout=30,
        )
        self.assertEqual((done.returncode, done.stdout), (1, b""))
        self.assertEqual(
            done.stderr.decode(),
            f"topicsvc top: {self.url}: there are no lists; set inspect = true in [admin], "
            "and reload (SIGHUP)\n",
        )


class TerminalTests(InspectTestCase):
    def test_the_screen_is_refreshed_until_an_interrupt(self) -> None:
        terminal, child_end = pty.openpty()
        self.addCleanup(os.close, terminal)
        command = [*TOPICSVC, "top", "--admin", self.url, "--interval", "1"]
        child = subprocess.Popen(
            command,
            stdin=child_end,
            stdout=child_end,
            stderr=child_end,
            start_new_session=True,
            env={**environment(), "TERM": "xterm"},
        )
        self.addCleanup(child.wait)
        self.addCleanup(child.kill)
        os.close(child_end)
        self.read_until(terminal, "0 topics")
        self.join()
        screen = self.read_until(terminal, "1 topic,.*" + re.escape(TOPIC))
        self.assertNotIn("Traceback", screen)
        child.send_signal(signal.SIGINT)
        self.assertEqual(child.wait(10), 130)
        self.assertNotIn("Traceback", self.read_rest(terminal))

    def read_until(self, terminal: int, pattern: str) -> str:
        """Read the terminal until its output matches."""
        text = ""
        deadline = time.monotonic() + 30
        while not re.search(pattern, text, re.DOTALL):
            self.assertLess(time.monotonic(), deadline, text)
            if select.select([terminal], [], [], 1)[0]:
                text += os.read(terminal, 65536).decode()
        return text

    def read_rest(self, terminal: int) -> str:
        text = b""
        try:
            while data := os.read(terminal, 65536):
                text += data
        except OSError:  # the other end is closed
            pass
        return text.decode()

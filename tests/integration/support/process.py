"""Real processes: a topicsvc under twistd, and the commands of its users."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

TIMEOUT = 20.0

_RUN_TWISTD = "from twisted.scripts.twistd import run; run()"
TWISTD = [sys.executable, "-c", _RUN_TWISTD]
TOPICSVC = [
    sys.executable,
    "-c",
    "import sys; from topicsvc.cli.main import main; sys.exit(main())",
]

_PORT = re.compile(r"(?:TopicSite|AdminSite)(?: \((?:TLS|PROXY)\))? starting on (\d+)")


def environment() -> dict[str, str]:
    """What a child sees: the modules of this process, in this order, and nothing buffered."""
    path = os.pathsep.join(each or os.getcwd() for each in sys.path)
    # What libraries warn of in a service is no fault of ours.
    inherited = {name: each for name, each in os.environ.items() if name != "PYTHONWARNINGS"}
    return {**inherited, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}


class Process:
    """A child whose output is read line by line while it runs."""

    def __init__(self, arguments: Iterable[str], **options: Any) -> None:
        self.output: list[str] = []
        self._notifications = threading.Condition()
        self.child = subprocess.Popen(
            list(arguments),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment(),
            **options,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def text(self) -> str:
        return "".join(self.output)

    def wait_for(self, pattern: str, timeout: float = TIMEOUT, after: int = 0) -> re.Match[str]:
        """Wait until the output matches `pattern`, beyond so many lines."""
        match = None

        def look() -> bool:
            nonlocal match
            match = re.search(pattern, "".join(self.output[after:]))
            return match is not None or not self._reader.is_alive()

        with self._notifications:
            self._notifications.wait_for(look, timeout)
        if match is None:
            raise AssertionError(f"{pattern!r} is not in the output:\n{self.text}")
        return match

    def wait(self, timeout: float = TIMEOUT) -> int:
        """Wait for the end; return the exit code."""
        self.child.wait(timeout)
        self._reader.join(timeout)
        return self.child.returncode

    def stop(self, timeout: float = TIMEOUT) -> int:
        """End it as an operator would; for good if it will not."""
        if self.child.poll() is None:
            self.child.send_signal(signal.SIGTERM)
        try:
            return self.wait(timeout)
        except subprocess.TimeoutExpired:
            self.child.kill()
            self.wait(timeout)
            raise AssertionError(f"did not stop:\n{self.text}") from None

    def _read(self) -> None:
        assert self.child.stdout is not None
        with self.child.stdout:
            for line in self.child.stdout:
                with self._notifications:
                    self.output.append(line)
                    self._notifications.notify_all()
        with self._notifications:
            self._notifications.notify_all()


class Service(Process):
    """``twistd topicsvc``, listening.

    Args:
        arguments: of topicsvc.
        directory: where it runs.
        twistd: arguments of twistd.
        watched_by: a module whose `watch` is called in its process; empty: none.

    Attributes:
        ports: the port numbers, in the order of the settings.
    """

    def __init__(
        self,
        *arguments: str,
        directory: Path,
        twistd: Iterable[str] = (),
        watched_by: str = "",
        **options: Any,
    ) -> None:
        foreground = ["--nodaemon", "--pidfile=", "--rundir", str(directory)]
        command = TWISTD
        if watched_by:
            command = [
                sys.executable,
                "-c",
                f"import {watched_by} as it; it.watch(); {_RUN_TWISTD}",
            ]
        super().__init__([*command, *foreground, *twistd, "topicsvc", *arguments], **options)
        try:
            self.wait_for(r"topicsvc \S+ serves \d+ ports?\b")
        except AssertionError:
            self.stop()
            raise
        self.ports = [int(port) for port in _PORT.findall(self.text)]

    def demo_text(self) -> str:
        """All that ``--demo`` prints."""
        self.wait_for(r"curl .*\n\n")
        return self.text

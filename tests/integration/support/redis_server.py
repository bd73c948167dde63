"""A real Redis server, on a free port, without files except for its log."""

from __future__ import annotations

import atexit
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from twisted.internet.defer import inlineCallbacks

from tests.integration.support.requirements import need
from tests.support.processes import Program, free_port, listens, until


def need_redis() -> None:
    """Skip or fail the test if Redis is missing."""
    need(shutil.which("redis-server"), "redis-server (tests/integration/install.sh)")


class Redis:
    """One server. A restart loses its data, unless it keeps them.

    Args:
        settings: further lines of its configuration.
        keeps_data: whether it writes each change to a file.
        tls: its certificate, key and authorities; None: no TLS.
    """

    def __init__(
        self,
        settings: str = "",
        keeps_data: bool = False,
        tls: tuple[Path, Path, Path] | None = None,
    ) -> None:
        need_redis()
        memory = "/dev/shm" if Path("/dev/shm").is_dir() else None
        self._directory = Path(tempfile.mkdtemp(prefix="topicsvc-redis-", dir=memory))
        atexit.register(self.remove)
        self.port = free_port()
        self.is_tls = tls is not None
        port = f"port {self.port}"
        if tls is not None:
            cert, key, authorities = tls
            port = (
                f"port 0\ntls-port {self.port}\ntls-cert-file {cert}\ntls-key-file {key}\n"
                f"tls-ca-cert-file {authorities}\ntls-auth-clients no"
            )
        persistence = "appendonly yes\nappendfsync always" if keeps_data else "appendonly no"
        configuration = self._directory / "redis.conf"
        configuration.write_text(
            f'bind 127.0.0.1\n{port}\ndir {self._directory}\nsave ""\n{persistence}\n{settings}\n'
        )
        self.program = Program(["redis-server", str(configuration)], self._directory / "log")

    @property
    def url(self) -> str:
        scheme, host = ("rediss", "localhost") if self.is_tls else ("redis", "127.0.0.1")
        return f"{scheme}://{host}:{self.port}"

    @property
    def settings(self) -> str:
        return f'kind = "redis"\nurl = "{self.url}"'

    @inlineCallbacks
    def start(self) -> Any:
        """Start the server; fires when its port is open, with the seconds that this took."""
        self.program.start()
        return (yield until(self._listens, "Redis listens", 60))

    def command(self, *words: str) -> str:
        """Run one command with redis-cli; return its output."""
        return run_redis_cli(self.port, *words)

    def _listens(self) -> bool:
        assert self.program.runs, self.program.log
        return listens(self.port)

    def remove(self) -> None:
        """Kill the server and remove its files."""
        self.program.kill()
        shutil.rmtree(self._directory, ignore_errors=True)


class Sentinel:
    """A Sentinel that watches one primary and promotes its replica after 5 seconds.

    Args:
        port: of the primary.
    """

    def __init__(self, port: int) -> None:
        need_redis()
        self._directory = Path(tempfile.mkdtemp(prefix="topicsvc-sentinel-"))
        atexit.register(self.remove)
        self.port = free_port()
        configuration = self._directory / "sentinel.conf"
        configuration.write_text(
            f"port {self.port}\nbind 127.0.0.1\ndir {self._directory}\n"
            f"sentinel monitor main 127.0.0.1 {port} 1\n"
            # A primary that a loaded machine does not run for a second is not lost.
            "sentinel down-after-milliseconds main 5000\n"
            "sentinel failover-timeout main 10000\n"
        )
        self.program = Program(
            ["redis-server", str(configuration), "--sentinel"], self._directory / "log"
        )

    def start(self) -> Any:
        """Start it; fires when its port is open."""
        self.program.start()
        return until(lambda: listens(self.port), "Sentinel listens", 60)

    @property
    def primary(self) -> int:
        """The port of the primary."""
        return int(self._ask("GET-MASTER-ADDR-BY-NAME", "main").splitlines()[1])

    @property
    def replicas(self) -> int:
        """The number of replicas that it knows."""
        return self._ask("REPLICAS", "main").splitlines().count("runid")

    def _ask(self, *words: str) -> str:
        return run_redis_cli(self.port, "SENTINEL", *words)

    def remove(self) -> None:
        """Kill it and remove its files."""
        self.program.kill()
        shutil.rmtree(self._directory, ignore_errors=True)


def run_redis_cli(port: int, *words: str) -> str:
    """Run one command with redis-cli; return its output."""
    return subprocess.run(
        ["redis-cli", "-h", "127.0.0.1", "-p", str(port), *words],
        check=True,
        capture_output=True,
        text=True,
        timeout=30,
    ).stdout.strip()

"""Starts and stops the servers, on free loopback ports and on one core."""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from bench import message
from bench.message import BODY, SENDER, frame_size, payload_size
from bench.sessions import Target, masked
from tests.support.certificates import Authority
from topicsvc.validators.local import make_key, sign_token, write_key

ROOT = Path(__file__).resolve().parent.parent
HOST = "unit1.example"
TOPIC = "/cell1/box1/col/topic/t%d"
TOKENS = 5000
ADMIN = "tcp:0:interface=127.0.0.1"

_INSPECT = f"""
            [admin]
            listen = "{ADMIN}"
            inspect = true"""

NCHAN_MODULE = "/usr/lib/nginx/modules/ngx_nchan_module.so"


def checkout(directory: str) -> Path:
    """Return the path of another checkout, for `argparse`."""
    path = Path(directory).resolve()
    if not (path / "topicsvc/service.py").is_file():
        raise argparse.ArgumentTypeError(f"{directory} is not a checkout of topicsvc")
    return path


class Topicsvc:
    """topicsvc, plain and TLS, with local tokens and the memory broker.

    Args:
        root: the checkout of topicsvc to run.
        inspect: whether the admin endpoint lists topics and sessions.
        tables: further tables of the configuration.
    """

    def __init__(
        self,
        directory: Path,
        authority: Authority,
        root: Path = ROOT,
        inspect: bool = False,
        tables: str = "",
    ) -> None:
        key = make_key()
        (directory / "token.key").unlink(missing_ok=True)
        write_key(directory / "token.key", key)
        tls_key, cert = authority.issue(HOST, name="topicsvc")
        (directory / "topicsvc.toml").write_text(
            f"""
            listen = [
                "tcp:0:interface=127.0.0.1:backlog=1024",
                "ssl:0:privateKey={tls_key}:certKey={cert}:interface=127.0.0.1:backlog=1024",
            ]
            {"" if inspect else f'admin = "{ADMIN}"'}
            unit_url = "https://{HOST}/"
            [validator]
            kind = "local"
            key_file = "{directory}/token.key"
            [limits]
            unauthenticated_per_address = 0
            messages_per_minute = 0
            {tables}
            {_INSPECT if inspect else ""}
            """
        )
        self.process = _start("bench.server", str(directory / "topicsvc.toml"), root=root)
        self.plain_port, self.tls_port, self.admin_port, control = _ports(self.process)
        self._control = socket.create_connection(("127.0.0.1", control))
        # Each session has its own token: a token that was verified before costs less.
        self._tokens = [
            sign_token(key, SENDER, ["/cell1/*"], ["receive", "send"], 2**31 + number)
            for number in range(TOKENS)
        ]
        self._context = authority.client_context()

    def target(self, tls: bool = False, body: int = BODY) -> Target:
        """Return the target for messages with `body` bytes."""
        return Target(
            port=self.tls_port if tls else self.plain_port,
            path="/cell1/__topic/box1/col.topic.t%d",
            tokens=self._tokens,
            request=lambda topic: self._request(topic, body),
            frame=frame_size(payload_size(body)),
            context=self._context if tls else None,
            host=HOST,
        )

    def batches(self, lines: int) -> Target:
        """Return the target for requests with `lines` messages each (newline-delimited JSON)."""
        target = self.target()
        head = (
            f"POST {TOPIC % 0} HTTP/1.1\r\nHost: {HOST}\r\n"
            f"Authorization: Bearer {self._tokens[0]}\r\n"
            "Content-Type: application/x-ndjson\r\n"
            f"Content-Length: {lines * (BODY + 1)}\r\n\r\n"
        )
        request = head.encode() + (message.body() + b"\n") * lines
        return replace(target, request=lambda _: request, frame=target.frame * lines, batch=lines)

    def burst(self, topics: int) -> None:
        self._control.sendall(b"burst %d\n" % topics)

    def memory(self) -> int:
        """Return the resident memory in bytes."""
        self._control.sendall(b"memory\n")
        return int(self._control.makefile("rb").readline())

    def lag(self) -> float:
        """Return the longest delay of a timer since the last call, in seconds."""
        self._control.sendall(b"lag\n")
        return int(self._control.makefile("rb").readline()) / 1e6

    def iterations(self) -> list[float]:
        """Return the processor time of each reactor iteration since the last call, in seconds."""
        self._control.sendall(b"iterations\n")
        return [int(word) / 1e6 for word in self._control.makefile("rb").readline().split()]

    def _request(self, topic: int, body: int) -> bytes:
        head = (
            f"POST {TOPIC % topic} HTTP/1.1\r\nHost: {HOST}\r\n"
            f"Authorization: Bearer {self._tokens[0]}\r\nContent-Length: {body}\r\n\r\n"
        )
        return head.encode() + message.body(body)


class Nchan:
    """A peer: nginx's push module, with one worker."""

    def __init__(self, directory: Path, authority: Authority) -> None:
        if shutil.which("nginx") is None or not Path(NCHAN_MODULE).exists():
            raise SystemExit("bench: needs nginx and libnginx-mod-nchan (apt-get install both)")
        key, cert = authority.issue(HOST, name="nchan")
        self.plain_port, self.tls_port = _free_port(), _free_port()
        (directory / "nginx.conf").write_text(
            f"""
            load_module {NCHAN_MODULE};
            daemon off;
            worker_processes 1;
            worker_rlimit_nofile 20000;
            pid {directory}/nginx.pid;
            error_log {directory}/nginx.log warn;
            events {{ worker_connections 18000; }}
            http {{
                access_log off;
                nchan_max_reserved_memory 256M;
                keepalive_requests 10000000;
                server {{
                    listen 127.0.0.1:{self.plain_port} backlog=1024;
                    listen 127.0.0.1:{self.tls_port} ssl backlog=1024;
                    ssl_certificate {cert};
                    ssl_certificate_key {key};
                    location ~ ^/pub/(.+)$ {{
                        nchan_publisher;
                        nchan_channel_id $1;
                        nchan_message_buffer_length 1000;
                    }}
                    location ~ ^/sub/(.+)$ {{
                        nchan_subscriber websocket;
                        nchan_channel_id $1;
                        nchan_subscriber_first_message newest;
                    }}
                }}
            }}
            """
        )
        core = str(sorted(os.sched_getaffinity(0))[0])
        self.process = _run(
            ["taskset", "-c", core, "nginx", "-p", str(directory), "-c", f"{directory}/nginx.conf"],
            stderr=subprocess.DEVNULL,
        )
        _wait_for(self.plain_port)
        self._context = authority.client_context()

    def target(self, tls: bool = False) -> Target:
        size = payload_size()
        return Target(
            port=self.tls_port if tls else self.plain_port,
            path="/sub/%d",
            request=lambda topic: (
                (
                    f"POST /pub/{topic} HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: {size}\r\n\r\n"
                ).encode()
                + b"0" * size
            ),
            frame=frame_size(size),
            context=self._context if tls else None,
            host=HOST,
        )


class Library:
    """A peer: a short server that uses a library's own broadcast."""

    def __init__(self, module: str) -> None:
        self.process = _start(f"bench.peers.{module}")
        [self.port] = _ports(self.process)

    def target(self) -> Target:
        size = payload_size()
        return Target(
            port=self.port,
            path="/",
            request=lambda _: masked(1, b"0" * size),
            by_websocket=True,
            frame=frame_size(size),
        )


Server = TypeVar("Server", Topicsvc, Nchan, Library)


@contextlib.contextmanager
def running(make: Callable[[], Server]) -> Iterator[Server]:
    """A server that runs during a ``with`` block."""
    before = len(_started)
    try:
        yield make()
    finally:  # also if `make` has started a process and failed
        for process in _started[before:]:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        del _started[before:]


def processor_time(process: subprocess.Popen[str]) -> float:
    """Return the processor time of a server and its workers so far, in seconds."""
    ticks = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # the process has ended
            fields = stat.read_text().rpartition(") ")[2].split()
            if str(process.pid) in (stat.parent.name, fields[1]):
                ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


_started: list[subprocess.Popen[str]] = []


def _run(command: list[str], **options: Any) -> subprocess.Popen[str]:
    process = subprocess.Popen(command, text=True, **options)
    _started.append(process)
    return process


def _start(module: str, *arguments: str, root: Path = ROOT) -> subprocess.Popen[str]:
    others = [name for name in sys.path if name and Path(name).resolve() != ROOT]
    path = os.pathsep.join([str(root), *others])
    return _run(
        [sys.executable, "-m", module, *arguments],
        cwd=root,  # Python looks for modules there first
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": path},
    )


def _ports(process: subprocess.Popen[str]) -> list[int]:
    """Return the ports that the server prints. If it fails, its error is on standard error."""
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise SystemExit("bench: a server did not start")
    return [int(word) for word in line.split()]


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def _wait_for(port: int) -> None:
    for _ in range(100):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            return
        time.sleep(0.05)
    raise SystemExit("bench: a server did not start")

"""What lists of the admin endpoint cost: ``python -m bench.inspection``.

It opens sessions on many topics, and asks the operator's questions with ``topicsvc top``. Then it
requests each page, and prints the time of the response and the longest delay of a timer of the
reactor meanwhile.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from http.client import HTTPConnection
from pathlib import Path

from bench.servers import HOST, TOPIC, Topicsvc, running
from bench.sessions import open_session, pin
from tests.support.certificates import Authority

REPEAT = 20
SENDS = 300
FEW = 20
"""Sessions that end before the questions are asked."""


def main() -> None:
    """Open the sessions, and print all figures."""
    parser = argparse.ArgumentParser(prog="python -m bench.inspection")
    parser.add_argument("--sessions", type=int, default=5000)
    parser.add_argument("--topics", type=int, default=300)
    options = parser.parse_args()
    pin(1)
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        authority = Authority(directory)
        with running(lambda: Topicsvc(directory, authority, inspect=True)) as server:
            _measure(server, options.sessions, options.topics)


def _measure(server: Topicsvc, count: int, topics: int) -> None:
    target = server.target()
    sockets = [open_session(target, number % topics) for number in range(count + FEW)]
    for sock in sockets[:FEW]:
        sock.close()
    for number in range(SENDS):  # half of them to topic 7
        request = target.request(7 if number % 2 else number % topics)
        with target.connect() as sender:
            sender.sendall(request)
            sender.recv(4096)
    print(f"{count} sessions on {topics} topics\n")
    for arguments in (
        ("ended", "--topic", TOPIC % 3),
        ("--limit", "3"),
        ("--topic", TOPIC % 7),
        ("senders",),
    ):
        _ask(server, *arguments)
    print("| request | response, ms | KiB | longest delay of the reactor, ms |\n|---|---|---|---|")
    _row(server, "none", "")
    for path in (
        "/metrics",
        "/topics",
        "/topics?sort=messages&limit=1000",
        f"/topics{TOPIC % 7}",
        "/sessions",
        "/sessions?limit=1000",
        f"/sessions?topic={TOPIC % 7}&limit=1000",
        "/sessions?address=127.0.0.0/8&limit=1000",
        "/sessions?subject=x",
        "/sessions/ended?limit=1000",
        "/senders?limit=1000",
    ):
        _row(server, path.replace("&", " "), path)


def _ask(server: Topicsvc, *arguments: str) -> None:
    """Run ``topicsvc top`` and print its command, its output, its time and the delay."""
    url = f"http://127.0.0.1:{server.admin_port}"
    command = [sys.executable, "-m", "topicsvc", "top", *arguments, "--admin", url]
    server.lag()
    began = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    seconds = time.perf_counter() - began
    lag = server.lag()
    print(f"$ topicsvc top {' '.join(arguments)}")
    lines = done.stdout.splitlines()
    print("\n".join(lines[:6]), *(["..."] if len(lines) > 6 else []), sep="\n")
    print(f"[{seconds:.2f} s; longest delay of the reactor {lag * 1000:.1f} ms]\n")


def _row(server: Topicsvc, name: str, path: str) -> None:
    """Request a page some times, and print the medians of time and delay, and the longest delay."""
    times, lags, size = [], [], 0
    for _ in range(REPEAT):
        time.sleep(0.02)
        server.lag()
        began = time.perf_counter()
        if path:
            connection = HTTPConnection("127.0.0.1", server.admin_port, timeout=30)
            connection.request("GET", path, headers={"Host": HOST})
            response = connection.getresponse()
            size = len(response.read())
            if response.status != 200:
                raise SystemExit(f"bench: {path}: {response.status}")
            connection.close()
        else:
            time.sleep(0.05)
        times.append(time.perf_counter() - began)
        lags.append(server.lag())
    times.sort()
    lags.sort()
    print(
        f"| {name} | {times[REPEAT // 2] * 1000:.1f} | {size / 1024:.0f} "
        f"| {lags[REPEAT // 2] * 1000:.1f}; most {lags[-1] * 1000:.1f} |"
    )


if __name__ == "__main__":
    main()

"""Memory of the kept messages: ``python -m bench.history``; `main` has its options.

Each topic has one session with positions. Messages are sent to all topics until
``history.total`` is reached. The same is done with ``history.seconds = 0``.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path

from bench.servers import Topicsvc, running
from bench.sessions import fail, open_sessions, pin
from tests.support.certificates import Authority

TOTAL = 67108864
"""The default of ``history.total``."""


def memory(directory: Path, topics: int, rounds: int, seconds: int) -> int:
    """Return the resident memory of a server after `rounds` messages to each of its topics."""
    tables = f"[history]\nseconds = {seconds}"
    authority = Authority(directory)
    with running(lambda: Topicsvc(directory, authority, tables=tables)) as server:
        target = replace(server.target(), has_positions=True)
        sockets = open_sessions(target, topics, topics)
        for _ in range(rounds):
            server.burst(topics)
            for sock in sockets:
                if not sock.recv(4096):
                    fail("the connection of a subscriber was closed")
        size = server.memory()
        for sock in sockets:
            sock.close()
        return size


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.history")
    parser.add_argument("--topics", type=int, default=10000, help="number of topics (10000)")
    parser.add_argument("--rounds", type=int, default=25, help="messages to each topic (25)")
    options = parser.parse_args()
    pin(1)
    with tempfile.TemporaryDirectory(prefix="topicsvc-history-") as name:
        without, kept = (
            memory(Path(name), options.topics, options.rounds, seconds) for seconds in (0, 3600)
        )
    mebibyte = 1048576
    print(f"{options.topics} topics, {options.rounds} messages each")
    print(
        f"without kept messages {without / mebibyte:.1f} MiB, with them {kept / mebibyte:.1f} MiB"
    )
    print(f"difference {(kept - without) / TOTAL:.0%} of history.total")


if __name__ == "__main__":
    main()

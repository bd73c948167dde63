"""The command line of a worker, as the parent writes it and the worker reads it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["CONTROL", "FIRST_SOCKET", "LOG", "RELAY", "WorkerArguments"]

CONTROL = 3
"""The descriptor of the control socket in a worker."""

LOG = 4
"""The descriptor of the pipe for the log, if the parent writes it."""

FIRST_SOCKET = 5
"""The descriptor of the socket of the first endpoint."""

RELAY = "relay"
"""In place of the name of a logger: the worker writes to `LOG`."""

_RUN = "from topicsvc.worker_process import main; main()"


@dataclass(frozen=True, slots=True)
class WorkerArguments:
    """What a worker is started with.

    Attributes:
        number: its number, from 1 on.
        count: the number of workers.
        endpoints: the number of endpoints, each with a socket from `FIRST_SOCKET` on.
        directory: the directory that relative paths start from.
        reactor: the module of Twisted's reactor; empty: the default.
        logger: the name of a logger in `topicsvc.logs`, or `RELAY`.
        options: the options of topicsvc.
    """

    number: int
    count: int
    endpoints: int
    directory: Path
    reactor: str
    logger: str
    options: tuple[str, ...]

    @property
    def sockets(self) -> range:
        """The descriptors of the sockets, in the order of the endpoints."""
        return range(FIRST_SOCKET, FIRST_SOCKET + self.endpoints)

    def command(self) -> list[str]:
        """The whole command line. ``-P``: the current directory holds no modules."""
        return [
            *(sys.executable, "-P", "-c", _RUN),
            *(f"worker-{self.number}-of-{self.count}", str(self.endpoints)),
            *(str(self.directory), self.reactor, self.logger, *self.options),
        ]

    @classmethod
    def parse(cls, arguments: Sequence[str]) -> WorkerArguments:
        """Read the arguments behind the program."""
        name, endpoints, directory, reactor, logger, *options = arguments
        _, number, _, count = name.split("-")
        return cls(
            int(number),
            int(count),
            int(endpoints),
            Path(directory),
            reactor,
            logger,
            tuple(options),
        )

"""The command line of a worker, as the parent writes it and the worker reads it."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["CONTROL", "FIRST_SOCKET", "IGNORED", "LOG", "RELAY", "WorkerArguments"]

CONTROL = 3
"""The descriptor of the control socket in a worker."""

LOG = 4
"""The descriptor of the pipe for the log, if the parent writes it."""

FIRST_SOCKET = 5
"""The descriptor of the socket of the first endpoint."""

RELAY = "relay"
"""In place of the name of a logger: the worker writes to `LOG`."""

IGNORED = (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
"""The signals that a worker ignores: the parent gets them too, and tells its workers."""

_IGNORE = f"import signal; [signal.signal(each, signal.SIG_IGN) for each in {[*map(int, IGNORED)]}]"
"""Before the imports, which take a second: a signal then would end the worker."""

_RUN = f"{_IGNORE}; from topicsvc.worker_process import main; main()"


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

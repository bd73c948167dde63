"""The command line of ``twistd topicsvc``."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, NoReturn

from twisted.python import usage

from topicsvc import __version__, config, demo
from topicsvc.brokers.factory import make_broker
from topicsvc.config.workers import ALLOWED, workers_of
from topicsvc.errors import ConfigError
from topicsvc.listening.endpoint_string import EndpointString, with_absolute_paths
from topicsvc.listening.host_checks import host_problem
from topicsvc.listening.listener import endpoint_problem
from topicsvc.listening.shared_sockets import sharing_problem
from topicsvc.process.setup import fail_to_start
from topicsvc.settings import Config

__all__ = [
    "MEMORY_BROKER_SHARED",
    "Options",
    "check_problems",
    "endpoint_conflicts",
    "endpoint_problems",
]

MEMORY_BROKER_SHARED = (
    'broker.kind = "memory" delivers inside one process only, and {}: a message does not reach the '
    'sessions of other processes; set a broker that they share, such as "redis" (docs/brokers.md)'
)
"""The warning about a memory broker behind more than one process, with the reason."""


class Options(usage.Options):
    """The options of ``twistd topicsvc``.

    Attributes:
        directory: the directory that relative paths start from.
        is_worker: whether the parent has opened the sockets of the endpoints.
    """

    synopsis = "[--config FILE] [--listen ENDPOINT]... [--admin ENDPOINT] [--workers N] [--demo]"
    longdesc = (
        "Serves the topics of Personium stream collections over WebSocket. "
        "docs/configuration.md describes the file."
    )
    optParameters: ClassVar = [
        ["config", "c", None, "Read the settings from this TOML file."],
        [
            *("admin", "a", None),
            "Serve health and metrics on this endpoint, e.g. tcp:9090:interface=127.0.0.1. "
            "Overrides the file.",
        ],
        [
            *("workers", "w", None),
            "Serve with this number of processes, or with one for each processor: auto. "
            "Overrides the file.",
        ],
    ]
    optFlags: ClassVar = [
        ["demo", None, "Run a demo without a file: with a new key, and a token to try it."],
    ]

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self["listen"] = []
        # Settings are read again after twistd has changed its directory to --rundir.
        self.directory = Path.cwd()
        self.is_worker = False

    def opt_listen(self, endpoint: str) -> None:
        """Serve clients on this endpoint, e.g. tcp:8080. May be repeated. Overrides the file."""
        self["listen"].append(endpoint)

    opt_l = opt_listen

    def opt_version(self) -> NoReturn:
        """Show the version and exit."""
        print(f"topicsvc {__version__}")
        sys.exit(0)

    def parseArgs(self, *rest: str) -> None:
        if rest:
            raise usage.UsageError(f"{rest[0]!r} is not an option")

    def parseOptions(self, options: Any = None) -> None:
        try:
            super().parseOptions(options)  # type: ignore[no-untyped-call]
        except usage.UsageError as error:
            fail_to_start([str(error)])

    def postOptions(self) -> None:
        problem = _twistd_problem(getattr(self, "parent", None) or {})
        if problem is not None:
            raise usage.UsageError(problem)
        for option in ("config", "admin", "workers"):
            if self[option] == "":
                raise usage.UsageError(f"option --{option} is empty")
        if self["demo"] and self["config"]:
            raise usage.UsageError("--demo and --config exclude each other")
        if not self["demo"] and not self["config"]:
            raise usage.UsageError(
                "nothing to run: give --config FILE, or try --demo (docs/configuration.md)"
            )
        if self["config"]:
            self["config"] = str(Path(self["config"]).absolute())

    def settings(self) -> Config:
        """Read the configuration that these options select.

        Raises:
            ConfigError: a setting cannot be used.
        """
        if self["demo"]:
            settings = demo.settings(self["listen"], self["admin"])
            self._refuse_workers_of_a_demo()
            return replace(settings, directory=self.directory)
        return config.read(
            Path(self["config"]),
            self["listen"],
            self["admin"],
            partial(endpoint_problems, is_start=not self.is_worker),
            self.directory,
            self["workers"],
        )

    def _refuse_workers_of_a_demo(self) -> None:
        """Refuse several workers: a demo has a memory broker, and no file to set another one.

        Raises:
            ConfigError: ``--workers`` is more than 1.
        """
        try:
            count = workers_of(self["workers"] or "1")
        except ValueError as error:
            raise ConfigError([f"--workers: {error}; allowed: {ALLOWED}"]) from error
        if count != 1:
            raise ConfigError(["a demo is one process: leave --workers out"])


def _twistd_problem(twistd: Mapping[str, Any]) -> str | None:
    """Why twistd itself would not start, in one line; None: it starts.

    twistd would end with a traceback, or with several lines of text. It reads the pid file and
    opens its log file in the current directory.
    """
    if twistd.get("pidfile"):
        path = Path(twistd["pidfile"]).absolute()
        process = _running(path)
        if process is not None:
            return (
                f"another twistd runs here already, as process {process} (file {path}): stop it "
                f"with kill {process}, or give this one twistd's --pidfile=FILE"
            )
        if not os.access(path.parent, os.W_OK):
            return (
                f"twistd cannot write its pid file {path}: run topicsvc serve, or give twistd's "
                "--pidfile=FILE"
            )
    is_file = not (twistd.get("nodaemon") or twistd.get("logger") or twistd.get("syslog"))
    if twistd and is_file and twistd.get("logfile") != "-":
        path = Path(twistd.get("logfile") or "twistd.log").absolute()
        if not os.access(path if path.exists() else path.parent, os.W_OK):
            return f"twistd cannot write its log file {path}: give twistd's --logfile=FILE"
    return None


def _running(pid_file: Path) -> int | None:
    """The process that a pid file names, if it runs."""
    try:
        process = int(pid_file.read_text("ascii"))
        os.kill(process, 0)
    except (OSError, ValueError, OverflowError):
        return None
    return process


def endpoint_problems(settings: Config, is_start: bool = True) -> list[str]:
    """Return the problems of the endpoints and the broker, one line for each.

    Args:
        settings: the settings.
        is_start: see `endpoint_problem`. At a start, two endpoints must not have one address.
    """
    from twisted.internet import reactor

    conflicts = endpoint_conflicts(settings) if is_start else {}
    problems = []
    for place, (setting, text) in enumerate(_endpoints(settings)):
        problem = endpoint_problem(text, reactor, is_start, settings.directory)
        if problem is None and settings.workers > 1 and setting == "listen":
            problem = sharing_problem(EndpointString.parse(text))
        problem = problem or conflicts.get(place)
        if problem is not None:
            problems.append(f"{setting}: {text!r}: {problem}")
    try:
        make_broker(settings.broker, reactor, time.time)
    except ConfigError as error:
        problems += error.problems
    return problems


def check_problems(settings: Config) -> list[str]:
    """Return the same problems, and those that a start on this host would find. Nothing listens."""
    problems = endpoint_problems(settings, is_start=False)
    conflicts = endpoint_conflicts(settings)
    for place, (setting, text) in enumerate(_endpoints(settings)):
        problem = conflicts.get(place) or host_problem(EndpointString.parse(text))
        begin = f"{setting}: {text!r}: "
        if problem is not None and not any(line.startswith(begin) for line in problems):
            problems.append(begin + problem)
    return problems


def endpoint_conflicts(settings: Config) -> dict[int, str]:
    """Return which endpoints have the address of an earlier one, and why they cannot listen.

    Returns:
        The place in the list of all endpoints, that of ``admin`` last, and the problem.
    """
    found: dict[int, str] = {}
    earlier: list[tuple[str, EndpointString]] = []
    for place, (setting, text) in enumerate(_endpoints(settings)):
        string = EndpointString.parse(with_absolute_paths(text, settings.directory))
        for other_setting, other in earlier:
            if place not in found and string.conflicts_with(other):
                found[place] = (
                    f"{other_setting} {other.text!r} listens there already; "
                    "give each endpoint an address of its own"
                )
        earlier.append((setting, string))
    return found


def _endpoints(settings: Config) -> list[tuple[str, str]]:
    """The endpoint strings, each with the key of its setting."""
    endpoints = [("listen", text) for text in settings.listen]
    return endpoints + ([("admin", settings.admin)] if settings.admin else [])

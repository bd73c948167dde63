"""One worker: the service behind sockets that the parent opened, and under its control.

The parent starts `main` in a new process. Signals go to the parent only: a terminal and systemd
send them to all processes of a group.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import traceback
from collections.abc import Iterator
from importlib import import_module
from typing import Any

from twisted.application.service import IService, ServiceMaker
from twisted.internet.defer import Deferred
from twisted.internet.protocol import Factory
from twisted.internet.task import deferLater
from twisted.logger import ILogObserver, Logger
from twisted.scripts import twistd

from topicsvc import logs
from topicsvc.config.digest import digest
from topicsvc.config.shares import share
from topicsvc.errors import ConfigError, WorkerUnavailable
from topicsvc.options import Options
from topicsvc.process.setup import CannotStart, fail_to_start, tune_gc, use_monotonic_clock
from topicsvc.service import PreparedReload, TopicService
from topicsvc.settings import Config
from topicsvc.workers.command import CONTROL, LOG, RELAY, WorkerArguments
from topicsvc.workers.control import (
    Members,
    WorkerEnd,
    encode_event,
    read_request,
    write_response,
)
from topicsvc.workers.identity import WorkerIdentity
from topicsvc.workers.relay import relay_to

__all__ = ["Worker", "main"]

ORPHAN_TIMEOUT = 1.5
"""Seconds that a worker may still take when its parent has ended."""

ORPHAN_GRACE = 1.0
"""Seconds of these for sends in flight and for the close frames of sessions."""

READY_GRACE = 5.0
"""Seconds for the first connection to the broker. An outage must not keep a worker from serving."""

READY_INTERVAL = 0.02
"""Seconds between two looks whether a worker is ready."""

FLUSH_TIME = 0.05
"""Seconds in which the reactor writes the last event to the control socket."""


def main() -> None:
    """Run one worker. The parent learns over the control socket why it cannot start.

    The command line ignores the signals that are for the parent only: see `IGNORED`.
    """
    arguments = WorkerArguments.parse(sys.argv[1:])
    control = socket.socket(fileno=CONTROL)
    try:
        if arguments.reactor:
            import_module(arguments.reactor).install()
        twistd.runApp(_configuration(arguments, control))
    except CannotStart as error:
        control.sendall(encode_event("failed", problems=error.problems, is_refused=True))
        sys.exit(1)
    except Exception:
        problem = f"internal error: {traceback.format_exc()}"
        control.sendall(encode_event("failed", problems=[problem], is_refused=False))
        sys.exit(1)


def _configuration(arguments: WorkerArguments, control: socket.socket) -> Any:
    """The options of twistd, with one command that makes the worker."""

    class WorkerOptions(Options):
        def __init__(self) -> None:
            super().__init__()
            self.directory = arguments.directory
            self.is_worker = True

    class Maker(ServiceMaker):
        options = WorkerOptions

        def makeService(self, options: Options) -> IService:
            return _make_service(options, arguments, control)

    maker = Maker("topicsvc", __name__, "", "topicsvc")

    class TwistdOptions(twistd.ServerOptions):  # type: ignore[misc, name-defined]
        @property
        def subCommands(self) -> Iterator[tuple[str, None, Any, str]]:
            self.loadedPlugins = {maker.tapname: maker}
            yield maker.tapname, None, maker.options, maker.description

    def log_observer() -> ILogObserver:
        if arguments.logger == RELAY:
            return relay_to(LOG)
        make = getattr(logs, arguments.logger)
        return logs.of_worker(make(), arguments.number)

    configuration = TwistdOptions()
    configuration.parseOptions(
        ["--nodaemon", "--pidfile=", "--no_save", maker.tapname, *arguments.options]
    )
    configuration["logger"] = log_observer
    return configuration


def _make_service(chosen: Options, arguments: WorkerArguments, control: socket.socket) -> IService:
    from twisted.internet import reactor

    use_monotonic_clock(reactor)

    def read() -> Config:
        return share(chosen.settings(), arguments.count)

    try:
        settings = read()
        service = TopicService(settings, reactor, sockets=arguments.sockets)
    except ConfigError as error:
        fail_to_start(error.problems)
    service.read_settings = read
    identity = WorkerIdentity.take(os.environ)
    service.join_log_of_workers(identity.number, arguments.count, identity.token_id_key)
    Worker(service, digest(settings), reactor, control)
    tune_gc()
    return service


class Worker:
    """Does what the parent wants.

    Args:
        service: the service.
        settings_digest: identifies its settings.
        reactor: the reactor.
        control: the socket to the parent.
    """

    _log = Logger()

    def __init__(
        self, service: TopicService, settings_digest: str, reactor: Any, control: socket.socket
    ) -> None:
        self._service = service
        self._digest = settings_digest
        self._reactor = reactor
        self._prepared: PreparedReload | None = None
        self._is_ending = False
        self._end = WorkerEnd(
            {
                "ping": lambda _: {},
                "get": self._get,
                "check": self._check,
                "apply": self._apply,
                "drop": self._drop,
                "drain": self._drain,
                "stop_at_once": self._stop_at_once,
            },
            self._orphaned,
        )
        service.on_stopped = self._tell_last_metrics
        control.setblocking(False)
        reactor.adoptStreamConnection(control.fileno(), socket.AF_UNIX, _One(self._end))
        reactor.callWhenRunning(self._running)

    def _running(self) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the reactor has set a handler
        self._tell_ready(self._reactor.seconds() + READY_GRACE)

    def _tell_ready(self, deadline: float) -> None:
        """Tell that it serves: when it has the broker, or at the deadline without.

        In a rolling restart the worker that serves so far stays until then.
        """
        if self._is_ending:
            return
        if self._service.is_ready or self._reactor.seconds() >= deadline:
            self._end.tell("ready", digest=self._digest)
        else:
            self._reactor.callLater(READY_INTERVAL, self._tell_ready, deadline)

    def _get(self, members: Members) -> Deferred[Members]:
        tree = self._service.admin_tree
        if tree is None:
            raise WorkerUnavailable("there is no admin endpoint")
        answering: Deferred[Any] = tree.respond(read_request(members))
        return answering.addCallback(write_response)

    def _check(self, _: Members) -> Members:
        self._prepared = None
        read = self._service.read_settings
        assert read is not None  # noqa: S101 - a worker has a file
        try:
            self._prepared = self._service.prepare_reload()
        except ConfigError as error:
            return {"problems": list(error.problems), "digest": ""}
        except Exception:
            self._log.failure("internal error: not reloaded")
            return {"problems": ["internal error: see the log of the worker"], "digest": ""}
        return {"problems": [], "digest": self._prepared.digest}

    def _apply(self, _: Members) -> Members:
        prepared, self._prepared = self._prepared, None
        if prepared is None:
            raise WorkerUnavailable("it has checked no settings")
        prepared.apply()
        return {"applied": prepared.applied, "needs_restart": prepared.needs_restart}

    def _drop(self, _: Members) -> Members:
        self._prepared = None
        return {}

    def _drain(self, members: Members) -> Members:
        self._service.hands_over = members["is_replaced"]
        self._stop()
        return {}

    def _stop_at_once(self, _: Members) -> Members:
        self._service.stop_at_once()
        return {}

    def _stop(self) -> None:
        if not self._is_ending:
            self._is_ending = True
            self._reactor.callWhenRunning(self._reactor.stop)

    def _tell_last_metrics(self) -> Deferred[None]:
        """Tell the parent what has been counted since it asked for the last time."""
        _, text = self._service.metrics.page("")
        self._end.tell("metrics", text=text.decode("utf-8"))
        return deferLater(self._reactor, FLUSH_TIME)

    def _orphaned(self) -> None:
        """The parent has ended, so nobody keeps the sockets and the log."""
        if self._service.has_stopped:
            return
        self._log.error("the parent process has ended: stopping at once")
        self._reactor.callLater(ORPHAN_TIMEOUT, os._exit, 1)
        self._reactor.callLater(ORPHAN_GRACE, self._service.stop_at_once)
        self._service.drain_at_once()
        self._stop()


class _One(Factory):
    """A factory of one protocol."""

    noisy = False

    def __init__(self, protocol: WorkerEnd) -> None:
        self._protocol = protocol

    def buildProtocol(self, addr: object) -> WorkerEnd:
        """See `twisted.internet.interfaces.IProtocolFactory`."""
        return self._protocol

"""Builds the service from a `Config`, and starts, reloads and stops it.

``twistd topicsvc`` calls `Options` and `makeService`.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from twisted.application.service import IService, Service
from twisted.internet.defer import (
    CancelledError,
    Deferred,
    gatherResults,
    inlineCallbacks,
    maybeDeferred,
)
from twisted.internet.interfaces import IListeningPort
from twisted.internet.task import deferLater
from twisted.logger import Logger
from zope.interface import implementer

from topicsvc import __version__, demo, logs
from topicsvc.admin.metrics import Metrics, Sources
from topicsvc.admin.pages import AdminTree
from topicsvc.admin.site import AdminSite
from topicsvc.admission.limits import Limits
from topicsvc.brokers.factory import make_broker
from topicsvc.config.changes import compare, log_reload
from topicsvc.config.digest import digest
from topicsvc.delivery.history import History
from topicsvc.delivery.hub import Hub
from topicsvc.errors import ConfigError
from topicsvc.explain import explain_listen_error
from topicsvc.interfaces import TokenValidator
from topicsvc.listening.listener import Listener
from topicsvc.options import MEMORY_BROKER_SHARED, Options, endpoint_problems
from topicsvc.printable import counted
from topicsvc.process.deadline_clock import DeadlineClock
from topicsvc.process.instances import SharedFile, running_instances, shares_port
from topicsvc.process.memory import MemoryTrimmer, malloc_trim
from topicsvc.process.reactor_lag import ReactorLag
from topicsvc.process.setup import fail_to_start, max_open_files, tune_gc, use_monotonic_clock
from topicsvc.process.signals import Signals
from topicsvc.process.systemd import SystemdNotifier
from topicsvc.scheduling.work_budget import WorkBudget
from topicsvc.settings import Config, LogSettings, MemorySettings, StopSettings
from topicsvc.validators.factory import ValidatorStack
from topicsvc.validators.stats import TokenCheckStats
from topicsvc.web.demo_page import DemoPage
from topicsvc.web.handshake import UpgradeResource
from topicsvc.web.metadata import MetadataResource
from topicsvc.web.refused_sends import RefusedSends
from topicsvc.web.send import SendResource
from topicsvc.web.site import WORK_PER_ITERATION, TopicSite, TopicTree
from topicsvc.websocket.messages import data_frame, positioned
from topicsvc.websocket.server import CLOSE_TIMEOUT, WebSocketServer
from topicsvc.workers.command import RELAY, WorkerArguments
from topicsvc.workers.parent import ParentService

__all__ = ["Options", "TopicService", "makeService"]

SENDS_GRACE = 3.0
"""Seconds that sends in flight may still take when the service stops."""

HANDOVER_GRACE = 0.5
"""Seconds in which connections that were accepted before the port was closed are still served, if
another worker has taken over the port."""

STOP_MARGIN = 5.0
"""Seconds for the other steps of a stop: not sends, drain or the last close handshake."""

_DEFAULT_REACTOR = "twisted.internet.epollreactor"

_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)

_POLL_INTERVAL = 0.01
"""Seconds between two checks whether all accepted messages are delivered."""


def makeService(options: Options) -> IService:
    """Make the service for ``twistd``; if a setting is wrong, end the process instead.

    Each problem is printed on one line.
    """
    from twisted.internet import reactor

    problem = logs.problem(getattr(options, "parent", None) or {})
    if problem is not None:
        fail_to_start([problem])
    use_monotonic_clock(reactor)
    try:
        settings = options.settings()
        if settings.workers > 1:
            return _make_parent(options, settings, reactor)
        service = TopicService(settings, reactor)
    except ConfigError as error:
        fail_to_start(error.problems)
    tune_gc()
    service.read_settings = (lambda: settings) if options["demo"] else options.settings
    if options["config"]:
        service.config_file = Path(options["config"])
    if options["demo"]:
        service.on_start = lambda ports: demo.announce(settings, ports, time.time())
        service.serve_demo_page(lambda: demo.new_token(settings, time.time()))
    return service


def _make_parent(options: Options, settings: Config, reactor: Any) -> IService:
    twistd = getattr(options, "parent", None) or {}
    if twistd.get("chroot"):
        fail_to_start(["--chroot: workers cannot be started in it; set workers = 1"])
    logger = twistd.get("logger")
    chosen = [
        f"--config={options['config']}",
        *(f"--listen={each}" for each in settings.listen),
        *([f"--admin={settings.admin}"] if settings.admin else []),
        f"--workers={settings.workers}",
    ]
    module = type(reactor).__module__

    def arguments(number: int) -> WorkerArguments:
        return WorkerArguments(
            number,
            settings.workers,
            len(settings.listen),
            options.directory,
            "" if module == _DEFAULT_REACTOR else module,
            logger.__name__ if logger in (logs.json_lines, logs.text_lines) else RELAY,
            tuple(chosen),
        )

    return ParentService(settings, arguments, options.settings, reactor, time.monotonic)


@dataclass(slots=True)
class PreparedReload:
    """Settings and certificates that have been read and can be applied.

    Attributes:
        digest: identifies the settings that were read.
        needs_restart: settings that have changed and stay as they are.
        applied: what has changed, once `apply` has been called.
    """

    digest: str
    needs_restart: tuple[str, ...]
    _apply: Callable[[], tuple[str, ...]]
    applied: tuple[str, ...] = ()

    def apply(self) -> None:
        """Apply them: new connections and new requests use them."""
        self.applied = self._apply()


@implementer(IService)
class TopicService(Service):
    """The whole service.

    It starts the broker first and the listeners last. It stops the listeners first, then the
    sessions, and the broker after them.

    Args:
        settings: all settings.
        reactor: the reactor, which is also the clock for durations and timers.
        now: returns the time of day, in seconds since the epoch; token expiry is measured by it.
        sockets: for each endpoint, a socket that the parent of this worker opened. The parent has
            the admin endpoint too. None: this process has no parent.

    Attributes:
        on_start: called with the ports when the service has started; None: nothing is called.
        on_stopped: called when it has stopped: the process ends when its result fires; None:
            nothing is called.
        read_settings: reads the settings again for a reload; None: no reload on SIGHUP.
        config_file: the file of the settings; None: there is none, as in a demo.
        hands_over: whether another worker has taken over the ports, so that a stop can close them
            first and refuse no connection.

    Raises:
        ConfigError: an endpoint cannot be used.
    """

    name = "topicsvc"
    _log = Logger()

    def __init__(
        self,
        settings: Config,
        reactor: Any,
        now: Callable[[], float] = time.time,
        sockets: Sequence[int] | None = None,
    ) -> None:
        self.on_start: Any = None
        self.on_stopped: Callable[[], Deferred[None]] | None = None
        self.read_settings: Callable[[], Config] | None = None
        self.config_file: Path | None = None
        self.hands_over = False
        self._is_worker = sockets is not None
        self._shared_file = SharedFile()
        self._settings = settings
        self._reactor = reactor
        self._now = now
        self._stopping: Deferred[None] | None = None
        self._signals = Signals(reactor)
        self._deadline_clock = DeadlineClock(reactor, time.process_time)
        self._notifier = SystemdNotifier(os.environ, reactor, time.monotonic)
        problems = endpoint_problems(settings, is_start=not self._is_worker)
        if problems:
            raise ConfigError(problems)
        self.broker = make_broker(settings.broker, reactor, now)
        self._check_stats = TokenCheckStats()
        self._validators = ValidatorStack(settings, reactor, now, self._check_stats)
        self._had_keys = False
        validator = self._validators.validator
        self.limits = Limits(reactor, now, settings.limits, max_open_files(), self._deadline_clock)
        history = History(settings.history, reactor) if settings.history.seconds else None
        self._hub = Hub(self.broker, reactor, now, data_frame, positioned, history)
        budget = WorkBudget(reactor, WORK_PER_ITERATION)
        self.websocket_server = WebSocketServer(
            validator,
            self._hub,
            reactor,
            now,
            settings.session,
            budget,
            WorkBudget(reactor, WORK_PER_ITERATION),
            settings.stop.drain,
            revocation=self._validators.revocation,
            limits=self.limits,
            deadline_clock=self._deadline_clock,
        )
        self.refused_sends = RefusedSends(reactor, self.websocket_server.context.token_ids)
        self._set_log(settings.log)
        self._send_resource = SendResource(
            settings.unit,
            self._validators.send_validator,
            self.broker,
            lambda: self._hub.is_full,
            now,
            settings.send.trust_via,
            settings.send.max_batch,
            self.refused_sends,
            self._validators.rights_validator,
        )
        self._metadata = MetadataResource(settings.unit, settings.validator)
        self._send_resource.metadata = self._metadata
        self._tree = TopicTree(
            settings.unit,
            UpgradeResource(settings.unit, self.websocket_server.new_connection),
            self._send_resource if settings.send.enabled else None,
            self._metadata,
        )
        self._site = TopicSite(
            self._tree,
            reactor,
            settings.send.max_body,
            self.limits,
            self.websocket_server.context.slow_consumers,
            budget,
            self._deadline_clock,
        )
        descriptors: Sequence[int | None] = sockets or [None] * len(settings.listen)
        self._listeners = [
            Listener("listen", text, self._site, reactor, settings.directory, descriptor)
            for text, descriptor in zip(settings.listen, descriptors, strict=True)
        ]
        self._admin_listeners: list[Listener] = []
        self._reactor_lag = ReactorLag(reactor)
        self._memory_trimmer = MemoryTrimmer(
            reactor, lambda: self.limits.connections.total, malloc_trim
        )
        self.metrics = Metrics(
            Sources(
                websocket_server=self.websocket_server,
                hub=self._hub,
                broker=self.broker,
                site=self._site,
                limits=self.limits,
                refused_sends=self.refused_sends,
                checks=self._check_stats,
                keys_age=lambda: self._validators.keys_age,
                certificate_expiry=self._certificate_expiry,
                lag=self._reactor_lag,
                kinds=lambda: {
                    "validator": self._settings.validator.kind,
                    "broker": self._settings.broker.kind,
                },
            )
        )
        self.admin_tree: AdminTree | None = None
        if settings.admin:
            self.admin_tree = AdminTree(
                self._health_parts,
                self.metrics,
                self.websocket_server,
                self._send_resource,
                reactor,
                settings.operator,
            )
        if self.admin_tree is not None and settings.admin and not self._is_worker:
            admin = AdminSite(self.admin_tree, reactor)
            self._admin_listeners.append(
                Listener("admin", settings.admin, admin, reactor, settings.directory)
            )

    def serve_demo_page(self, new_token: Callable[[], str]) -> None:
        """Serve the page of a demo; `new_token` makes a token for it."""
        self._site.resource = DemoPage(self._tree, self._settings.unit, new_token)

    @property
    def ports(self) -> list[IListeningPort]:
        """The listening ports, one for each endpoint, in the order of the settings."""
        listeners = [*self._listeners, *self._admin_listeners]
        return [listener.port for listener in listeners if listener.port is not None]

    def join_log_of_workers(self, number: int, workers: int, token_id_key: bytes) -> None:
        """Make the log of this worker one with the logs of the others. Called before the start.

        Args:
            number: of this worker among all that its parent has started, from 1 on.
            workers: how many there are at the same time.
            token_id_key: the key of the identifiers of tokens, the same for all workers.
        """
        context = self.websocket_server.context
        context.session_log.set_worker(number, workers)
        context.token_ids.use_key(token_id_key)

    @property
    def has_stopped(self) -> bool:
        """Whether a stop has ended."""
        return self._stopping is not None and self._stopping.called

    def _certificate_expiry(self) -> float | None:
        """When the first certificate in use expires; None: there is none."""
        listeners = [*self._listeners, *self._admin_listeners]
        expiries = [listener.certificate_expiry for listener in listeners]
        return min((expiry for expiry in expiries if expiry is not None), default=None)

    def privilegedStartService(self) -> None:
        """Bind the ports, while the process still has the right to bind those below 1024."""
        super().privilegedStartService()  # type: ignore[no-untyped-call]
        for listener in [*self._listeners, *self._admin_listeners]:
            try:
                listener.bind()
            except Exception as error:  # endpoints raise exceptions of many types
                why = explain_listen_error(error)
                fail_to_start([f"{listener.setting}: {listener.text}: {why}"])

    def startService(self) -> None:
        super().startService()  # type: ignore[no-untyped-call]
        if self.read_settings is not None and not self._is_worker:
            # Without these handlers the signals kill the process, so they are installed first.
            self._signals.handle(signal.SIGHUP, self.reload)
            self._signals.handle(signal.SIGUSR2, self._cannot_roll)
        self._deadline_clock.start()
        self._reactor_lag.startService()
        self._memory_trimmer.startService()
        self.broker.startService()
        self._validators.start()
        self.websocket_server.startService()
        for listener in [*self._listeners, *self._admin_listeners]:
            listener.start()
        if not self._is_worker:
            self._log.info(
                "topicsvc {version} serves {count} {ports}",
                version=__version__,
                count=len(self.ports),
                ports="port" if len(self.ports) == 1 else "ports",
            )
        self._warn_of_other_processes()
        if self.on_start is not None:
            self.on_start(self.ports)
        self._reactor.callWhenRunning(self._on_reactor_running)

    def _warn_of_other_processes(self) -> None:
        """Log each sign of another process, if the broker delivers inside this process only."""
        if not isinstance(self._settings.broker, MemorySettings):
            return
        for reason in self._other_processes():
            self._log.warn(
                "{problem}",
                problem=MEMORY_BROKER_SHARED.format(reason),
            )

    def _other_processes(self) -> Iterator[str]:
        if self.config_file is not None:
            with suppress(OSError):
                if self._shared_file.join(self.config_file):
                    yield f"another process uses {self.config_file}"
        template, count = running_instances()
        if count > 1:
            yield f"systemd runs {count} instances of {template}"
        for listener in self._listeners:
            if shares_port(listener.port):
                yield f"other processes may listen on {listener.text} too (SO_REUSEPORT)"

    def _on_reactor_running(self) -> None:
        """The reactor runs, and has installed its handlers of the signals that stop it."""
        if self._is_worker:
            return  # the parent gets them
        for number in _STOP_SIGNALS:
            self._signals.count(number)
        self._notifier.ready()

    def reload(self) -> None:
        """Read settings and certificates again, and apply them if none of them is wrong."""
        if self._stopping is not None or self.read_settings is None:
            return
        self._notifier.reloading()
        try:
            prepared = self.prepare_reload()
            prepared.apply()
            log_reload(self._log, prepared.applied, prepared.needs_restart)
        except ConfigError as error:
            for problem in error.problems:
                self._log.error(
                    "not reloaded, the old settings stay in effect: {problem}", problem=problem
                )
        except Exception:
            self._log.failure("internal error: not reloaded")
        finally:
            self._notifier.ready()

    def _cannot_roll(self) -> None:
        """SIGUSR2 replaces workers, and this process has none; by default it kills a process."""
        self._log.warn("SIGUSR2: a rolling restart needs workers: restart the service instead")

    def prepare_reload(self) -> PreparedReload:
        """Read settings and certificates again, without a change.

        Raises:
            ConfigError: a setting or a certificate cannot be used.
        """
        assert self.read_settings is not None  # noqa: S101 - checked by the caller
        settings = self.read_settings()
        changes = compare(self._settings, settings)
        certificates = self._read_certificates()
        validators = None
        if changes.validation:
            validators = ValidatorStack(
                changes.settings, self._reactor, self._now, self._check_stats
            )

        def apply() -> tuple[str, ...]:
            # Here nothing can fail.
            self._apply(changes.settings, validators)
            self._warn_of_other_processes()
            return (*changes.applied, *(replace() for replace in certificates))

        return PreparedReload(digest(settings), changes.needs_restart, apply)

    def _read_certificates(self) -> list[Callable[[], str]]:
        """Read the certificates of all endpoints; return the functions that put them in place.

        Raises:
            ConfigError: a certificate cannot be used.
        """
        replacements = []
        problems = []
        for listener in [*self._listeners, *self._admin_listeners]:
            try:
                replace = listener.read_certificates()
            except ValueError as error:
                problems.append(f"{listener.setting}: {listener.text!r}: {error}")
            else:
                if replace is not None:
                    replacements.append(replace)
        if problems:
            raise ConfigError(problems)
        return replacements

    @property
    def rights_validator(self) -> TokenValidator:
        """Finds out which rights a token has."""
        return self._validators.rights_validator

    def _apply(self, settings: Config, validators: ValidatorStack | None) -> None:
        keeps_protocol = settings.session == self._settings.session
        self._settings = settings
        if validators is not None:
            old, self._validators = self._validators, validators
            validators.start(old)
            # Checks in flight still finish with the old validator.
            old.stop().addErrback(
                lambda failure: self._log.failure("stopping the old validator failed", failure)
            )
        self.websocket_server.configure(
            self._validators.validator,
            settings.session,
            settings.stop.drain,
            self._validators.revocation,
            keeps_protocol,
        )
        self._set_log(settings.log)
        self._send_resource.configure(
            self._validators.send_validator,
            settings.send.trust_via,
            settings.send.max_batch,
            self._validators.rights_validator,
        )
        self._metadata.configure(settings.validator)
        self._tree.set_send(self._send_resource if settings.send.enabled else None)
        self._site.max_body = settings.send.max_body
        self.limits.settings = settings.limits
        if self.admin_tree is not None:
            self.admin_tree.configure(settings.operator)

    def _set_log(self, settings: LogSettings) -> None:
        self.websocket_server.context.session_log.has_subjects = settings.subjects
        self.refused_sends.has_subjects = settings.subjects

    def stopService(self) -> Deferred[None]:
        """Stop without losing accepted messages.

        A second signal aborts the stop.

        Returns:
            Fires when the service has stopped, or when stopping was aborted or took too long.
        """
        super().stopService()  # type: ignore[no-untyped-call]
        timeout = SENDS_GRACE + self._settings.stop.drain + CLOSE_TIMEOUT + STOP_MARGIN
        self._log.info(
            "stopping: {closed} closed within {drain} seconds",
            closed=counted(len(self.websocket_server), "session is", "sessions are"),
            sessions=len(self.websocket_server),
            drain=self._settings.stop.drain,
        )
        self._notifier.stopping(timeout)
        stopping: Deferred[None] = self._stop()
        self._stopping = stopping
        if not self._is_worker:
            for number in _STOP_SIGNALS:
                self._signals.handle_once(number, self.stop_at_once)

        def log_timeout(_: object, seconds: float) -> None:
            self._log.error("stopping took longer than {seconds} s: aborted", seconds=seconds)

        def finish(result: Any) -> Any:
            self._deadline_clock.stop()
            self._reactor_lag.stopService()
            self._memory_trimmer.stopService()
            self._shared_file.leave()
            self._signals.restore()
            self._notifier.stopped()
            return result if self.on_stopped is None else self.on_stopped()

        stopping.addTimeout(timeout, self._reactor, log_timeout)
        stopping.addErrback(lambda failure: failure.trap(CancelledError) and None)
        stopping.addBoth(finish)
        if self._signals.counted > 1:  # two signals arrived in one reactor iteration
            # After the iteration that closes the ports.
            self._reactor.callLater(0, self.stop_at_once)
        return stopping

    def drain_at_once(self) -> None:
        """Let a stop that begins later close all sessions at once."""
        self._settings = replace(self._settings, stop=StopSettings(drain=0))
        self.websocket_server.set_drain(0)

    def stop_at_once(self) -> None:
        """Abort a stop that is in progress."""
        if self._stopping is not None:
            self._log.warn("stopping at once: a second signal")
            self._stopping.cancel()

    @inlineCallbacks
    def _stop(self) -> Generator[Deferred[Any], Any, None]:
        """Stop the parts in order. The admin site stops last, and reports not ready until then."""
        if not self.hands_over:
            self._tree.drain()
        yield gatherResults([listener.stop() for listener in self._listeners])
        if self.hands_over:
            yield deferLater(self._reactor, HANDOVER_GRACE)
            self._tree.drain()
        yield self._wait_until_delivered()
        # Before the close frames: later messages would reach no session of this process.
        self._send_resource.cancel_pending()
        yield maybeDeferred(self.websocket_server.stopService)
        self._hub.stop()
        yield self._validators.stop()
        yield maybeDeferred(self.broker.stopService)
        yield gatherResults([listener.stop() for listener in self._admin_listeners])

    @inlineCallbacks
    def _wait_until_delivered(self) -> Generator[Deferred[Any], Any, None]:
        """Wait until all accepted messages are written to the sessions of this process.

        Waits at most `SENDS_GRACE` seconds, even if a validator or the broker hangs.
        """
        deadline = self._reactor.seconds() + SENDS_GRACE
        answered = self._send_resource.all_answered()
        while not answered.called and self._reactor.seconds() < deadline:
            yield deferLater(self._reactor, _POLL_INTERVAL)
        # An external broker returns an accepted message a moment later.
        while not self._is_delivered and self._reactor.seconds() < deadline:
            yield deferLater(self._reactor, _POLL_INTERVAL)

    @property
    def _is_delivered(self) -> bool:
        """Whether all accepted messages are written to the sessions of this process."""
        return self.broker.is_settled and self._hub.is_idle

    @property
    def is_ready(self) -> bool:
        """Whether new clients may be sent here; see ``/health/ready``."""
        return all(self._health_parts().values())

    def _health_parts(self) -> dict[str, bool]:
        """The parts that ``/health/ready`` reports, and whether each is ready.

        The part ``keys`` is there with JWTs only. It stays true: the service goes on while an
        issuer is down, and clients must not be sent elsewhere.
        """
        parts = {}
        if self._validators.key_sources:
            self._had_keys = self._had_keys or self._validators.has_keys
            parts["keys"] = self._had_keys
        return {
            **parts,
            "listening": len(self.ports) == len(self._listeners) + len(self._admin_listeners),
            "accepting": self._stopping is None,
            "broker": self.broker.is_up,
        }

"""The parent process: opens the sockets, starts the workers, and passes signals on to them.

It serves no clients. `topicsvc.workers.supervisor` decides what happens.
"""

from __future__ import annotations

import os
import secrets
import signal
from collections.abc import Callable, Iterable, Mapping, Sized
from dataclasses import dataclass
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, DeferredList, fail, gatherResults
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.process import reapAllProcesses
from twisted.logger import Logger
from twisted.python.failure import Failure

from topicsvc import __version__
from topicsvc.admin.site import AdminSite
from topicsvc.config.changes import keep_for_restart, log_reload
from topicsvc.errors import ConfigError, WorkerFailed, WorkerUnavailable
from topicsvc.explain import explain_listen_error
from topicsvc.listening.endpoint_string import with_absolute_paths
from topicsvc.listening.listener import Listener
from topicsvc.listening.shared_sockets import SharedSockets
from topicsvc.printable import counted
from topicsvc.process.setup import fail_to_start
from topicsvc.process.signals import Signals
from topicsvc.process.systemd import SystemdNotifier
from topicsvc.settings import Config
from topicsvc.validators.token_id import KEY_BYTES
from topicsvc.workers import supervisor as rules
from topicsvc.workers.admin_pages import AskedWorker, WorkersTree
from topicsvc.workers.command import WorkerArguments
from topicsvc.workers.control import Members, WorkerControl
from topicsvc.workers.identity import WorkerIdentity
from topicsvc.workers.process import WorkerProcess, worker_environment
from topicsvc.workers.supervisor import Effect, Supervisor

__all__ = ["ParentService"]

START_TIMEOUT = 120.0
"""Seconds in which all workers must be ready, and later each new one."""

CHECK_TIMEOUT = 60.0
"""Seconds in which a worker must have read its settings and certificates."""

DRAIN_MARGIN = 20.0
"""Seconds that the end of a worker may take, beyond `StopSettings.drain`."""

KILL_DELAY = 2.0
"""Seconds after a second signal in which a worker must have ended."""

_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_ITERATION = 0.05


@dataclass(frozen=True, slots=True)
class _OwnReload:
    """What the parent has read for a reload, and changes with the workers.

    Attributes:
        settings: all settings.
        replace_certificate: puts the new certificate of the admin endpoint in place, and returns
            what has changed, for the log; None: it has none.
    """

    settings: Config
    replace_certificate: Callable[[], str] | None = None


class ParentService(Service):
    """Starts the workers and keeps them running.

    Args:
        settings: all settings.
        arguments: makes the arguments of the worker with a number.
        read_settings: reads the settings again.
        reactor: the reactor.
        monotonic: returns the seconds of ``CLOCK_MONOTONIC``.
    """

    name = "topicsvc"
    _log = Logger()

    def __init__(
        self,
        settings: Config,
        arguments: Callable[[int], WorkerArguments],
        read_settings: Callable[[], Config],
        reactor: Any,
        monotonic: Callable[[], float],
    ) -> None:
        self._settings = settings
        self._arguments = arguments
        self._read_settings = read_settings
        self._reactor = reactor
        self._environment = worker_environment(os.environ)
        self._token_id_key = secrets.token_bytes(KEY_BYTES)
        self._signals = Signals(reactor)
        self._notifier = SystemdNotifier(os.environ, reactor, monotonic, self._probe)
        self._supervisor = Supervisor(settings.workers)
        self._processes: dict[int, WorkerProcess] = {}
        self._sockets: list[SharedSockets] = []
        self._admin_tree: WorkersTree | None = None
        self._admin: Listener | None = None
        if settings.admin:
            self._admin_tree = WorkersTree(
                self._asked_workers,
                settings.workers,
                lambda: self._supervisor.crashes,
                lambda: None if self._admin is None else self._admin.certificate_expiry,
                reactor,
                settings.operator,
            )
            site = AdminSite(self._admin_tree, reactor)
            self._admin = Listener("admin", settings.admin, site, reactor, settings.directory)
        self._failure: rules.Fail | None = None
        self._stopped: Deferred[None] = Deferred()
        self._closing: list[Deferred[None]] = []
        self._read = _OwnReload(settings)  # at the last SIGHUP
        self._checked_by_all = self._read  # of the reload in progress
        self._checks = 0
        self._is_stopping_at_once = False

    def _asked_workers(self) -> list[AskedWorker]:
        return [
            AskedWorker(worker, place, is_serving, self._processes[worker].control)
            for worker, place, is_serving in self._supervisor.have_been_ready
        ]

    @property
    def controls(self) -> Mapping[int, WorkerControl | None]:
        """By number, the control socket of each worker that serves; None: none serves now."""
        return {
            place: None if worker is None else self._processes[worker].control
            for place, worker in self._supervisor.serving.items()
        }

    def privilegedStartService(self) -> None:
        """Open the sockets, while the process still has the right to bind ports below 1024."""
        super().privilegedStartService()  # type: ignore[no-untyped-call]
        settings = self._settings
        for text in settings.listen:
            try:
                path = with_absolute_paths(text, settings.directory)
                self._sockets.append(SharedSockets(path, settings.workers, self._reactor))
            except Exception as error:  # endpoints raise exceptions of many types
                fail_to_start([f"listen: {text}: {explain_listen_error(error)}"])
        if self._admin is not None:
            try:
                self._admin.bind()
            except Exception as error:
                fail_to_start([f"admin: {settings.admin}: {explain_listen_error(error)}"])

    def startService(self) -> None:
        """Start the workers, and wait until all are ready: until then the start can fail."""
        super().startService()  # type: ignore[no-untyped-call]
        # Without these handlers the signals kill the process, so they are installed first.
        self._signals.handle(signal.SIGHUP, self.reload)
        self._signals.handle(signal.SIGUSR2, self.roll)
        self._do(self._supervisor.start())
        deadline = self._reactor.seconds() + START_TIMEOUT
        while not self._supervisor.is_started and self._failure is None:
            if self._reactor.seconds() > deadline:
                self._failure = rules.Fail(0, f"not ready within {START_TIMEOUT:.0f} s")
                break
            self._reactor.iterate(_ITERATION)
            reapAllProcesses()  # the reactor does it only when it runs
        if self._failure is not None:
            self._fail(self._failure)
        if self._admin is not None:
            self._admin.start()
        self._reactor.callWhenRunning(self._on_reactor_running)

    def _fail(self, failure: rules.Fail) -> None:
        for process in self._processes.values():
            process.kill()
        for each in self._sockets:
            each.close()
        self._reactor.iterate(0)  # removes the file of a UNIX socket
        who = f"worker {failure.place}" if failure.place else "the workers"
        fail_to_start([f"{who}: {failure.reason}"])

    def _on_reactor_running(self) -> None:
        """The reactor runs, and has installed its handlers of the signals that stop it."""
        for number in _STOP_SIGNALS:
            self._signals.count(number)
        self._notifier.ready()

    def _probe(self, seconds: float) -> Deferred[Any]:
        """Fires when all workers have answered.

        Fails if one has not within `seconds`, if no place has a worker that serves, or if one place
        has had none for longer than `seconds`, unless its settings keep it from starting. During a
        stop, workers end: only those that still run must answer.
        """
        answers: list[Deferred[Any]] = [
            control.call("ping", seconds) for control in self.controls.values() if control
        ]
        if not self._supervisor.is_stopping:
            if not answers:
                return fail(WorkerUnavailable("no worker serves"))
            if self._supervisor.unserved(self._reactor.seconds()) > seconds:
                answers.append(fail(WorkerUnavailable("a place has had no worker for too long")))
        return gatherResults(answers, consumeErrors=True)

    def reload(self) -> None:
        """Let all workers read settings and certificates, and change if no one has a problem."""
        if not self.running or self._supervisor.is_stopping:
            return
        self._notifier.reloading()
        try:
            self._read = _OwnReload(self._read_settings(), self._read_certificate())
        except ConfigError as error:
            self._log_problems(error.problems)
            self._notifier.ready()
        except Exception:
            self._log.failure("internal error: not reloaded")
            self._notifier.ready()
        else:
            self._do(self._supervisor.reload())

    def _read_certificate(self) -> Callable[[], str] | None:
        """Read the certificate of the admin endpoint; return the function that puts it in place.

        Raises:
            ConfigError: it cannot be used.
        """
        if self._admin is None:
            return None
        try:
            return self._admin.read_certificates()
        except ValueError as error:
            raise ConfigError([f"admin: {self._admin.text!r}: {error}"]) from error

    def roll(self) -> None:
        """Replace all workers, one after another."""
        if self.running and not self._supervisor.is_stopping:
            if self._supervisor.is_rolling:
                self._log.info("rolling restart: queued; it begins when the present one has ended")
            else:
                workers = _counted(self._supervisor.serving)
                self._log.info("rolling restart: {workers}", workers=workers)
            self._do(self._supervisor.roll())

    def stopService(self) -> Deferred[None]:
        """Drain all workers together. No new connections are accepted from now on.

        Returns:
            Fires when all workers have ended.
        """
        super().stopService()  # type: ignore[no-untyped-call]
        timeout = self._drain_timeout
        self._log.info("stopping: {workers}", workers=_counted(self._supervisor.alive))
        self._notifier.stopping(timeout)
        self._signals.handle_twice(_STOP_SIGNALS, self._stop_at_once, self._kill_all)
        self._do(self._supervisor.stop())
        # The workers have their own descriptors, and close them when they learn of the stop. From
        # then on a connection would wait here for the whole time of the stop.
        self._closing = [each.close() for each in self._sockets]
        if self._signals.counted > 1:  # two signals arrived in one reactor iteration
            self._reactor.callLater(0, self._stop_at_once)
        return self._stopped.addCallback(self._close)

    def _stop_at_once(self) -> None:
        if self._is_stopping_at_once:
            self._kill_all()
            return
        self._is_stopping_at_once = True
        self._log.warn("stopping at once: a second signal")
        for process in self._processes.values():
            _ignore(process.control.call("stop_at_once"))
        self._reactor.callLater(KILL_DELAY, self._kill_late)

    def _kill_late(self) -> None:
        """Kill the workers that a second signal has not ended: those that are blocked."""
        for process in self._processes.values():
            self._log.warn(
                "worker {number} has not ended within {seconds:g} s after the second signal: it "
                "is killed",
                number=process.number,
                seconds=KILL_DELAY,
            )
            process.kill()

    def _kill_all(self) -> None:
        """Kill all workers at a third signal, in its handler: none outlives its parent."""
        for process in list(self._processes.values()):
            process.kill()
        self._reactor.callFromThread(
            self._log.warn, "stopping at once: a third signal: the workers are killed"
        )

    def _close(self, _: None) -> Deferred[Any]:
        self._signals.restore()
        self._notifier.stopped()
        if self._admin is not None:
            self._closing.append(self._admin.stop())
        return gatherResults(self._closing)

    @property
    def _drain_timeout(self) -> float:
        return self._settings.stop.drain + DRAIN_MARGIN

    def _do(self, effects: Iterable[Effect]) -> None:
        for effect in effects:
            match effect:
                case rules.Start(worker, place):
                    self._start(worker, place)
                case rules.StartLater(place, delay):
                    self._reactor.callLater(delay, self._start_again, place)
                case rules.Refuse(place):
                    self._refuse(place)
                case rules.Drain(worker, is_replaced):
                    self._drain(worker, is_replaced)
                case rules.GiveUpLater(reload, delay):
                    self._reactor.callLater(delay, self._give_up, reload)
                case rules.Check() | rules.Apply() | rules.Drop():
                    self._go_on_with_reload(effect)
                case rules.Fail():
                    self._failure = effect
                case rules.Stopped():
                    self._stopped.callback(None)
                case _:
                    self._log_effect(effect)

    def _go_on_with_reload(self, effect: rules.Check | rules.Apply | rules.Drop) -> None:
        match effect:
            case rules.Check(workers):
                self._checked_by_all = self._read
                self._check(workers)
            case rules.Apply(workers):
                self._apply(workers)
            case rules.Drop(workers):
                for worker in workers:
                    _ignore(self._processes[worker].control.call("drop"))

    def _log_effect(self, effect: Effect) -> None:
        match effect:
            case rules.Started():
                count = len(self._settings.listen) + (self._admin is not None)
                self._log.info(
                    "topicsvc {version} serves {count} {ports} with {workers} workers",
                    version=__version__,
                    count=count,
                    ports="port" if count == 1 else "ports",
                    workers=len(self._supervisor.serving),
                )
            case rules.Crashed(place, reason, delay):
                self._log.error(
                    "worker {number} has ended: {reason}; the next one starts in {delay:.1f} s",
                    number=place,
                    reason=reason,
                    delay=delay,
                )
            case rules.OtherSettings(place):
                self._log.warn(
                    "worker {number} has started with other settings than the others have: reload",
                    number=place,
                )
            case rules.RollEnded():
                self._log.info("rolling restart: all workers are new")
                self._take_new_settings()
            case rules.RollFailed(place, reason):
                self._log.error(
                    "rolling restart: not continued, as a new worker {number} has failed: {reason}",
                    number=place,
                    reason=reason,
                )
            case rules.NotReloaded(problems):
                self._log_problems(problems)
                self._notifier.ready()

    def _take_new_settings(self) -> None:
        """Take over those of the new workers, which have read the settings again."""
        try:
            self._settings, _ = keep_for_restart(self._settings, self._read_settings())
        except ConfigError as error:
            self._log_problems(error.problems)
        else:
            if self._admin_tree is not None:
                self._admin_tree.configure(self._settings.operator)

    def _log_problems(self, problems: Iterable[str]) -> None:
        for problem in problems:
            self._log.error(
                "not reloaded, the old settings stay in effect: {problem}", problem=problem
            )

    def _start(self, worker: int, place: int) -> None:
        now = self._reactor.seconds
        deadline: IDelayedCall | None = None

        def cancel_deadline() -> None:
            if deadline is not None and deadline.active():
                deadline.cancel()

        def ready(digest: str) -> None:
            cancel_deadline()
            self._do(self._supervisor.ready(worker, digest, now()))

        def ended(reason: str, is_refused: bool) -> None:
            cancel_deadline()
            del self._processes[worker]
            self._do(self._supervisor.ended(worker, reason, now(), is_refused))

        def keep_metrics(text: str) -> None:
            if self._admin_tree is not None:
                self._admin_tree.keep_metrics(worker, text)

        process = WorkerProcess(self._arguments(place), self._reactor, ready, ended, keep_metrics)
        self._processes[worker] = process
        sockets = [each.descriptors[place - 1] for each in self._sockets]
        identity = WorkerIdentity(worker, self._token_id_key)
        if self._supervisor.is_started:  # before that, `startService` limits the time
            late = f"not ready within {START_TIMEOUT:.0f} s"
            deadline = self._reactor.callLater(START_TIMEOUT, process.kill, late)
        process.start(sockets, {**self._environment, **identity.environment()})

    def _refuse(self, place: int) -> None:
        """Let the sockets of a place refuse connections."""
        new = [each for each in self._sockets if each.refuse(place - 1)]
        if new:
            self._log.warn(
                "worker {number} cannot start: until it can, new connections go to the other "
                "workers only",
                number=place,
            )

    def _start_again(self, place: int) -> None:
        self._do(self._supervisor.start_again(place))

    def _drain(self, worker: int, is_replaced: bool) -> None:
        process = self._processes[worker]
        _ignore(process.control.call("drain", is_replaced=is_replaced))
        self._reactor.callLater(self._drain_timeout, process.kill)

    def _check(self, workers: Iterable[int]) -> None:
        self._checks += 1
        for worker in workers:
            process = self._processes[worker]
            checking = process.control.call("check", CHECK_TIMEOUT)
            checking.addErrback(_not_checked, process.number)
            checking.addCallback(self._checked, worker, self._checks)

    def _checked(self, answer: Members, worker: int, check: int) -> None:
        if check == self._checks:  # otherwise that reload was given up
            self._do(self._supervisor.checked(worker, answer["problems"], answer["digest"]))

    def _give_up(self, reload: int) -> None:
        self._do(self._supervisor.give_up(reload))

    def _apply(self, workers: Iterable[int]) -> None:
        own_reload = self._checked_by_all
        self._settings, waiting = keep_for_restart(self._settings, own_reload.settings)
        if self._admin_tree is not None:
            self._admin_tree.configure(self._settings.operator)
        own = []
        if own_reload.replace_certificate is not None:
            own.append(own_reload.replace_certificate())
        confirmed: list[Members] = []
        places = {worker: place for worker, place, _ in self._supervisor.have_been_ready}

        def done(_: Any) -> None:
            if confirmed:
                first = confirmed[0]
                waits = [*first["needs_restart"], *waiting]
                log_reload(self._log, [*first["applied"], *own], waits)
            elif own:
                log_reload(self._log, own, waiting)
            self._notifier.ready()

        answers = [
            self._processes[worker]
            .control.call("apply")
            .addCallbacks(
                confirmed.append, self._not_applied, errbackArgs=(worker, places.get(worker))
            )
            for worker in workers
        ]
        DeferredList(answers).addCallback(done)

    def _not_applied(self, failure: Failure, worker: int, place: int | None) -> None:
        failure.trap(WorkerUnavailable)
        if failure.check(WorkerFailed):
            self._log.error(
                "reloaded, but worker {number} has failed to: {reason}; another one takes its "
                "place",
                number=place,
                reason=str(failure.value),
            )
            self._do(self._supervisor.not_applied(worker))
        else:
            self._log.error(
                "reloaded, but worker {number} has not confirmed it: {reason}",
                number=place,
                reason=str(failure.value),
            )


def _not_checked(failure: Failure, number: int) -> Members:
    """The answer of a worker that has not checked. If it has ended, the supervisor learns that."""
    failure.trap(WorkerUnavailable)
    return {"problems": [f"worker {number}: {failure.value}"], "digest": ""}


def _counted(workers: Sized) -> str:
    return counted(len(workers), "worker", "workers")


def _ignore(answer: Deferred[Members]) -> None:
    """A worker that does not answer has ended, or will be killed."""
    answer.addErrback(lambda failure: failure.trap(WorkerUnavailable) and None)

"""Composition: plain wiring, from a `Config` to a running service.

`Options` and `makeService` are what ``twistd topicsvc`` calls.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Generator
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
from topicsvc.admin.site import AdminSite, AdminTree
from topicsvc.admission.limits import Limits
from topicsvc.brokers.factory import make_broker
from topicsvc.config.changes import Changes, compare
from topicsvc.delivery.hub import Hub
from topicsvc.errors import ConfigError
from topicsvc.explain import explain
from topicsvc.listening.listener import Listener
from topicsvc.options import Options, endpoint_problems
from topicsvc.process.memory import MemoryTrimmer, malloc_trim
from topicsvc.process.reactor_lag import ReactorLag
from topicsvc.process.setup import fail_to_start, max_open_files, tune_gc, use_monotonic_clock
from topicsvc.process.signals import Signals
from topicsvc.process.systemd import SystemdNotifier
from topicsvc.settings import (
    Config,
)
from topicsvc.validators.factory import ValidatorStack
from topicsvc.validators.stats import TokenCheckStats
from topicsvc.web.handshake import UpgradeResource
from topicsvc.web.send import SendResource
from topicsvc.web.site import TopicSite, TopicTree
from topicsvc.websocket.messages import data_frame
from topicsvc.websocket.server import CLOSE_TIMEOUT, WebSocketServer

__all__ = ["Options", "TopicService", "makeService"]


SENDS_GRACE = 3.0
"""Seconds that sends which are under way may take when the service stops."""

STOP_MARGIN = 5.0
"""Seconds for all that is neither a send, nor the drain, nor a close handshake."""

_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)

_TURN = 0.01


def makeService(options: Options) -> IService:
    """What ``twistd`` runs. A wrong setting ends the process with one line for each."""
    from twisted.internet import reactor

    wrong = logs.problem(getattr(options, "parent", None) or {})
    if wrong is not None:
        fail_to_start([wrong])
    use_monotonic_clock(reactor)
    try:
        settings = options.settings()
        service = TopicService(settings, reactor)
    except ConfigError as error:
        fail_to_start(error.problems)
    tune_gc()
    service.reread = (lambda: settings) if options["demo"] else options.settings
    if options["demo"]:
        service.on_start = lambda ports: demo.announce(settings, ports, time.time())
    return service


@implementer(IService)
class TopicService(Service):
    """The whole service: starts from the inside out, stops from the outside in.

    Args:
        settings: all settings.
        reactor: the reactor; also the clock, which measures how long something takes.
        now: the time of day, in seconds since the epoch: what expiry is measured by.

    Raises:
        ConfigError: endpoints cannot be made.
    """

    name = "topicsvc"
    _log = Logger()

    def __init__(
        self, settings: Config, reactor: Any, now: Callable[[], float] = time.time
    ) -> None:
        self.on_start: Any = None
        self.reread: Callable[[], Config] | None = None
        self._settings = settings
        self._reactor = reactor
        self._now = now
        self._stopping: Deferred[None] | None = None
        self._signals = Signals(reactor)
        self._notifier = SystemdNotifier(os.environ, reactor, time.monotonic)
        problems = endpoint_problems(settings)
        if problems:
            raise ConfigError(problems)
        self.broker = make_broker(settings.broker, reactor, now)
        self._checks = TokenCheckStats()
        self._validators = ValidatorStack(settings, reactor, now, self._checks)
        validator = self._validators.validator
        self.limits = Limits(reactor, now, settings.limits, max_open_files())
        self._hub = Hub(self.broker, reactor, now, data_frame)
        self.websocket_server = WebSocketServer(
            validator,
            self._hub,
            reactor,
            now,
            settings.session,
            settings.stop.drain,
            revocation=self._validators.revocation,
            limits=self.limits,
        )
        self._send = SendResource(
            settings.unit,
            validator,
            self.broker,
            lambda: self._hub.is_full,
            now,
            settings.send.trust_via,
        )
        self._tree = TopicTree(
            settings.unit,
            UpgradeResource(settings.unit, self.websocket_server.new_connection),
            self._send if settings.send.enabled else None,
        )
        self._site = TopicSite(self._tree, reactor, settings.send.max_body, self.limits)
        self._listeners = [
            Listener("listen", text, self._site, reactor) for text in settings.listen
        ]
        self._admin: list[Listener] = []
        self._lag = ReactorLag(reactor)
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
                checks=self._checks,
                lag=self._lag,
                kinds=lambda: {
                    "validator": self._settings.validator.kind,
                    "broker": self._settings.broker.kind,
                },
            )
        )
        if settings.admin:
            admin = AdminSite(AdminTree(self._parts, self.metrics), reactor)
            self._admin.append(Listener("admin", settings.admin, admin, reactor))

    @property
    def ports(self) -> list[IListeningPort]:
        """What is listening: one port for each endpoint, in the order of the settings."""
        listeners = [*self._listeners, *self._admin]
        return [listener.port for listener in listeners if listener.port is not None]

    def privilegedStartService(self) -> None:
        """Bind the ports, while the process may still take those below 1024."""
        super().privilegedStartService()  # type: ignore[no-untyped-call]
        for listener in [*self._listeners, *self._admin]:
            try:
                listener.bind()
            except Exception as error:  # whatever an endpoint raises
                fail_to_start([f"{listener.setting}: {listener.text}: {explain(error)}"])

    def startService(self) -> None:
        super().startService()  # type: ignore[no-untyped-call]
        if self.reread is not None:
            # Before anybody can know that we are there: until then SIGHUP kills.
            self._signals.handle(signal.SIGHUP, self.reload)
        self._lag.startService()
        self._memory_trimmer.startService()
        self.broker.startService()
        self.websocket_server.startService()
        for listener in [*self._listeners, *self._admin]:
            listener.start()
        self._log.info(
            "topicsvc {version} serves {count} {ports}",
            version=__version__,
            count=len(self.ports),
            ports="port" if len(self.ports) == 1 else "ports",
        )
        if self.on_start is not None:
            self.on_start(self.ports)
        self._reactor.callWhenRunning(self._running)

    def _running(self) -> None:
        """The reactor has taken up the signals that end it, and turns."""
        for number in _STOP_SIGNALS:
            self._signals.count(number)
        self._notifier.ready()

    def reload(self) -> None:
        """Read settings and certificates again and go over to them: all, or none of it."""
        if self._stopping is not None or self.reread is None:
            return
        self._notifier.reloading()
        try:
            self._reload(compare(self._settings, self.reread()))
        except ConfigError as error:
            for problem in error.problems:
                self._log.error("not reloaded, the old settings hold: {problem}", problem=problem)
        except Exception:
            self._log.failure("a fault of ours: not reloaded")
        finally:
            self._notifier.ready()

    def _reload(self, changes: Changes) -> None:
        replacements = self._read_certificates()
        validators = None
        if changes.validation:
            validators = ValidatorStack(changes.settings, self._reactor, self._now, self._checks)
        # From here on nothing can be wrong any more.
        self._go_over(changes.settings, validators)
        for what in changes.needs_restart:
            self._log.warn("{what}: needs a restart; the old value holds", what=what)
        taken = [*changes.applied, *(replace() for replace in replacements)]
        self._log.info("reloaded: {what}", what=", ".join(taken) or "nothing has changed")

    def _read_certificates(self) -> list[Callable[[], str]]:
        """What puts all certificates in place, once all of them are known to be good."""
        replacements = []
        problems = []
        for listener in [*self._listeners, *self._admin]:
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

    def _go_over(self, settings: Config, validators: ValidatorStack | None) -> None:
        self._settings = settings
        if validators is not None:
            old, self._validators = self._validators, validators
            # Checks that are under way there end there.
            old.stop().addErrback(lambda failure: self._log.failure("closing failed", failure))
        self.websocket_server.configure(
            self._validators.validator,
            settings.session,
            settings.stop.drain,
            self._validators.revocation,
        )
        self._send.configure(self._validators.validator, settings.send.trust_via)
        self._tree.set_send(self._send if settings.send.enabled else None)
        self._site.max_body = settings.send.max_body
        self.limits.settings = settings.limits

    def stopService(self) -> Deferred[None]:
        """Stop without losing anything; fires when that is done or has taken too long.

        A second signal ends it at once.
        """
        super().stopService()  # type: ignore[no-untyped-call]
        bound = SENDS_GRACE + self._settings.stop.drain + CLOSE_TIMEOUT + STOP_MARGIN
        self._log.info(
            "stopping: {sessions} sessions are closed within {drain} seconds",
            sessions=len(self.websocket_server),
            drain=self._settings.stop.drain,
        )
        self._notifier.stopping(bound)
        stopping: Deferred[None] = self._stop()
        self._stopping = stopping

        def hurry() -> None:
            self._log.warn("stopping at once: a second signal")
            stopping.cancel()

        for number in _STOP_SIGNALS:
            self._signals.handle_once(number, hurry)

        def too_late(_: object, seconds: float) -> None:
            self._log.error("stopping has taken {seconds} s: the rest is cut", seconds=seconds)

        def ended(result: Any) -> Any:
            self._lag.stopService()
            self._memory_trimmer.stopService()
            self._signals.restore()
            self._notifier.stopped()
            return result

        stopping.addTimeout(bound, self._reactor, too_late)
        stopping.addErrback(lambda failure: failure.trap(CancelledError) and None)
        stopping.addBoth(ended)
        if self._signals.counted > 1:  # the second came in the same turn as the first
            self._reactor.callLater(0, hurry)  # when the ports are closed, which takes a turn
        return stopping

    @inlineCallbacks
    def _stop(self) -> Generator[Deferred[Any], Any, None]:
        """From the outside in: the admin side answers to the end, and says that we stop."""
        self._tree.drain()
        yield gatherResults([listener.stop() for listener in self._listeners])
        yield self._accepted_is_delivered()
        # Before the close frames: what is accepted after them would reach nobody here.
        self._send.cancel_pending()
        yield maybeDeferred(self.websocket_server.stopService)
        yield self._validators.stop()
        yield maybeDeferred(self.broker.stopService)
        yield gatherResults([listener.stop() for listener in self._admin])

    @inlineCallbacks
    def _accepted_is_delivered(self) -> Generator[Deferred[Any], Any, None]:
        """Wait until what senders were told is taken is written to all sessions here.

        Not for ever: a validators or a broker that hangs holds nobody up for long.
        """
        until = self._reactor.seconds() + SENDS_GRACE
        answered = self._send.all_answered()
        while not answered.called and self._reactor.seconds() < until:
            yield deferLater(self._reactor, _TURN)
        # A broker outside brings back a moment later what it has taken.
        while not self._is_delivered and self._reactor.seconds() < until:
            yield deferLater(self._reactor, _TURN)

    @property
    def _is_delivered(self) -> bool:
        """Whether all that is accepted is written to the sessions here."""
        return self.broker.is_settled and self._hub.is_idle

    def _parts(self) -> dict[str, bool]:
        return {
            "listening": len(self.ports) == len(self._listeners) + len(self._admin),
            "accepting": self._stopping is None,
            "broker": self.broker.is_up,
        }

"""Composition: plain wiring, from a `Config` to a running service.

`Options` and `makeService` are what ``twistd topicsvc`` calls.
"""

from __future__ import annotations

import gc
import re
import resource
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any, ClassVar, NoReturn, Protocol

from twisted.application import strports
from twisted.application.internet import StreamServerEndpointService
from twisted.application.service import IService, Service
from twisted.internet.defer import Deferred, inlineCallbacks, maybeDeferred, succeed
from twisted.internet.endpoints import clientFromString
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IListeningPort, IProtocolFactory, IStreamServerEndpoint
from twisted.logger import Logger
from twisted.python import usage
from twisted.web.server import Site
from zope.interface import implementer

from topicsvc import __version__, config, demo
from topicsvc.brokers.memory import MemoryBroker
from topicsvc.config import (
    ActiveMQSettings,
    BrokerSettings,
    Config,
    IntrospectionSettings,
    MemorySettings,
    PersoniumSettings,
)
from topicsvc.errors import ConfigError
from topicsvc.hub import Hub
from topicsvc.limits import Limits
from topicsvc.ports import Broker, TokenValidator
from topicsvc.validators.agent import JudgeAgent
from topicsvc.validators.asking import Asker
from topicsvc.validators.cached import Cached
from topicsvc.validators.existing import ExistingTopics
from topicsvc.validators.in_time import InTime
from topicsvc.validators.introspection import IntrospectionValidator
from topicsvc.validators.limited import Limited
from topicsvc.validators.local import LocalValidator
from topicsvc.validators.outages import Outages
from topicsvc.validators.personium import PersoniumValidator
from topicsvc.validators.shared import Shared
from topicsvc.web.admin import admin_tree
from topicsvc.web.send import SendResource
from topicsvc.web.site import QuietChannel, TopicSite, TopicTree
from topicsvc.web.upgrade import UpgradeResource
from topicsvc.websocket import Connections, Revocation
from topicsvc.wire import data_frame

__all__ = ["Options", "TopicService", "makeService"]


GC_THRESHOLDS = (50_000, 20, 50)
"""Net allocations before a pass over the youngest objects, and passes before one over older."""

_PORT = re.compile(r"(?:^(?:haproxy:)?(?:tcp6?|ssl):|:port=)(\d+)")

_TLS_DIRECTORY = re.compile(r"tls:((?:\\.|[^:\\])+)")


class Options(usage.Options):
    """The command line of ``twistd topicsvc``."""

    synopsis = "[--config FILE] [--listen ENDPOINT]... [--admin ENDPOINT] [--demo]"
    longdesc = (
        "Serves the topics of Personium stream collections over WebSocket. "
        "docs/configuration.md explains the file."
    )
    optParameters: ClassVar = [
        ["config", "c", None, "Read the settings from this TOML file."],
        ["admin", "a", None, "Serve health on this endpoint, as in tcp:9090:interface=127.0.0.1."],
    ]
    optFlags: ClassVar = [
        ["demo", None, "Run alone, with a key and a token made on the spot."],
    ]

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self["listen"] = []

    def opt_listen(self, endpoint: str) -> None:
        """Serve clients on this endpoint, as in tcp:8080; may be repeated. Overrides the file."""
        self["listen"].append(endpoint)

    opt_l = opt_listen

    def opt_version(self) -> NoReturn:
        """Show the version and exit."""
        print(f"topicsvc {__version__}")
        sys.exit(0)

    def parseArgs(self, *rest: str) -> None:
        if rest:
            raise usage.UsageError(f"{rest[0]!r} is no option")

    def parseOptions(self, options: Any = None) -> None:
        try:
            super().parseOptions(options)  # type: ignore[no-untyped-call]
        except usage.UsageError as error:
            _give_up([str(error)])

    def postOptions(self) -> None:
        if self["demo"] and self["config"]:
            raise usage.UsageError("--demo and --config exclude each other")
        if not self["demo"] and not self["config"]:
            raise usage.UsageError(
                "nothing to run: give --config FILE, or try --demo (docs/configuration.md)"
            )

    def settings(self) -> Config:
        """The configuration that these options ask for.

        Raises:
            ConfigError: a setting cannot be used.
        """
        if self["demo"]:
            return demo.settings(self["listen"], self["admin"])
        return config.read(Path(self["config"]), self["listen"], self["admin"])


def makeService(options: Options) -> IService:
    """What ``twistd`` runs. A wrong setting ends the process with one line for each."""
    from twisted.internet import reactor

    try:
        settings = options.settings()
        service = TopicService(settings, reactor)
    except ConfigError as error:
        _give_up(error.problems)
    spare_the_garbage_collector()
    if options["demo"]:
        service.on_start = lambda ports: demo.announce(settings, ports, reactor.seconds())
    return service


def spare_the_garbage_collector() -> None:
    """Keep its full passes rare: with thousands of sessions one stops the world for 100 ms.

    What is loaded by now stays for good and is not looked at again. Sessions live long, and
    little of what they leave is circular.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)


@implementer(IService)
class TopicService(Service):
    """The whole service: starts from the inside out, stops from the outside in.

    Args:
        settings: all settings.
        reactor: the reactor; also the clock.

    Raises:
        ConfigError: an endpoint cannot be made.
    """

    name = "topicsvc"
    _log = Logger()

    def __init__(self, settings: Config, reactor: Any) -> None:
        self.on_start: Any = None
        self._stopping = False
        self.broker = _broker(settings.broker, reactor)
        self._judge = _Judge(settings, reactor)
        validator = self._judge.validator
        self.limits = Limits(reactor, settings.limits, _most_files())
        hub = Hub(self.broker, reactor, data_frame)
        self.connections = Connections(
            validator,
            hub,
            reactor,
            settings.session,
            settings.stop.drain,
            revocation=self._judge.revocation,
            limits=self.limits,
        )
        send = None
        if settings.send.enabled:
            send = SendResource(
                settings.unit, validator, self.broker, reactor, settings.send.trust_via
            )
        tree = TopicTree(
            settings.unit, UpgradeResource(settings.unit, self.connections.protocol), send
        )
        site = TopicSite(tree, reactor, settings.send.max_body, self.limits)
        self._listeners = [_Listener("listen", text, site, reactor) for text in settings.listen]
        if settings.admin:
            admin = _AdminSite(admin_tree(self._parts), reactor=reactor)
            self._listeners.append(_Listener("admin", settings.admin, admin, reactor))

    @property
    def ports(self) -> list[IListeningPort]:
        """What is listening: one port for each endpoint, in the order of the settings."""
        return [listener.port for listener in self._listeners if listener.port is not None]

    def privilegedStartService(self) -> None:
        """Bind the ports, while the process may still take those below 1024."""
        super().privilegedStartService()  # type: ignore[no-untyped-call]
        for listener in self._listeners:
            try:
                listener.service.privilegedStartService()
            except Exception as error:  # whatever an endpoint raises
                reason: object = error
                if isinstance(error, CannotListenError):
                    reason = getattr(error.socketError, "strerror", None) or error.socketError
                _give_up([f"{listener.setting}: {listener.text}: {reason}"])

    def startService(self) -> None:
        super().startService()  # type: ignore[no-untyped-call]
        self.broker.startService()
        self.connections.startService()
        for listener in self._listeners:
            listener.service.startService()
        self._log.info(
            "topicsvc {version} serves {count} ports", version=__version__, count=len(self.ports)
        )
        if self.on_start is not None:
            self.on_start(self.ports)

    @inlineCallbacks
    def stopService(self) -> Generator[Deferred[Any], Any, None]:
        super().stopService()  # type: ignore[no-untyped-call]
        self._stopping = True
        for listener in self._listeners:
            yield maybeDeferred(listener.service.stopService)
        yield maybeDeferred(self.connections.stopService)
        yield self._judge.stop()
        yield maybeDeferred(self.broker.stopService)

    def _parts(self) -> dict[str, bool]:
        return {
            "listening": len(self.ports) == len(self._listeners),
            "staying": not self._stopping,
            "broker": self.broker.is_up,
        }


class _Judge:
    """Who judges tokens, with all that stands around.

    From the outside in: which topics exist, what was granted a moment ago, what is under
    way, the log of outages, how many at once, how long at most; then the judge itself.

    Attributes:
        validator: for tokens that are shown.
        revocation: for those of live sessions; None: they are not looked at again.
    """

    _PERSONIUM_QUESTIONS = 3
    _RECHECKS_SHARE = 4

    def __init__(self, settings: Config, reactor: Any) -> None:
        self._settings = settings
        self._reactor = reactor
        self._agent: JudgeAgent | None = None
        checks = settings.checks
        fresh = self._fresh()
        validator = fresh
        if checks.cache:
            cached = Cached(fresh, reactor, checks.cache)
            validator, fresh = cached, cached.fresh
        if settings.topics and not isinstance(settings.validator, PersoniumSettings):
            validator = ExistingTopics(validator, settings.topics)
        self.validator = validator
        self.revocation: Revocation | None = None
        if checks.recheck:
            # Clients that wait for an answer come first.
            at_once = max(1, checks.concurrency // self._RECHECKS_SHARE)
            self.revocation = Revocation(fresh, checks.recheck, at_once)

    def stop(self) -> Deferred[None]:
        """Close the connections to the judge."""
        return succeed(None) if self._agent is None else self._agent.close()

    def _fresh(self) -> TokenValidator:
        judge: TokenValidator
        settings, checks, clock = self._settings.validator, self._settings.checks, self._reactor
        match settings:
            case PersoniumSettings():
                asker = self._asker(settings.authorities, self._PERSONIUM_QUESTIONS)
                judge = PersoniumValidator(
                    asker, settings.unit, settings.username, settings.password, clock
                )
            case IntrospectionSettings():
                judge = IntrospectionValidator(
                    self._asker(settings.authorities, 1),
                    settings.url,
                    settings.client_id,
                    settings.client_secret,
                    settings.rules,
                    clock,
                    settings.issuer,
                    settings.audience,
                )
            case _:
                return LocalValidator(settings.key, clock)
        limited = Limited(InTime(judge, clock, checks.timeout), clock, checks.concurrency)
        return Shared(Outages(limited, clock))

    def _asker(self, authorities: Any, questions: int) -> Asker:
        connections = questions * self._settings.checks.concurrency
        self._agent = JudgeAgent(self._reactor, authorities, connections)
        return Asker(self._agent)


class _BrokerService(Broker, Protocol):
    """A broker that is also a service."""

    def startService(self) -> None: ...
    def stopService(self) -> Any: ...


def _broker(settings: BrokerSettings, reactor: Any) -> _BrokerService:
    """The broker that the settings ask for.

    Raises:
        ConfigError: its endpoint cannot be made.
    """
    match settings:
        case MemorySettings():
            return MemoryBroker()
        case ActiveMQSettings(endpoint, login, closes_on_loss):
            from topicsvc.brokers.activemq import ActiveMQBroker

            try:
                client = clientFromString(reactor, endpoint)
            except Exception as error:  # whatever a parser of endpoints raises
                raise ConfigError(
                    [
                        f"broker.endpoint: {endpoint!r}: {error}; "
                        'allowed: "tcp:localhost:61613" or "tls:broker.example:61614"'
                    ]
                ) from error
            return ActiveMQBroker(client, reactor, login, closes_on_loss)


class _Listener:
    """One endpoint of the settings and what listens on it."""

    def __init__(self, setting: str, text: str, factory: IProtocolFactory, reactor: Any) -> None:
        self.setting = setting
        self.text = text
        self.port: IListeningPort | None = None
        try:
            _look_at_port(text)
            _look_for_certificates(text)
            self.service: StreamServerEndpointService = strports.service(text, factory, reactor)
        except Exception as error:  # whatever a parser of endpoints raises
            raise ConfigError(
                [f"{setting}: {text!r}: {error}; allowed: a Twisted endpoint, tcp:8080"]
            ) from error
        self.service.endpoint = _Noting(self.service.endpoint, self)


@implementer(IStreamServerEndpoint)
class _Noting:
    """An endpoint that remembers its port."""

    def __init__(self, endpoint: IStreamServerEndpoint, listener: _Listener) -> None:
        self._endpoint = endpoint
        self._listener = listener

    def listen(self, factory: IProtocolFactory) -> Deferred[IListeningPort]:
        def note(port: IListeningPort) -> IListeningPort:
            self._listener.port = port
            return port

        return self._endpoint.listen(factory).addCallback(note)


def _look_at_port(endpoint: str) -> None:
    """Complain of a port number that is none: Twisted would when it listens.

    Raises:
        ValueError: there is no such port.
    """
    for found in _PORT.finditer(endpoint):
        if int(found[1]) > 65535:
            raise ValueError(f"{found[1]} is no port, 0 to 65535")


def _look_for_certificates(endpoint: str) -> None:
    """Complain of a ``tls:`` directory without certificates: Twisted would serve none.

    Raises:
        ValueError: there are none.
    """
    match = _TLS_DIRECTORY.match(endpoint)
    if match is not None:
        directory = Path(match[1].replace("\\:", ":"))
        if not any(directory.glob("**/*.pem")):
            raise ValueError(f"no .pem file in {directory}")


def _most_files() -> int | None:
    """How many files this process may have open; None: any number."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return None if soft == resource.RLIM_INFINITY else soft


class _AdminSite(Site):
    """The admin side; probes are not worth a line of log each."""

    protocol = QuietChannel  # type: ignore[assignment]

    def log(self, request: Any) -> None:
        pass


class CannotStart(SystemExit, Exception):
    """Ends the process with exit code 1 and its text on standard error.

    It is an ordinary exception as well, because only such does a twistd that has become a
    daemon tell the process that waits for it.
    """

    __module__ = "builtins"  # of what a daemon tells, the first 100 bytes arrive


def _give_up(problems: Any) -> NoReturn:
    """End the process: each problem on one line of standard error."""
    raise CannotStart("\n".join(f"topicsvc: {problem}" for problem in problems))

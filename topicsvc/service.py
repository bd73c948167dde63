"""Composition: plain wiring, from a `Config` to a running service.

`Options` and `makeService` are what ``twistd topicsvc`` calls.
"""

from __future__ import annotations

import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any, ClassVar, NoReturn, Protocol

from twisted.application import strports
from twisted.application.internet import StreamServerEndpointService
from twisted.application.service import IService, Service
from twisted.internet.defer import Deferred, inlineCallbacks, maybeDeferred
from twisted.internet.endpoints import clientFromString
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IListeningPort, IProtocolFactory, IStreamServerEndpoint
from twisted.logger import Logger
from twisted.python import usage
from twisted.web.server import Site
from zope.interface import implementer

from topicsvc import __version__, config, demo
from topicsvc.brokers.memory import MemoryBroker
from topicsvc.config import ActiveMQSettings, BrokerSettings, Config, MemorySettings
from topicsvc.errors import ConfigError
from topicsvc.hub import Hub
from topicsvc.ports import Broker, TokenValidator
from topicsvc.validators.existing import ExistingTopics
from topicsvc.validators.local import LocalValidator
from topicsvc.web.admin import admin_tree
from topicsvc.web.send import SendResource
from topicsvc.web.site import TopicSite, TopicTree
from topicsvc.web.upgrade import UpgradeResource
from topicsvc.websocket import Connections
from topicsvc.wire import data_frame

__all__ = ["Options", "TopicService", "makeService"]


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
    if options["demo"]:
        service.on_start = lambda ports: demo.announce(settings, ports, reactor.seconds())
    return service


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
        validator: TokenValidator = LocalValidator(settings.validator.key, reactor)
        if settings.topics:
            validator = ExistingTopics(validator, settings.topics)
        hub = Hub(self.broker, reactor, data_frame)
        self.connections = Connections(
            validator, hub, reactor, settings.session, settings.stop.drain
        )
        send = None
        if settings.send.enabled:
            send = SendResource(
                settings.unit, validator, self.broker, reactor, settings.send.trust_via
            )
        tree = TopicTree(
            settings.unit, UpgradeResource(settings.unit, self.connections.protocol), send
        )
        site = TopicSite(tree, reactor, settings.send.max_body)
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
            except CannotListenError as error:
                _give_up([f"{listener.setting}: {listener.text}: {error.socketError}"])

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
        yield maybeDeferred(self.broker.stopService)

    def _parts(self) -> dict[str, bool]:
        return {
            "listening": len(self.ports) == len(self._listeners),
            "staying": not self._stopping,
            "broker": self.broker.is_up,
        }


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


class _AdminSite(Site):
    """The admin side; probes are not worth a line of log each."""

    def log(self, request: Any) -> None:
        pass


def _give_up(problems: Any) -> NoReturn:
    """End the process: each problem on one line of standard error."""
    sys.exit("\n".join(f"topicsvc: {problem}" for problem in problems))

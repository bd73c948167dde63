"""Makes the broker that the settings name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from twisted.internet.endpoints import HostnameEndpoint, clientFromString, wrapClientTLS
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.ssl import optionsForClientTLS

from topicsvc.brokers.memory import MemoryBroker
from topicsvc.errors import ConfigError
from topicsvc.explain import explain_endpoint_error
from topicsvc.interfaces import Broker
from topicsvc.settings import (
    ActiveMQSettings,
    BrokerSettings,
    KafkaSettings,
    MemorySettings,
    RedisSettings,
)

__all__ = ["BrokerService", "broker_address", "make_broker"]


class BrokerService(Broker, Protocol):
    """A broker that is also a Twisted service."""

    @property
    def last_error(self) -> str:
        """The last known reason why the broker is not up; empty if there is none."""
        ...

    @property
    def limitation(self) -> str:
        """What does not work, although the broker is up; empty if all works."""
        ...

    def startService(self) -> None: ...
    def stopService(self) -> Any: ...


def make_broker(settings: BrokerSettings, reactor: Any, now: Callable[[], float]) -> BrokerService:
    """Make the broker that `settings` name.

    Raises:
        ConfigError: the endpoint of the broker cannot be made.
    """
    match settings:
        case MemorySettings():
            return MemoryBroker()
        case ActiveMQSettings(endpoint, login, closes_on_loss):
            from topicsvc.brokers.activemq.broker import ActiveMQBroker

            try:
                client = clientFromString(reactor, endpoint)
            except Exception as error:  # a parser of endpoints may raise any exception
                raise ConfigError(
                    [
                        f"broker.endpoint: {endpoint!r}: {explain_endpoint_error(error)}; "
                        'allowed: "tcp:localhost:61613" or "tls:broker.example:61614"'
                    ]
                ) from error
            where = broker_address(settings)
            return ActiveMQBroker(client, reactor, now, login, closes_on_loss, where=where)
        case KafkaSettings():
            from topicsvc.brokers.kafka.broker import KafkaBroker
            from topicsvc.brokers.kafka.options import connection_options

            options = connection_options(settings.bootstrap, settings.login, settings.authorities)
            return KafkaBroker(options, reactor, now, settings.history, settings.closes_on_loss)
        case RedisSettings():
            from topicsvc.brokers.redis.broker import RedisBroker
            from topicsvc.brokers.redis.client import Session

            return RedisBroker(
                _redis_endpoint(settings, reactor),
                reactor,
                Session(settings.login, settings.database),
                settings.prefix,
                settings.history,
                settings.closes_on_loss,
                where=broker_address(settings),
            )


def broker_address(settings: BrokerSettings) -> str:
    """Where the broker is, for people: without user name and password. Empty: in memory."""
    match settings:
        case MemorySettings():
            return ""
        case ActiveMQSettings():
            return settings.endpoint
        case KafkaSettings():
            return settings.bootstrap
        case RedisSettings():
            host = f"[{settings.host}]" if ":" in settings.host else settings.host
            return f"{host}:{settings.port}"


def _redis_endpoint(settings: RedisSettings, reactor: Any) -> IStreamClientEndpoint:
    endpoint = HostnameEndpoint(reactor, settings.host, settings.port)
    if not settings.is_tls:
        return endpoint
    options = optionsForClientTLS(settings.host, trustRoot=settings.authorities)
    tls: IStreamClientEndpoint = wrapClientTLS(options, endpoint)
    return tls

"""Composition: all settings, as frozen values.

docs/configuration.md explains each. How they are read, and what is said of wrong ones, is in
the modules beside.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from topicsvc.admission.limits import LimitSettings
from topicsvc.brokers.login import Login
from topicsvc.topics import TopicPattern, Unit
from topicsvc.validators.introspection import Rule
from topicsvc.websocket.server import SessionSettings

__all__ = [
    "DAY",
    "MEBIBYTE",
    "ActiveMQSettings",
    "BrokerSettings",
    "CheckSettings",
    "Config",
    "IntrospectionSettings",
    "KafkaSettings",
    "LocalSettings",
    "MemorySettings",
    "PersoniumSettings",
    "SendSettings",
    "StopSettings",
    "ValidatorSettings",
]

DAY = 86400
MEBIBYTE = 1048576


@dataclass(frozen=True, slots=True)
class SendSettings:
    """Whether and how data is taken over HTTP; lengths in bytes."""

    enabled: bool = True
    max_body: int = MEBIBYTE
    trust_via: bool = False


@dataclass(frozen=True, slots=True)
class LocalSettings:
    """Tokens are judged here, with this key."""

    kind: ClassVar = "local"
    key: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class PersoniumSettings:
    """Tokens are judged by a Personium unit.

    Attributes:
        unit: its HTTP API.
        authorities: who vouches for its certificate; None: whom the system trusts.
    """

    kind: ClassVar = "personium"
    unit: Unit
    username: str
    password: str = field(repr=False)
    authorities: Any = None


@dataclass(frozen=True, slots=True)
class IntrospectionSettings:
    """Tokens are judged by an OAuth 2.0 server with introspection.

    Attributes:
        authorities: who vouches for its certificate; None: whom the system trusts.
        issuer: who must have made a token; None: not looked at.
        audience: for whom it must have been made; None: not looked at.
    """

    kind: ClassVar = "introspection"
    url: str
    client_id: str
    client_secret: str = field(repr=False)
    rules: tuple[Rule, ...]
    authorities: Any = None
    issuer: str | None = None
    audience: str | None = None


ValidatorSettings = PersoniumSettings | IntrospectionSettings | LocalSettings


@dataclass(frozen=True, slots=True)
class CheckSettings:
    """How tokens are checked, whoever judges them; times in seconds.

    Attributes:
        timeout: for one whole check.
        concurrency: checks under way at once.
        cache: how long a grant may be reused; 0: it is not.
        recheck: between two checks of a live session; 0: there is one, at its start.
    """

    timeout: float = 10
    concurrency: int = 32
    cache: float = 0
    recheck: float = 0


@dataclass(frozen=True, slots=True)
class MemorySettings:
    """Messages stay in this process."""

    kind: ClassVar = "memory"


@dataclass(frozen=True, slots=True)
class ActiveMQSettings:
    """Messages go through ActiveMQ.

    Attributes:
        endpoint: endpoint string of its STOMP transport, ``tcp:`` or ``tls:``.
        login: who we are to it; None: nobody in particular.
        closes_on_loss: whether sessions are closed when the broker is lost.
    """

    kind: ClassVar = "activemq"
    endpoint: str
    login: Login | None = None
    closes_on_loss: bool = False


@dataclass(frozen=True, slots=True)
class KafkaSettings:
    """Messages go through Kafka.

    Attributes:
        bootstrap: ``host:port`` of some of its servers, joined by commas.
        login: who we are to it; None: nobody in particular.
        authorities: who vouches for its certificate, in PEM; None: TLS is not spoken.
        closes_on_loss: whether sessions are closed when the broker is lost.
    """

    kind: ClassVar = "kafka"

    bootstrap: str
    login: Login | None = None
    authorities: str | None = None
    closes_on_loss: bool = False


BrokerSettings = MemorySettings | ActiveMQSettings | KafkaSettings


@dataclass(frozen=True, slots=True)
class StopSettings:
    """How the service ends; times in seconds."""

    drain: float = 5


@dataclass(frozen=True, slots=True)
class Config:
    """All settings; docs/configuration.md explains each.

    Attributes:
        listen: endpoint strings to serve clients on, at least one.
        admin: endpoint string of the admin side; None: off.
        unit: the unit's own name and the hosts that are served.
        topics: which topics exist, for validators that cannot ask; empty: all.
    """

    listen: tuple[str, ...]
    unit: Unit
    validator: ValidatorSettings
    admin: str | None = None
    topics: tuple[TopicPattern, ...] = ()
    checks: CheckSettings = field(default_factory=CheckSettings)
    session: SessionSettings = field(default_factory=SessionSettings)
    send: SendSettings = field(default_factory=SendSettings)
    broker: BrokerSettings = field(default_factory=MemorySettings)
    limits: LimitSettings = field(default_factory=LimitSettings)
    stop: StopSettings = field(default_factory=StopSettings)

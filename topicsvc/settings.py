"""Composition: all settings, as frozen values.

docs/configuration.md explains each. How they are read, and what is said of wrong ones, is in
the modules beside.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network
from typing import Any, ClassVar, Literal

from topicsvc.topics import TopicAddress, TopicPattern, Unit

__all__ = [
    "DAY",
    "MEBIBYTE",
    "ActiveMQSettings",
    "BrokerSettings",
    "CheckSettings",
    "Config",
    "IntrospectionSettings",
    "KafkaSettings",
    "LimitSettings",
    "LocalSettings",
    "Login",
    "MemorySettings",
    "Network",
    "PersoniumSettings",
    "Rule",
    "SendSettings",
    "SessionSettings",
    "StopSettings",
    "Timestamps",
    "ValidatorSettings",
]

DAY = 86400
MEBIBYTE = 1048576

Timestamps = Literal["seconds", "milliseconds"]
Network = IPv4Network | IPv6Network


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
class Login:
    """User name and password."""

    username: str
    password: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class LimitSettings:
    """What an operator may set about bounds; see docs/configuration.md. 0: no bound.

    Attributes:
        connections: in all; 0: see `Limits.max_connections`.
        per_address: connections.
        waiting: connections that have not shown a live token; see `Limits.max_unauthenticated`.
        unauthenticated_per_address: the same, of one address.
        accepts_per_second: new connections.
        failed_tokens_per_minute: of one address, whatever the topic.
        messages_per_minute: of one session; its pings are counted apart, up to the same number.
        frames_per_message: that a client's message may be cut into.
        queued_bytes: for all slow readers together.
        trusted_proxies: whose forwarded headers are believed.
        allowed_origins: of pages that may connect, as `topicsvc.admission.origins` writes them;
            empty: any.
    """

    connections: int = 0
    per_address: int = 0
    unauthenticated: int = 1000
    unauthenticated_per_address: int = 100
    accepts_per_second: int = 0
    failed_tokens_per_minute: int = 30
    messages_per_minute: int = 60
    frames_per_message: int = 128
    queued_bytes: int = 268435456
    trusted_proxies: tuple[Network, ...] = ()
    allowed_origins: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class SessionSettings:
    """What an operator may set about a session; see docs/configuration.md.

    Attributes:
        token_timeout: seconds to present a live token.
        ping_interval: seconds between two pings of a connection.
        ping_limit: unanswered pings in a row that end it.
        max_message: most bytes of a client's message.
        send_queue: most bytes that wait for one slow reader.
        timestamps: the unit of ``Timestamp`` in replies.
    """

    token_timeout: float = 60
    ping_interval: float = 60
    ping_limit: int = 10
    max_message: int = 65536
    send_queue: int = 1048576
    timestamps: Timestamps = "seconds"


@dataclass(frozen=True, slots=True)
class Rule:
    """What a scope is good for.

    Attributes:
        scope: one scope of a token.
        topics: where.
        may: ``receive``, ``send`` or both.
    """

    scope: str
    topics: tuple[TopicPattern, ...]
    may: frozenset[str]

    def rights(self, scopes: frozenset[str], topic: TopicAddress) -> frozenset[str]:
        """What this rule lets a token with `scopes` do on `topic`."""
        if self.scope in scopes and any(pattern.matches(topic) for pattern in self.topics):
            return self.may
        return frozenset()


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

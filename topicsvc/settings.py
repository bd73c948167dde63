"""All settings, as frozen values.

docs/configuration.md explains each setting. `topicsvc.config` reads them from TOML and reports
invalid ones.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Any, ClassVar, Literal

from topicsvc.topics import SubjectPattern, TopicPattern, Unit

__all__ = [
    "DAY",
    "JWT_ALGORITHMS",
    "MEBIBYTE",
    "ActiveMQSettings",
    "BrokerSettings",
    "CheckSettings",
    "Config",
    "HistorySettings",
    "IntrospectionSettings",
    "IssuerSettings",
    "JwtSettings",
    "KafkaSettings",
    "LimitSettings",
    "LocalSettings",
    "LogSettings",
    "Login",
    "MemorySettings",
    "Network",
    "OperatorSettings",
    "PersoniumSettings",
    "RedisSettings",
    "Rule",
    "SendSettings",
    "SessionSettings",
    "StopSettings",
    "Timestamps",
    "ValidatorSettings",
]

DAY = 86400
MEBIBYTE = 1048576

JWT_ALGORITHMS = (
    "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA",
    "Ed25519",
)  # fmt: skip
"""Signature algorithms of JWTs, all asymmetric (RFC 7518, RFC 8037, RFC 9864)."""

Timestamps = Literal["seconds", "milliseconds"]
Network = IPv4Network | IPv6Network


@dataclass(frozen=True, slots=True)
class SendSettings:
    """Sending over HTTP; `max_body` in bytes, `max_batch` in messages of one request."""

    enabled: bool = True
    max_body: int = MEBIBYTE
    max_batch: int = 10000
    trust_via: bool = False


@dataclass(frozen=True, slots=True)
class LocalSettings:
    """Tokens are validated in this process, with `key`."""

    kind: ClassVar = "local"
    key: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class PersoniumSettings:
    """Tokens are validated by a Personium unit.

    Attributes:
        unit: the unit's URLs.
        authorities: trusted certificate authorities; None: the system's.
    """

    kind: ClassVar = "personium"
    unit: Unit
    username: str
    password: str = field(repr=False)
    authorities: Any = None


@dataclass(frozen=True, slots=True)
class IntrospectionSettings:
    """Tokens are validated by an OAuth 2.0 server with introspection (RFC 7662).

    Attributes:
        authorities: trusted certificate authorities; None: the system's.
        issuer: required ``iss``; None: not checked.
        audience: required ``aud``; None: not checked.
    """

    kind: ClassVar = "introspection"
    url: str
    client_id: str
    client_secret: str = field(repr=False)
    rules: tuple[Rule, ...]
    authorities: Any = None
    issuer: str | None = None
    audience: str | None = None


@dataclass(frozen=True, slots=True)
class IssuerSettings:
    """One issuer of JWTs; docs/configuration.md explains each setting. Times in seconds.

    Attributes:
        issuer: the required ``iss``.
        audience: allowed audiences, of which a token must name one.
        jwks_url: where its keys are; None: discovery, or `jwks`.
        jwks: its keys, as `topicsvc.validators.jwt.keys` reads them; None: they are fetched.
        audience_claim: the claim that names the audience.
        algorithms: allowed signature algorithms.
        token_types: allowed ``typ``; an empty text allows a token without ``typ``.
        leeway: by how much ``nbf`` may be in the future.
        scope_claims: the claims with scopes.
        subject_claim: the claim with the subject.
        max_age: time between two fetches of the keys.
        stale: how long the last keys are used while they cannot be fetched.
        details_type: ``type`` of the ``authorization_details`` that are read; None: none.
        authorities: trusted certificate authorities; None: the system's.
    """

    issuer: str
    audience: tuple[str, ...]
    jwks_url: str | None = None
    jwks: bytes | None = None
    audience_claim: str = "aud"
    algorithms: tuple[str, ...] = JWT_ALGORITHMS
    token_types: tuple[str, ...] = ("at+jwt",)
    leeway: float = 10
    scope_claims: tuple[str, ...] = ("scope", "scp")
    subject_claim: str = "sub"
    max_age: float = 3600
    stale: float = DAY
    details_type: str | None = None
    authorities: Any = None


@dataclass(frozen=True, slots=True)
class JwtSettings:
    """Tokens are JWTs, and are validated in this process with the public keys of their issuers.

    Attributes:
        issuers: the allowed issuers, at least one.
        rules: which tokens have which rights.
    """

    kind: ClassVar = "jwt"
    issuers: tuple[IssuerSettings, ...]
    rules: tuple[Rule, ...]


ValidatorSettings = PersoniumSettings | IntrospectionSettings | LocalSettings | JwtSettings


@dataclass(frozen=True, slots=True)
class CheckSettings:
    """How tokens are checked, for every kind of validator; times in seconds.

    Attributes:
        timeout: most time for one check.
        concurrency: most checks in progress.
        cache: how long a grant may be reused; 0: not at all.
        recheck: time between two checks of a session's token; 0: it is not checked again.
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
        endpoint: endpoint string of the broker's STOMP transport, ``tcp:`` or ``tls:``.
        login: user name and password; None: no login.
        closes_on_loss: whether sessions are closed when the broker connection is lost.
    """

    kind: ClassVar = "activemq"
    endpoint: str
    login: Login | None = None
    closes_on_loss: bool = False


@dataclass(frozen=True, slots=True)
class HistorySettings:
    """The messages that are kept for clients that return.

    Attributes:
        seconds: how long a message is kept; 0: none is kept for clients.
        messages: most messages of one topic.
        bytes: most bytes of one topic.
        total: most bytes of memory for all topics.
    """

    seconds: int = 120
    messages: int = 1000
    bytes: int = 524288
    total: int = 64 * MEBIBYTE


@dataclass(frozen=True, slots=True)
class KafkaSettings:
    """Messages go through Kafka.

    Attributes:
        bootstrap: ``host:port`` of some of the brokers, joined by commas.
        login: user name and password; None: no login.
        authorities: trusted certificate authorities, in PEM; None: no TLS.
        closes_on_loss: whether sessions are closed when the broker connection is lost.
        history: what is read back of a topic.
    """

    kind: ClassVar = "kafka"

    bootstrap: str
    login: Login | None = None
    authorities: str | None = None
    closes_on_loss: bool = False
    history: HistorySettings = field(default_factory=HistorySettings)


@dataclass(frozen=True, slots=True)
class RedisSettings:
    """Messages go through Redis or Valkey.

    Attributes:
        host: name or address of the server.
        port: its port.
        database: number of its database.
        is_tls: whether the connection is encrypted.
        prefix: begins the name of each key and channel.
        login: user name and password; None: no login.
        authorities: trusted certificate authorities; None: the system's.
        closes_on_loss: whether sessions are closed when the broker connection is lost.
        history: what a topic's stream keeps.
    """

    kind: ClassVar = "redis"

    host: str
    port: int = 6379
    database: int = 0
    is_tls: bool = False
    prefix: str = "topicsvc:"
    login: Login | None = None
    authorities: Any = None
    closes_on_loss: bool = False
    history: HistorySettings = field(default_factory=HistorySettings)


BrokerSettings = MemorySettings | ActiveMQSettings | KafkaSettings | RedisSettings


@dataclass(frozen=True, slots=True)
class StopSettings:
    """How the service stops; times in seconds."""

    drain: float = 5


@dataclass(frozen=True, slots=True)
class LogSettings:
    """What the log contains; `subjects`: the subjects of tokens."""

    subjects: bool = True


@dataclass(frozen=True, slots=True)
class Login:
    """User name and password."""

    username: str
    password: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class LimitSettings:
    """Limits on clients; docs/configuration.md explains each. 0: no limit.

    Attributes:
        connections: connections in all; 0: see `Limits.max_connections`.
        per_address: connections of one address.
        unauthenticated: connections without a valid token; see `Limits.max_unauthenticated`.
        unauthenticated_per_address: the same, of one address.
        accepts_per_second: new connections a second.
        failed_tokens_per_minute: failed tokens of one address, on all topics.
        connections_per_cell: sessions on topics of one cell.
        sends_per_minute: messages that are sent with one token.
        sends_per_minute_per_cell: messages that are sent to topics of one cell.
        messages_per_minute: messages of one session; pings have the same limit of their own.
        frames_per_message: frames of one message of a client.
        queued_bytes: bytes queued for all slow readers together.
        trusted_proxies: proxies whose forwarded headers are used.
        allowed_origins: origins that may connect, normalized by `topicsvc.admission.origins`;
            empty: any.
    """

    connections: int = 0
    per_address: int = 0
    unauthenticated: int = 1000
    unauthenticated_per_address: int = 100
    accepts_per_second: int = 0
    failed_tokens_per_minute: int = 30
    connections_per_cell: int = 0
    sends_per_minute: int = 0
    sends_per_minute_per_cell: int = 0
    messages_per_minute: int = 60
    frames_per_message: int = 128
    queued_bytes: int = 268435456
    trusted_proxies: tuple[Network, ...] = ()
    allowed_origins: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class SessionSettings:
    """Settings of sessions; docs/configuration.md explains each.

    Attributes:
        token_timeout: seconds to present a valid token.
        ping_interval: seconds between two pings of a connection.
        ping_limit: unanswered pings in a row after which the connection is closed.
        max_message: most bytes of a client's message.
        send_queue: most bytes queued for one slow reader.
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
    """The rights on some topics of all tokens that meet one condition.

    The condition is `scope`; or `claim` with `value`; or none, if all valid tokens meet it.

    Attributes:
        scope: one scope of the token; None: the condition is another.
        topics: the topics that the rule covers.
        may: ``receive``, ``send`` or both.
        claim: the path to a claim: its name, or names of nested claims; empty: no such condition.
        value: the text that the claim must be, or a list must hold.
    """

    scope: str | None
    topics: tuple[TopicPattern | SubjectPattern, ...]
    may: frozenset[str]
    claim: tuple[str, ...] = ()
    value: str = ""


@dataclass(frozen=True, slots=True)
class OperatorSettings:
    """The operator's access on the admin endpoint, beyond health and metrics.

    Attributes:
        inspect: whether topics, sessions and senders can be listed.
        token: the bearer token for ending sessions; None: sessions cannot be ended.
    """

    inspect: bool = False
    token: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Config:
    """All settings; docs/configuration.md explains each.

    Attributes:
        listen: endpoint strings for clients, at least one.
        admin: endpoint string of the admin site; None: no admin site.
        operator: the rest of ``[admin]``.
        history: what is kept for clients that return.
        unit: the unit's URL and the hosts that are served.
        topics: the topics that exist, for validators that cannot check this; empty: all.
        directory: the directory that relative paths in endpoint strings start from.
        workers: processes that serve clients; with 1 there is no parent process.
    """

    listen: tuple[str, ...]
    unit: Unit
    validator: ValidatorSettings
    admin: str | None = None
    operator: OperatorSettings = field(default_factory=OperatorSettings)
    topics: tuple[TopicPattern, ...] = ()
    checks: CheckSettings = field(default_factory=CheckSettings)
    session: SessionSettings = field(default_factory=SessionSettings)
    send: SendSettings = field(default_factory=SendSettings)
    broker: BrokerSettings = field(default_factory=MemorySettings)
    history: HistorySettings = field(default_factory=HistorySettings)
    limits: LimitSettings = field(default_factory=LimitSettings)
    stop: StopSettings = field(default_factory=StopSettings)
    log: LogSettings = field(default_factory=LogSettings)
    directory: Path = Path()
    workers: int = 1

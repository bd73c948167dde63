"""Composition: settings, from a TOML file and options to one frozen `Config`.

All that is wrong is found in one reading.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from importlib.util import find_spec
from ipaddress import ip_address
from pathlib import Path
from typing import Any, ClassVar, TypeVar
from urllib.parse import urlsplit

from topicsvc.address import CellUrlStyle, TopicPattern, Unit
from topicsvc.brokers.login import Login
from topicsvc.errors import ConfigError, PathRefused
from topicsvc.limits import LimitSettings
from topicsvc.origin import parse_origin
from topicsvc.peers import parse_network
from topicsvc.table import Table
from topicsvc.validators.agent import read_authorities
from topicsvc.validators.introspection import Rule
from topicsvc.validators.local import RIGHTS, read_key
from topicsvc.websocket.connections import SessionSettings

__all__ = [
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
    "load",
    "read",
    "read_secret",
]

T = TypeVar("T")

_CELL_URLS: tuple[CellUrlStyle, ...] = ("host", "path")
_DAY = 86400
_MEBIBYTE = 1048576


@dataclass(frozen=True, slots=True)
class SendSettings:
    """Whether and how data is taken over HTTP; lengths in bytes."""

    enabled: bool = True
    max_body: int = _MEBIBYTE
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


Look = Callable[["Config"], Iterable[str]]
"""Says what else is wrong with settings, a line for each, as far as they could be read."""


def read(
    path: Path, listen: Iterable[str] = (), admin: str | None = None, look: Look | None = None
) -> Config:
    """Read a configuration file; see `load`.

    Raises:
        ConfigError: the file cannot be read, or a setting cannot be used.
    """
    try:
        text = path.read_text("utf-8")
    except OSError as error:
        raise ConfigError([f"{path}: {error.strerror}"]) from error
    except UnicodeDecodeError as error:
        raise ConfigError([f"{path}: not UTF-8"]) from error
    return load(text, listen, admin, look)


def load(
    text: str, listen: Iterable[str] = (), admin: str | None = None, look: Look | None = None
) -> Config:
    """Read settings in TOML. Options that are given override it.

    Args:
        text: the file.
        listen: endpoints in place of the file's.
        admin: the admin side's endpoint in place of the file's.
        look: looks at what only others understand, so that all is said in one go.

    Raises:
        ConfigError: with all that is wrong.
    """
    try:
        members = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError([f"not TOML: {error}"]) from error
    table = Table(members)
    written = table.texts("listen")
    endpoints = tuple(listen) or written
    if not endpoints:
        table.problem("listen", "nothing to listen on", 'an endpoint, ["tcp:8080"]')
    config = _config(table, endpoints, admin)
    table.finish(() if look is None else look(config))
    return config


def _config(table: Table, listen: tuple[str, ...], admin: str | None) -> Config:
    default = SessionSettings()
    if table.given("topics") == []:
        table.problem("topics", "empty", '["/cell1/box1/*"], or nothing at all')
    written_admin = table.text("admin", "", 'an endpoint, "tcp:9090:interface=127.0.0.1"')
    session = table.table("session")
    send = table.table("send")
    stop = table.table("stop")
    validator = table.table("validator")
    return Config(
        listen=listen,
        admin=admin or written_admin,
        unit=_unit(table, validator),
        topics=tuple(_topics(table)),
        session=SessionSettings(
            token_timeout=session.number("token_timeout", default.token_timeout, 1, _DAY),
            ping_interval=session.number("ping_interval", default.ping_interval, 1, _DAY),
            ping_limit=session.whole("ping_limit", default.ping_limit, 1, 1000),
            max_message=session.whole("max_message", default.max_message, 1024, _MEBIBYTE),
            send_queue=session.whole("send_queue", default.send_queue, 65536, 2**30),
            timestamps=session.choice("timestamps", ("seconds", "milliseconds")),
        ),
        send=SendSettings(
            enabled=send.flag("enabled", True),
            max_body=send.whole("max_body", _MEBIBYTE, 1, 2**30),
            trust_via=send.flag("trust_via", False),
        ),
        validator=_validator(validator, table),
        checks=_checks(validator),
        broker=_broker(table.table("broker")),
        limits=_limits(table.table("limits")),
        stop=StopSettings(drain=stop.number("drain", 5, 0, 3600)),
    )


def _unit(table: Table, validator: Table) -> Unit:
    url = table.text("unit_url", None, 'a URL, "https://unit1.example/"')
    hosts = table.texts("hosts")
    cell_urls: CellUrlStyle = "host"
    if _kind(validator) == "personium":
        cell_urls = validator.choice("cell_urls", _CELL_URLS)
    try:
        return Unit(url or "https://invalid/", hosts, cell_urls)
    except ValueError as error:
        table.problem("unit_url or hosts", str(error), 'a URL, "https://unit1.example/", and names')
        return Unit("https://invalid/")


def _topics(table: Table) -> Iterable[TopicPattern]:
    for text in table.texts("topics"):
        try:
            yield TopicPattern.parse(text)
        except PathRefused as error:
            table.problem(
                "topics", f"{text!r}: {error}", '"/cell1/box1/col/topic/name" or "/cell1/box1/*"'
            )


def _kind(table: Table) -> str | None:
    """Which validator is wanted; None: nobody knows, and it has been said."""
    kind: str = table.choice("kind", tuple(_VALIDATORS), required=True)
    return kind if table.given("kind") == kind else None


def _validator(table: Table, whole: Table) -> ValidatorSettings:
    kind = _kind(table)
    if kind is None:
        table.pass_over()
        return LocalSettings(b"")
    return _VALIDATORS[kind](table, whole)


def _personium(table: Table, whole: Table) -> PersoniumSettings:
    allowed = 'a URL, "https://unit1.example/"'
    url = table.text("url", "", allowed) or whole.text("unit_url", "", allowed)
    cell_urls = table.choice("cell_urls", _CELL_URLS)
    unit = Unit("https://invalid/")
    try:
        unit = Unit(url or unit.url, cell_urls=cell_urls)
    except ValueError as error:
        if table.given("url"):  # of unit_url it has been said before
            table.problem("url", str(error), allowed)
    if cell_urls == "host" and _is_address(urlsplit(unit.url).hostname or ""):
        table.problem(
            "cell_urls", "a cell's host cannot stand before an IP address", '"path", or a host name'
        )
    return PersoniumSettings(
        unit=unit,
        username=table.text("username", None, "a text") or "",
        password=table.file("password_file", read_secret, ""),
        authorities=table.file("ca_file", read_authorities, None, required=False),
    )


def _introspection(table: Table, _: Table) -> IntrospectionSettings:
    url = table.text("url", None, _INTROSPECTION_URL)
    if url is not None and not _is_plain_url(url):
        table.problem("url", "no URL that can be asked", _INTROSPECTION_URL)
    return IntrospectionSettings(
        url=url or "",
        client_id=table.text("client_id", None, "a text") or "",
        client_secret=table.file("client_secret_file", read_secret, ""),
        authorities=table.file("ca_file", read_authorities, None, required=False),
        issuer=table.text("issuer", "", "a text"),
        audience=table.text("audience", "", "a text"),
        rules=tuple(map(_rule, table.tables("rules"))),
    )


def _rule(table: Table) -> Rule:
    may = table.texts("may")
    if not may or not set(may) <= set(RIGHTS):
        table.problem("may", f"{list(may)!r} is not", '["receive"], ["send"] or both')
    topics = tuple(_topics(table))
    if not table.texts("topics"):
        table.problem("topics", "none", 'a list, ["/cell1/box1/*"]')
    scope = table.text("scope", None, "one scope") or ""
    if scope and scope.split() != [scope]:
        table.problem("scope", f"{scope!r} is not", "one scope, without blanks")
    return Rule(scope, topics, frozenset(may))


def _local(table: Table, _: Table) -> LocalSettings:
    return LocalSettings(key=table.file("key_file", read_key, b""))


_VALIDATORS: dict[str, Callable[[Table, Table], ValidatorSettings]] = {
    "personium": _personium,
    "introspection": _introspection,
    "local": _local,
}

_INTROSPECTION_URL = 'a URL, "https://as.example/token/introspect"'


def _checks(table: Table) -> CheckSettings:
    default = CheckSettings()
    recheck = table.number("recheck", default.recheck, 0, _DAY)
    if 0 < recheck < 1:  # all its time would go into it
        table.problem("recheck", f"{recheck!r} is not", f"0, or a number from 1 to {_DAY}")
    return CheckSettings(
        timeout=table.number("timeout", default.timeout, 0.1, 300),
        concurrency=table.whole("concurrency", default.concurrency, 1, 1000),
        cache=table.number("cache", default.cache, 0, _DAY),
        recheck=recheck,
    )


def _is_address(host: str) -> bool:
    """Whether `host` is an IP address and not a name."""
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def _is_plain_url(url: str) -> bool:
    """Whether `url` is an http or https URL without credentials and without a fragment."""
    if not re.fullmatch(r"https?://[!-~]+", url) or "#" in url:
        return False
    try:
        split = urlsplit(url)
        return bool(split.hostname and split.port != 0) and "@" not in split.netloc
    except ValueError:
        return False


def read_secret(path: Path) -> str:
    """Read a secret: the text of a file, without the newline that closes it.

    Raises:
        OSError: the file cannot be read.
        ValueError: there is no secret in it.
    """
    try:
        text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError:
        raise ValueError("not UTF-8") from None
    secret = text.removesuffix("\n").removesuffix("\r")
    if not secret:
        raise ValueError("it is empty")
    return secret


def _broker(table: Table) -> BrokerSettings:
    # A setting of every kind, though the memory broker is never lost.
    closes_on_loss = table.choice("on_loss", ("keep", "close")) == "close"
    kind = table.choice("kind", ("memory", "activemq", "kafka"))
    if table.given("kind") not in (None, kind):  # which has been said
        table.pass_over()
    match kind:
        case "activemq":
            return _activemq(table, closes_on_loss)
        case "kafka":
            return _kafka(table, closes_on_loss)
        case _:
            return MemorySettings()


def _activemq(table: Table, closes_on_loss: bool) -> ActiveMQSettings:
    allowed = '"tcp:localhost:61613" or "tls:broker.example:61614"'
    endpoint = table.text("endpoint", None, allowed) or ""
    if endpoint and not _BROKER_ENDPOINT.match(endpoint):
        table.problem("endpoint", f"{endpoint!r} is neither", allowed)
    elif any(not 0 < int(port) < 65536 for port in _BROKER_PORT.findall(endpoint)):
        table.problem("endpoint", f"{endpoint!r}: no such port, 1 to 65535", allowed)
    return ActiveMQSettings(endpoint, _login(table), closes_on_loss)


_BROKER_ENDPOINT = re.compile(r"(tcp|tls):[^:]")
_BROKER_PORT = re.compile(r":(?:port=)?(-?\d+)(?=:|$)")


def _kafka(table: Table, closes_on_loss: bool) -> KafkaSettings:
    if find_spec("confluent_kafka") is None:
        table.problem(
            "kind",
            "Kafka's client is not installed",
            "\"kafka\" after pip install 'topicsvc[kafka]'",
        )
    allowed = '"host1:9092,host2:9092"'
    bootstrap = table.text("bootstrap", None, allowed) or ""
    if bootstrap and not _BOOTSTRAP.fullmatch(bootstrap):
        table.problem("bootstrap", f"{bootstrap!r} is no list of servers", allowed)
    authorities = table.file("ca_file", _pem, None, required=False)
    return KafkaSettings(bootstrap, _login(table), authorities, closes_on_loss)


_SERVER = r"(?:\[[0-9a-fA-F:.]+\]|[\w.-]+):[0-9]{1,5}"
_BOOTSTRAP = re.compile(rf"{_SERVER}(?:,{_SERVER})*", re.ASCII)


def _pem(path: Path) -> str:
    """Read certificates as they are; what is wrong with them: see `read_authorities`."""
    read_authorities(path)
    return path.read_text("ascii", "replace")


def _login(table: Table) -> Login | None:
    """User name and password; both or neither."""
    username = table.text("username", "", "a text") or ""
    if not username.isprintable():
        table.problem("username", "holds a control character", "a text on one line")
    if not username and not table.text("password_file", "", "the path of a file"):
        return None
    if not username:
        table.problem("username", "missing", "a text, beside password_file")
    return Login(username, table.file("password_file", _one_line, ""))


def _one_line(path: Path) -> str:
    """Read a secret that goes into a header: see `read_secret`; it is one line."""
    secret = read_secret(path)
    if not secret.isprintable():
        raise ValueError("not one line of printable text")
    return secret


def _limits(table: Table) -> LimitSettings:
    default = LimitSettings()

    def bound(key: str, least: int = 0, most: int = 10**6) -> int:
        return table.whole(key, getattr(default, key), least, most)

    return LimitSettings(
        connections=bound("connections"),
        per_address=bound("per_address"),
        waiting=bound("waiting"),
        waiting_per_address=bound("waiting_per_address"),
        accepts_per_second=bound("accepts_per_second"),
        failed_tokens_per_minute=bound("failed_tokens_per_minute"),
        messages_per_minute=bound("messages_per_minute"),
        frames_per_message=bound("frames_per_message", least=1, most=_MEBIBYTE),
        queued_bytes=bound("queued_bytes", least=_MEBIBYTE, most=2**40),
        trusted_proxies=_each(table, "trusted_proxies", parse_network, _NETWORK),
        allowed_origins=frozenset(_each(table, "allowed_origins", parse_origin, _ORIGIN)),
    )


def _each(table: Table, key: str, parse: Callable[[str], T], allowed: str) -> tuple[T, ...]:
    """What `parse` makes of each text of a list."""
    parsed = []
    for text in table.texts(key):
        try:
            parsed.append(parse(text))
        except ValueError as error:
            table.problem(key, f"{text!r}: {error}", allowed)
    return tuple(parsed)


_NETWORK = '"192.0.2.1", "10.0.0.0/8" or "2001:db8::/32"'
_ORIGIN = '"https://app.example", "https://app.example:8443" or "null"'

"""Composition: settings, from a TOML file and options to one frozen `Config`.

All that is wrong is found in one reading. Each problem is one line: the key, what is wrong
with its value, what is allowed.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from topicsvc.address import TopicPattern, Unit
from topicsvc.brokers.link import Login
from topicsvc.errors import ConfigError, PathRefused
from topicsvc.validators.local import read_key
from topicsvc.websocket import SessionSettings

__all__ = [
    "ActiveMQSettings",
    "BrokerSettings",
    "Config",
    "LocalSettings",
    "MemorySettings",
    "SendSettings",
    "StopSettings",
    "Table",
    "load",
    "read",
]

T = TypeVar("T")

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

    key: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class MemorySettings:
    """Messages stay in this process."""


@dataclass(frozen=True, slots=True)
class ActiveMQSettings:
    """Messages go through ActiveMQ.

    Attributes:
        endpoint: endpoint string of its STOMP transport, ``tcp:`` or ``tls:``.
        login: who we are to it; None: nobody in particular.
        closes_on_loss: whether sessions are closed when the broker is lost.
    """

    endpoint: str
    login: Login | None = None
    closes_on_loss: bool = False


BrokerSettings = MemorySettings | ActiveMQSettings


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
    validator: LocalSettings
    admin: str | None = None
    topics: tuple[TopicPattern, ...] = ()
    session: SessionSettings = field(default_factory=SessionSettings)
    send: SendSettings = field(default_factory=SendSettings)
    broker: BrokerSettings = field(default_factory=MemorySettings)
    stop: StopSettings = field(default_factory=StopSettings)


def read(path: Path, listen: Iterable[str] = (), admin: str | None = None) -> Config:
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
    return load(text, listen, admin)


def load(text: str, listen: Iterable[str] = (), admin: str | None = None) -> Config:
    """Read settings in TOML. Options that are given override it.

    Raises:
        ConfigError: with all that is wrong.
    """
    try:
        members = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError([f"not TOML: {error}"]) from error
    table = Table(members)
    endpoints = tuple(listen) or table.texts("listen")
    if not endpoints:
        table.problem("listen", "nothing to listen on", 'an endpoint, ["tcp:8080"]')
    config = _config(table, endpoints, admin)
    table.finish()
    return config


def _config(table: Table, listen: tuple[str, ...], admin: str | None) -> Config:
    default = SessionSettings()
    session = table.table("session")
    send = table.table("send")
    stop = table.table("stop")
    return Config(
        listen=listen,
        admin=table.text("admin", "", "an endpoint") if admin is None else admin,
        unit=_unit(table),
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
        validator=_validator(table.table("validator")),
        broker=_broker(table.table("broker")),
        stop=StopSettings(drain=stop.number("drain", 5, 0, 3600)),
    )


def _unit(table: Table) -> Unit:
    url = table.text("unit_url", None, 'a URL, "https://unit1.example/"')
    hosts = table.texts("hosts")
    try:
        return Unit(url or "https://invalid/", hosts)
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


def _validator(table: Table) -> LocalSettings:
    table.choice("kind", ("local",), required=True)
    return LocalSettings(key=table.file("key_file", read_key, b""))


def _broker(table: Table) -> BrokerSettings:
    # A setting of every kind, though the memory broker is never lost.
    closes_on_loss = table.choice("on_loss", ("keep", "close")) == "close"
    match table.choice("kind", ("memory", "activemq")):
        case "activemq":
            return _activemq(table, closes_on_loss)
        case _:
            return MemorySettings()


def _activemq(table: Table, closes_on_loss: bool) -> ActiveMQSettings:
    allowed = '"tcp:localhost:61613" or "tls:broker.example:61614"'
    endpoint = table.text("endpoint", None, allowed) or ""
    if endpoint and not _BROKER_ENDPOINT.match(endpoint):
        table.problem("endpoint", f"{endpoint!r} is neither", allowed)
    return ActiveMQSettings(endpoint, _login(table), closes_on_loss)


_BROKER_ENDPOINT = re.compile(r"(tcp|tls):[^:]")


def _login(table: Table) -> Login | None:
    """User name and password; both or neither."""
    username = table.text("username", "", "a text") or ""
    if not username.isprintable():
        table.problem("username", "holds a control character", "a text on one line")
    if not username and not table.text("password_file", "", "the path of a file"):
        return None
    if not username:
        table.problem("username", "missing", "a text, beside password_file")
    return Login(username, table.file("password_file", _read_secret, ""))


def _read_secret(path: Path) -> str:
    """The one line of a file.

    Raises:
        OSError: the file cannot be read.
        ValueError: it holds no line, or more than one, or it is not UTF-8.
    """
    secret = path.read_text("utf-8").removesuffix("\n")
    if not secret or not secret.isprintable():
        raise ValueError("not one line of printable text")
    return secret


class Table:
    """One table of the file: hands out its values and keeps a list of what is wrong.

    Args:
        members: the table as TOML gave it.
        name: its place in the file, ``session``; the whole file has none.
    """

    def __init__(
        self, members: dict[str, Any], name: str = "", problems: list[str] | None = None
    ) -> None:
        self._members = members
        self._name = name
        self._problems: list[str] = [] if problems is None else problems
        self._tables: list[Table] = []
        self.keys: dict[str, Any] = {}

    def problem(self, key: str, wrong: str, allowed: str) -> None:
        """Note that the value of `key` cannot be used."""
        self._problems.append(f"{self._full(key)}: {wrong}; allowed: {allowed}")

    def finish(self) -> None:
        """Look for settings that nobody asked for; raise if anything is wrong.

        Raises:
            ConfigError: with all problems noted.
        """
        self._report_unknown()
        if self._problems:
            raise ConfigError(self._problems)

    def table(self, key: str) -> Table:
        """A table within this one; empty where it is absent."""
        members = self._take(key, {})
        if not isinstance(members, dict):
            self.problem(key, "not a table", f"[{self._full(key)}]")
            members = {}
        table = Table(members, self._full(key), self._problems)
        self._tables.append(table)
        return table

    def text(self, key: str, default: str | None, allowed: str) -> str | None:
        """A text that is not empty. With no default it is required, with an empty one optional."""
        value = self._take(key, default)
        if value == "" and key not in self._members:
            return None
        if not isinstance(value, str) or not value:
            self.problem(key, "missing" if value is None else f"{value!r} is no text", allowed)
            return None
        return value

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of texts; empty where it is absent."""
        value = self._take(key, [])
        if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
            self.problem(key, f"{value!r} is no list of texts", '["...", "..."]')
            return ()
        return tuple(value)

    def flag(self, key: str, default: bool) -> bool:
        """True or false."""
        value = self._take(key, default)
        if not isinstance(value, bool):
            self.problem(key, f"{value!r} is neither", "true or false")
            return default
        return value

    def number(self, key: str, default: float, least: float, most: float) -> float:
        """A number between two bounds."""
        return self._bounded(key, default, least, most, (int, float), "a number")

    def whole(self, key: str, default: int, least: int, most: int) -> int:
        """A whole number between two bounds."""
        return self._bounded(key, default, least, most, (int,), "a whole number")

    def choice(self, key: str, allowed: tuple[T, ...], required: bool = False) -> T:
        """One of `allowed`; the first is the default, unless one must be given."""
        value = self._take(key, None if required else allowed[0])
        if value not in allowed:
            wrong = "missing" if value is None else f"{value!r} is none of them"
            self.problem(key, wrong, ", ".join(f'"{choice}"' for choice in allowed))
            return allowed[0]
        return value  # type: ignore[no-any-return]

    def file(self, key: str, reader: Callable[[Path], T], default: T) -> T:
        """What `reader` makes of the file that `key` names."""
        name = self.text(key, None, "the path of a file")
        if name is None:
            return default
        try:
            return reader(Path(name))
        except OSError as error:
            self.problem(key, f"{name}: {error.strerror}", "a file that can be read")
        except ValueError as error:
            self.problem(key, f"{name}: {error}", "see docs/configuration.md")
        return default

    def _bounded(
        self, key: str, default: T, least: Any, most: Any, kinds: tuple[type, ...], what: str
    ) -> T:
        value: Any = self._take(key, default)
        is_number = isinstance(value, kinds) and not isinstance(value, bool)
        if not is_number or not least <= value <= most:
            self.problem(key, f"{value!r} is not", f"{what} from {least} to {most}")
            return default
        return value  # type: ignore[no-any-return]

    def _take(self, key: str, default: Any) -> Any:
        self.keys[key] = default
        return self._members.get(key, default)

    def _full(self, key: str) -> str:
        return f"{self._name}.{key}" if self._name else key

    def _report_unknown(self) -> None:
        for key in self._members:
            if key not in self.keys:
                near = difflib.get_close_matches(key, self.keys, 1) or sorted(self.keys)
                self.problem(key, "there is no such setting", ", ".join(near))
        for table in self._tables:
            table._report_unknown()

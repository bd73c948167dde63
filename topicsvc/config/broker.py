"""Reads ``[broker]``: the message broker."""

from __future__ import annotations

import re
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

from topicsvc.config.files import read_authorities, read_line
from topicsvc.config.toml_table import Table
from topicsvc.files import explain_file_error, read_file
from topicsvc.listening.endpoint_string import EndpointString, with_absolute_paths
from topicsvc.listening.pem import read_pem
from topicsvc.settings import (
    DAY,
    ActiveMQSettings,
    BrokerSettings,
    HistorySettings,
    KafkaSettings,
    Login,
    MemorySettings,
    RedisSettings,
)

__all__ = ["queue_problem", "read_broker", "read_history"]


def read_broker(table: Table, history: HistorySettings) -> BrokerSettings:
    """Read ``[broker]``; the default is the memory broker."""
    # Every kind has this setting, although the memory broker is never lost.
    closes_on_loss = table.choice("on_loss", ("keep", "close")) == "close"
    kind = table.choice("kind", ("memory", "activemq", "kafka", "redis"))
    if table.given("kind") not in (None, kind):  # an invalid kind, which is reported already
        table.ignore_unknown()
    match kind:
        case "activemq":
            return _activemq(table, closes_on_loss)
        case "kafka":
            return _kafka(table, closes_on_loss, history)
        case "redis":
            return _redis(table, closes_on_loss, history)
        case _:
            return MemorySettings()


def _activemq(table: Table, closes_on_loss: bool) -> ActiveMQSettings:
    allowed = '"tcp:localhost:61613" or "tls:broker.example:61614"'
    endpoint = table.text("endpoint", None, allowed) or ""
    endpoint = with_absolute_paths(endpoint, table.directory, is_client=True)
    if endpoint and not _BROKER_ENDPOINT.match(endpoint):
        table.problem("endpoint", f"{endpoint!r} is not a tcp: or tls: endpoint", allowed)
    elif any(not 0 < int(port) < 65536 for port in _BROKER_PORT.findall(endpoint)):
        table.problem("endpoint", f"{endpoint!r}: the port is not from 1 to 65535", allowed)
    else:
        try:
            _check_files(EndpointString.parse(endpoint))
        except ValueError as error:
            table.problem("endpoint", f"{endpoint!r}: {error}", allowed)
    return ActiveMQSettings(endpoint, _login(table), closes_on_loss)


def _check_files(endpoint: EndpointString) -> None:
    """Check the files of a ``tls:`` endpoint, which Twisted reads.

    Raises:
        ValueError: a file cannot be used, would block Twisted, or needs a passphrase.
    """
    for name in ("certificate", "privateKey"):
        if name in endpoint.named:
            read_pem(Path(endpoint.named[name]))
    if "trustRoots" in endpoint.named:
        # Files that cannot be read are ignored, as Twisted does.
        with suppress(OSError):
            for path in Path(endpoint.named["trustRoots"]).iterdir():
                if path.name.lower().endswith(".pem"):
                    _check_authority(path)


def _check_authority(path: Path) -> None:
    try:
        read_file(path)
    except OSError:
        pass
    except ValueError as error:
        raise ValueError(explain_file_error(path, error)) from error


_BROKER_ENDPOINT = re.compile(r"(tcp|tls):[^:]")
_BROKER_PORT = re.compile(r":(?:port=)?(-?\d+)(?=:|$)")


def read_history(table: Table, send_queue: int) -> HistorySettings:
    """Read ``[history]``; the default of ``bytes`` is at most half of `send_queue`."""
    default = HistorySettings()
    return HistorySettings(
        seconds=table.integer("seconds", default.seconds, 0, DAY),
        messages=table.integer("messages", default.messages, 1, 10**5),
        bytes=table.integer("bytes", min(default.bytes, send_queue // 2), 1024, 2**30),
        total=table.integer("total", default.total, 65536, 2**40),
    )


def queue_problem(history: HistorySettings, send_queue: int) -> str | None:
    """Why what is kept of a topic does not fit into a send queue; None: it fits, or none is kept.

    A client that returns gets all of it at once, and new messages meanwhile.
    """
    if not history.seconds or history.bytes <= send_queue // 2:
        return None
    return (
        f"{history.bytes} is more than half of session.send_queue, {send_queue}; a client that "
        f"returns would be closed as a slow consumer; allowed: at most {send_queue // 2}, or a "
        "larger session.send_queue"
    )


def _kafka(table: Table, closes_on_loss: bool, history: HistorySettings) -> BrokerSettings:
    is_installed = find_spec("confluent_kafka") is not None
    if not is_installed:
        table.problem(
            "kind",
            "Kafka's client is not installed",
            "\"kafka\" after pip install 'topicsvc[kafka]'",
        )
    allowed = '"host1:9092,host2:9092"'
    bootstrap = table.text("bootstrap", None, allowed) or ""
    if bootstrap and not _BOOTSTRAP.fullmatch(bootstrap):
        table.problem("bootstrap", f"{bootstrap!r} is not a list of servers", allowed)
    authorities = table.file("ca_file", _pem, None, required=False)
    login = _login(table)
    if not is_installed:
        # Further checks make the broker, which would import the library.
        return MemorySettings()
    return KafkaSettings(bootstrap, login, authorities, closes_on_loss, history)


_SERVER = r"(?:\[[0-9a-fA-F:.]+\]|[\w.-]+):[0-9]{1,5}"
_BOOTSTRAP = re.compile(rf"{_SERVER}(?:,{_SERVER})*", re.ASCII)


def _redis(table: Table, closes_on_loss: bool, history: HistorySettings) -> BrokerSettings:
    is_installed = find_spec("hiredis") is not None
    if not is_installed:
        table.problem(
            "kind",
            "Redis's parser is not installed",
            "\"redis\" after pip install 'topicsvc[redis]'",
        )
    allowed = '"redis://localhost:6379/0" or "rediss://redis.example:6379/0"'
    url = table.text("url", None, allowed) or ""
    authorities = table.file("ca_file", read_authorities, None, required=False)
    login = _login(table, is_name_needed=False)
    prefix = table.text("prefix", "topicsvc:", "printable text") or ""
    if not _PREFIX.fullmatch(prefix):
        table.problem(
            "prefix", f"{prefix!r} is not usable", "1 to 64 visible ASCII characters without { }"
        )
    match = _REDIS.fullmatch(url)
    if url and (match is None or int(match["port"] or 1) not in range(1, 65536)):
        # The URL may contain a password.
        wrong = "it has a user name or a password; see username and password_file"
        table.problem("url", wrong if "@" in url else f"{url!r} is not a URL of Redis", allowed)
        match = None
    if match is None or not is_installed:
        # Further checks make the broker, which would import the library.
        return MemorySettings()
    return RedisSettings(
        host=match["host"].strip("[]"),
        port=int(match["port"] or 6379),
        database=int(match["database"] or 0),
        is_tls=match["scheme"].lower() == "rediss",
        prefix=prefix,
        login=login,
        authorities=authorities,
        closes_on_loss=closes_on_loss,
        history=history,
    )


_REDIS = re.compile(
    r"(?P<scheme>rediss?)://(?P<host>\[[0-9a-f:.]+\]|[\w.-]+)(:(?P<port>[0-9]{1,5}))?"
    r"(/(?P<database>[0-9]{0,5}))?",
    re.ASCII | re.IGNORECASE,
)
_PREFIX = re.compile(r"[!-z|~]{1,64}")


def _pem(path: Path) -> str:
    """Return the certificates of a file as PEM text; for the errors see `read_authorities`."""
    read_authorities(path)
    return read_file(path).decode("ascii", "replace")


def _login(table: Table, is_name_needed: bool = True) -> Login | None:
    """Read the user name and the password; both or neither must be given.

    Args:
        table: ``[broker]``.
        is_name_needed: whether a password needs a user name; else the name is "default".
    """
    username = table.text("username", "", "a string") or ""
    if not username.isprintable():
        table.problem("username", "contains a control character", "a string on one line")
    if not username and not table.text("password_file", "", "the path of a file"):
        return None
    if not username and is_name_needed:
        table.problem("username", "missing", "a string, as password_file is set")
    username = username or "default"
    return Login(username, table.file("password_file", read_line, ""))

"""Parses endpoint strings as far as topicsvc needs to know what they name.

Twisted's parsers do not tell: they return endpoints that keep this to themselves.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

__all__ = ["PREFIX", "EndpointString", "with_absolute_paths"]

PREFIX = "haproxy:"
"""Prefix of an endpoint behind a proxy that sends the PROXY protocol."""

PARAMETERS = {
    "tcp": ("port", "interface", "backlog"),
    "tcp6": ("port", "backlog", "interface"),
    "ssl": (
        *("port", "privateKey", "certKey", "sslmethod", "interface", "backlog"),
        *("extraCertChain", "dhParameters"),
    ),
    "tls": ("path", "port", "backlog", "interface"),
    "unix": ("address", "mode", "backlog", "lockfile"),
    "systemd": ("domain", "index", "name"),
}
"""The parameters of each kind of endpoint, in the order of Twisted's parsers."""

_SERVER_PATHS = {"privateKey", "certKey", "extraCertChain", "dhParameters", "path", "address"}
_CLIENT_PATHS = {"trustRoots", "certificate", "privateKey"}
"""The parameters that name files."""

_FIELD = re.compile(r"(?:\\.|[^:\\])*", re.DOTALL)
_NAMED = re.compile(r"(\w+)=(.*)", re.DOTALL)
_ESCAPED = re.compile(r"\\(.)", re.DOTALL)
_PORTS = {"tcp": "", "ssl": "", "tcp6": "::", "tls": "::"}
"""The kinds that listen on a port, and their default interfaces."""

_DEFAULT_BACKLOG = "50"
"""The backlog of an endpoint that names none; Twisted's default."""

_ANY_PORT = ""
"""Port 0, of which leading zeros are removed."""

_LOCALHOST = "127.0.0.1"
"""The address of ``localhost`` in endpoints of IPv4."""


@dataclass(frozen=True, slots=True)
class EndpointString:
    """What an endpoint string names.

    Attributes:
        text: the whole string.
        kind: ``tcp``, for example.
        proxies: how many PROXY headers each connection begins with.
        positional: the parameters without a name.
        named: the parameters with a name.
    """

    text: str
    kind: str
    proxies: int
    positional: tuple[str, ...]
    named: dict[str, str]

    @classmethod
    def parse(cls, text: str) -> EndpointString:
        """Parse `text`. No text is refused here: Twisted reports what is wrong with it."""
        rest, proxies = text, 0
        while rest.startswith(PREFIX):
            rest, proxies = rest.removeprefix(PREFIX), proxies + 1
        kind, *fields = _fields(rest)
        positional = []
        named = {}
        for each in fields:
            found = _NAMED.fullmatch(each)
            if found is None:
                positional.append(_ESCAPED.sub(r"\1", each))
            else:
                named[found[1]] = _ESCAPED.sub(r"\1", found[2])
        return cls(text, kind, proxies, tuple(positional), named)

    def get(self, name: str, default: str = "") -> str:
        """The value of a parameter."""
        values = dict(zip(PARAMETERS.get(self.kind, ()), self.positional, strict=False))
        return (values | self.named).get(name, default)

    @property
    def is_tls(self) -> bool:
        """Whether the endpoint has TLS."""
        return self.kind in ("ssl", "tls")

    @property
    def has_port(self) -> bool:
        """Whether the endpoint listens on a TCP port."""
        return self.kind in _PORTS

    @property
    def interface(self) -> str:
        """The address that a TCP endpoint listens on; empty: each IPv4 address."""
        return self.get("interface") or _PORTS.get(self.kind, "")

    @property
    def backlog(self) -> int:
        """How many connections to a TCP port may wait until they are accepted."""
        return int(self.get("backlog", _DEFAULT_BACKLOG))

    @property
    def is_local(self) -> bool:
        """Whether only programs of this host reach the endpoint, as far as the text tells."""
        if self.kind == "unix":
            return True
        try:
            return self.has_port and ip_address(_address(self.interface)).is_loopback
        except ValueError:
            return self.interface == "localhost"

    def conflicts_with(self, other: EndpointString) -> bool:
        """Whether only one of the two can listen."""
        if self.has_port and other.has_port:
            port, other_port = (each.get("port", "443").lstrip("0") for each in (self, other))
            if port != other_port or port == _ANY_PORT:
                return False
            return _overlap(_address(self.interface), _address(other.interface))
        if self.kind != other.kind:
            return False
        if self.kind == "unix":
            # Not resolved: a link is another name, which Twisted reports when it listens.
            return Path(self.get("address")) == Path(other.get("address"))
        if self.kind == "systemd":
            names = [(each.get("index"), each.get("name")) for each in (self, other)]
            return names[0] == names[1]
        return False


def with_absolute_paths(text: str, directory: Path, is_client: bool = False) -> str:
    """The endpoint string with its relative paths made absolute.

    Args:
        text: an endpoint string.
        directory: the directory that its relative paths start from. If it is the current one,
            ``.``, the string stays as it is.
        is_client: whether it describes a client. Its paths must be named: ``trustRoots=``.
    """
    if directory == Path():
        return text
    prefixes = ""
    while text.startswith(PREFIX):
        text = text.removeprefix(PREFIX)
        prefixes += PREFIX
    kind, *fields = _fields(text)
    parameters = () if is_client else PARAMETERS.get(kind, ())
    paths = _CLIENT_PATHS if is_client else _SERVER_PATHS
    place = 0
    for number, each in enumerate(fields):
        found = _NAMED.fullmatch(each)
        if found is not None:
            name, value = found[1], found[2]
        else:
            name, value = parameters[place] if place < len(parameters) else "", each
            place += 1
        if name not in paths or not value or value.startswith("/"):
            continue
        start = f"{directory}/".replace("\\", "\\\\").replace(":", "\\:")
        fields[number] = (f"{name}=" if found is not None else "") + start + value
    return prefixes + ":".join([kind, *fields])


def _fields(text: str) -> list[str]:
    """The parts between colons, with their escapes."""
    fields = []
    at = 0
    while True:
        found = _FIELD.match(text, at)
        assert found is not None  # noqa: S101 - it matches the empty string
        fields.append(found[0])
        at = found.end()
        if at >= len(text):
            return fields
        at += 1  # a colon, or a backslash at the end


def _address(interface: str) -> str:
    """The canonical text of an address; other text as it is."""
    if interface.lower() == "localhost":
        return _LOCALHOST
    try:
        address = ip_address(interface or "0.0.0.0")  # noqa: S104 - compared, not listened on
    except ValueError:
        return interface
    return str(getattr(address, "ipv4_mapped", None) or address)


def _overlap(one: str, other: str) -> bool:
    if one == other or "::" in (one, other):
        return True
    wildcard = "0.0.0.0"  # noqa: S104 - compared, not listened on
    return wildcard in (one, other) and ":" not in one + other

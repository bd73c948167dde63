"""Finds out whether this host has what an endpoint needs, without listening on it."""

from __future__ import annotations

import errno
import os
import socket
import stat
from pathlib import Path

from topicsvc.files import explain_file_error, shown
from topicsvc.listening.endpoint_string import EndpointString

__all__ = ["host_problem"]

_MAX_UNIX_PATH = 107
"""The most bytes of the path of a UNIX socket (unix(7))."""


def host_problem(string: EndpointString) -> str | None:
    """Why this host cannot listen on an endpoint; None: no reason is known."""
    if string.kind == "unix":
        return _unix_problem(string.get("address"))
    if string.has_port:
        return _interface_problem(string.interface)
    return None


def _unix_problem(address: str) -> str | None:
    if not address or "\0" in address:
        return "write the path of a UNIX socket behind unix:, without a NUL character"
    path = Path(address)
    name = shown(path)
    if len(os.fsencode(address)) > _MAX_UNIX_PATH:
        return f"{name}: the path of a UNIX socket has at most {_MAX_UNIX_PATH} bytes"
    try:
        if not stat.S_ISDIR(os.stat(path.parent).st_mode):
            return f"{shown(path.parent)}: it is no directory"
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            return f"{name}: another file has this name; remove it, or choose another name"
    except FileNotFoundError as error:
        if not path.parent.exists():
            return f"{explain_file_error(path.parent, error)}: make this directory"
    except OSError as error:
        return explain_file_error(path, error)
    return None


def _interface_problem(interface: str) -> str | None:
    try:
        found = socket.getaddrinfo(
            interface or None, 0, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except (OSError, UnicodeError):
        return f"interface={interface} is no address: write an IP address of this host"
    family, kind, protocol, _, address = found[0]
    if not interface:
        family, address = socket.AF_INET, ("", 0)
    try:
        with socket.socket(family, kind, protocol) as probe:
            probe.bind(address)
    except OSError as error:
        if error.errno == errno.EADDRNOTAVAIL:
            return f"interface={interface}: no interface of this host has this address"
        if error.errno == errno.EAFNOSUPPORT:
            return "this host has no IPv6: write interface= and an IPv4 address, such as 0.0.0.0"
        return f"interface={interface}: {error.strerror}"
    return None

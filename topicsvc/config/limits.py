"""Reads ``[limits]``: limits on untrusted clients."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from topicsvc.admission.addresses import parse_network
from topicsvc.admission.origins import parse_origin
from topicsvc.config.toml_table import Table
from topicsvc.settings import MEBIBYTE, LimitSettings

__all__ = ["read_limits"]

T = TypeVar("T")


def read_limits(table: Table) -> LimitSettings:
    """Read ``[limits]``; each limit has a default."""
    default = LimitSettings()
    table.renamed("waiting", "unauthenticated")
    table.renamed("waiting_per_address", "unauthenticated_per_address")

    def limit(key: str, least: int = 0, most: int = 10**6) -> int:
        return table.integer(key, getattr(default, key), least, most)

    return LimitSettings(
        connections=limit("connections"),
        per_address=limit("per_address"),
        unauthenticated=limit("unauthenticated"),
        unauthenticated_per_address=limit("unauthenticated_per_address"),
        accepts_per_second=limit("accepts_per_second"),
        failed_tokens_per_minute=limit("failed_tokens_per_minute"),
        connections_per_cell=limit("connections_per_cell"),
        sends_per_minute=limit("sends_per_minute"),
        sends_per_minute_per_cell=limit("sends_per_minute_per_cell", most=10**9),
        messages_per_minute=limit("messages_per_minute"),
        frames_per_message=limit("frames_per_message", least=1, most=MEBIBYTE),
        queued_bytes=limit("queued_bytes", least=MEBIBYTE, most=2**40),
        trusted_proxies=_parse_each(table, "trusted_proxies", parse_network, _NETWORK),
        allowed_origins=frozenset(_parse_each(table, "allowed_origins", parse_origin, _ORIGIN)),
    )


def _parse_each(table: Table, key: str, parse: Callable[[str], T], allowed: str) -> tuple[T, ...]:
    """Parse each string of a list; report the ones that cannot be parsed."""
    parsed = []
    for text in table.texts(key):
        try:
            parsed.append(parse(text))
        except ValueError as error:
            reason = str(error)
            table.problem(key, reason if text in reason else f"{text!r}: {reason}", allowed)
    return tuple(parsed)


_NETWORK = '"192.0.2.1", "10.0.0.0/8" or "2001:db8::/32"'
_ORIGIN = '"https://app.example", "https://app.example:8443", "app://localhost", "file://", "null"'

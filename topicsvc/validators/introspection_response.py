"""Pure: what an introspection answer says about a token (RFC 7662, section 2.2)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from topicsvc.errors import TokenInactive, ValidatorUnavailable
from topicsvc.strict_json import reject_constant, reject_duplicates

__all__ = ["LATEST", "Claims", "read_claims"]

LATEST = 253402300799
"""The last second of the year 9999. What lies behind it is no expiry: milliseconds, mostly."""


@dataclass(frozen=True, slots=True)
class Claims:
    """A live token, as its server describes it.

    Attributes:
        subject: whose it is; None: not told.
        expires_at: seconds since the epoch.
        scopes: what it is for.
        issuer: who made it; None: not told.
        audience: for whom it was made; empty: not told.
    """

    subject: str | None
    expires_at: int
    scopes: frozenset[str] = frozenset()
    issuer: str | None = None
    audience: frozenset[str] = frozenset()


def read_claims(body: bytes, now: float) -> Claims:
    """Read the answer to "is this token active?", strictly.

    Args:
        body: the answer.
        now: seconds since the epoch.

    Raises:
        TokenInactive: it says no, or that the token has run out or is not valid yet.
        ValidatorUnavailable: it says neither yes nor no in the form that the RFC has, or
            not until when.
    """
    try:
        members = json.loads(
            body.decode("utf-8"),
            parse_constant=reject_constant,
            object_pairs_hook=reject_duplicates,
        )
    except (ValueError, RecursionError):
        raise ValidatorUnavailable("introspection: not JSON") from None
    if not isinstance(members, dict):
        raise ValidatorUnavailable("introspection: not a JSON object")
    active = members.get("active")
    if active is False:
        raise TokenInactive("not active")
    if active is not True:
        raise ValidatorUnavailable('introspection: "active" is neither true nor false')
    expires_at = _time(members, "exp")
    if expires_at is None:
        raise ValidatorUnavailable('introspection: no "exp"')
    if expires_at <= now:
        raise TokenInactive("expired")
    not_before = _time(members, "nbf")
    if not_before is not None and not_before > now:
        raise TokenInactive("not valid yet")
    scope = members.get("scope", "")
    if not isinstance(scope, str):
        raise ValidatorUnavailable('introspection: "scope" is no text')
    return Claims(
        _text(members.get("sub")),
        expires_at,
        frozenset(scope.split(" ")) - {""},  # and by nothing else: RFC 6749, section 3.3
        _text(members.get("iss")),
        _audience(members.get("aud")),
    )


def _time(members: dict[str, Any], name: str) -> int | None:
    """A NumericDate in whole seconds; None: not told."""
    value = members.get(name)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= LATEST:
        raise ValidatorUnavailable(f'introspection: "{name}" is no time in seconds')
    return value


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _audience(value: Any) -> frozenset[str]:
    """``aud`` is one text or a list of them."""
    members = value if isinstance(value, list) else [value]
    return frozenset(member for member in members if isinstance(member, str))

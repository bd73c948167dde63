"""Reads introspection responses (RFC 7662, section 2.2)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from topicsvc.errors import TokenInactive, ValidatorUnavailable
from topicsvc.refusals import Refusal, RefusalReason
from topicsvc.strict_json import reject_constant, reject_duplicates
from topicsvc.validators.numeric_date import read_time

__all__ = ["NOT_BEFORE_LEEWAY", "Claims", "is_client_refused", "read_claims"]

NOT_BEFORE_LEEWAY = 60
"""Seconds by which ``nbf`` may be in the future.

The server has compared it with its own clock before it called the token active, so a small
difference only shows that the clocks differ. `topicsvc doctor` accepts as much.
"""

_CLIENT_ERRORS = ("invalid_client", "unauthorized_client")


@dataclass(frozen=True, slots=True)
class Claims:
    """What a server says about an active token.

    Attributes:
        subject: ``sub``; None: not given.
        expires_at: ``exp``, in seconds since the epoch.
        scopes: the members of ``scope``.
        issuer: ``iss``; None: not given.
        audience: ``aud``; empty: not given.
        members: the whole response.
    """

    subject: str | None
    expires_at: float
    scopes: frozenset[str] = frozenset()
    issuer: str | None = None
    audience: frozenset[str] = frozenset()
    members: Mapping[str, Any] = field(default_factory=dict, compare=False)


def read_claims(body: bytes, now: float) -> Claims:
    """Read the body of an introspection response, strictly.

    Args:
        body: the whole body.
        now: seconds since the epoch.

    Raises:
        TokenInactive: the token is not active, has expired, or is not valid yet.
        ValidatorUnavailable: the body does not have the form of RFC 7662, or an active token
            has no ``exp``.
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
        raise TokenInactive(Refusal(RefusalReason.NOT_ACTIVE))
    if active is not True:
        raise ValidatorUnavailable('introspection: "active" is neither true nor false')
    expires_at = _time(members, "exp")
    if expires_at is None:
        raise ValidatorUnavailable('introspection: no "exp"')
    if expires_at <= now:
        raise TokenInactive(Refusal(RefusalReason.EXPIRED))
    not_before = _time(members, "nbf")
    if not_before is not None and not_before > now + NOT_BEFORE_LEEWAY:
        raise TokenInactive(Refusal(RefusalReason.NOT_YET_VALID))
    scope = members.get("scope")
    if scope is None:  # some servers write null for each member without a value
        scope = ""
    if not isinstance(scope, str):
        raise ValidatorUnavailable('introspection: "scope" is not a string')
    return Claims(
        _text(members.get("sub")),
        expires_at,
        frozenset(scope.split(" ")) - {""},  # separated by spaces only: RFC 6749, section 3.3
        _text(members.get("iss")),
        _audience(members.get("aud")),
        members,
    )


def is_client_refused(status: int, body: bytes) -> bool:
    """Whether a response refuses the credentials of the client that introspects.

    RFC 7662 requires 401. Other servers, and units, answer 400 with the error of RFC 6749,
    section 5.2.
    """
    if status != 400:
        return status in (401, 403)
    try:
        members = json.loads(body)
    except (ValueError, RecursionError):
        return False
    return isinstance(members, dict) and members.get("error") in _CLIENT_ERRORS


def _time(members: dict[str, Any], name: str) -> float | None:
    """Return a NumericDate; None: not given."""
    value = members.get(name)
    if value is None:
        return None
    time = read_time(value)
    if time is None:
        raise ValidatorUnavailable(f'introspection: "{name}" is not a time in seconds')
    return time


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _audience(value: Any) -> frozenset[str]:
    """Return the strings in ``aud``, which is one or a list of them."""
    members = value if isinstance(value, list) else [value]
    return frozenset(member for member in members if isinstance(member, str))

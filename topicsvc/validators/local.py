"""Adapter: tokens that are judged here, with a key of our own.

A token is a JWT (RFC 7519) signed with HMAC-SHA256. Its claims: ``sub``, whose it is;
``exp``, until when; ``topics``, a list of paths (``/cell1/box1/*`` for all below); ``may``,
a list of ``receive`` and ``send``.
"""

from __future__ import annotations

import base64
import binascii
import os
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jwt
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.interfaces import IReactorTime

from topicsvc.address import TopicAddress, TopicPattern
from topicsvc.errors import PathRefused, TokenInactive
from topicsvc.ports import Grant

__all__ = ["RIGHTS", "LocalValidator", "make_key", "read_key", "sign_token", "write_key"]

RIGHTS = ("receive", "send")

_ALGORITHM = "HS256"
_KEY_BYTES = 32


def make_key() -> bytes:
    """A new random key."""
    return secrets.token_bytes(_KEY_BYTES)


def write_key(path: Path, key: bytes) -> None:
    """Write `key` to a new file that only its owner can read.

    Raises:
        OSError: the file exists or cannot be written.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(base64.urlsafe_b64encode(key) + b"\n")


def read_key(path: Path) -> bytes:
    """Read a key that `write_key` wrote.

    Raises:
        OSError: the file cannot be read.
        ValueError: it holds no key of at least 32 bytes.
    """
    try:
        key = base64.b64decode(path.read_bytes().strip(), altchars=b"-_", validate=True)
    except binascii.Error:
        raise ValueError("not a key in base64url") from None
    if len(key) < _KEY_BYTES:
        raise ValueError(f"a key has at least {_KEY_BYTES} bytes")
    return key


def sign_token(
    key: bytes, subject: str | None, topics: Sequence[str], may: Sequence[str], expires_at: int
) -> str:
    """Make a token. `topics` are patterns, `may` some of `RIGHTS`, the time is in seconds."""
    claims: dict[str, object] = {"exp": expires_at, "topics": list(topics), "may": list(may)}
    if subject is not None:
        claims["sub"] = subject
    return jwt.encode(claims, key, algorithm=_ALGORITHM)


class LocalValidator:
    """Judges tokens by their signature and claims.

    Args:
        key: what tokens are signed with.
        clock: what expiry is measured by.
    """

    def __init__(self, key: bytes, clock: IReactorTime) -> None:
        # A key of PyJWT's own kind is looked at once, not for each token.
        self._key = jwt.PyJWK({"kty": "oct", "alg": _ALGORITHM, "k": _base64url(key)})
        self._clock = clock

    def validate(self, token: str, topic: TopicAddress) -> Deferred[Grant]:
        """See `topicsvc.ports.TokenValidator`; answers at once."""
        try:
            return succeed(self._grant(token, topic))
        except TokenInactive as no:
            return fail(no)

    def _grant(self, token: str, topic: TopicAddress) -> Grant:
        try:
            # The time is ours to check: PyJWT would read a clock of its own.
            claims = jwt.decode(
                token,
                self._key,
                algorithms=[_ALGORITHM],
                options={
                    "require": ["exp"],
                    "verify_exp": False,
                    "verify_nbf": False,
                    "verify_iat": False,
                    "verify_aud": False,
                },
            )
        except (jwt.InvalidTokenError, ValueError, RecursionError) as error:
            raise TokenInactive("not a token of ours") from error
        now = self._clock.seconds()
        if not _is_time(claims["exp"]) or claims["exp"] <= now:
            raise TokenInactive("expired")
        if "nbf" in claims and (not _is_time(claims["nbf"]) or claims["nbf"] > now):
            raise TokenInactive("not yet valid")
        may = claims.get("may")
        if not isinstance(may, list) or not _speaks_of(claims.get("topics"), topic):
            raise TokenInactive("not for this topic")
        return Grant(claims.get("sub"), claims["exp"], "receive" in may, "send" in may)


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


def _is_time(claim: Any) -> bool:
    """Whether `claim` is a NumericDate (RFC 7519, section 2) that a clock can show."""
    return isinstance(claim, (int, float)) and not isinstance(claim, bool) and 0 <= claim < 2**53


def _speaks_of(patterns: Any, topic: TopicAddress) -> bool:
    if not isinstance(patterns, list):
        return False
    try:
        return any(TopicPattern.parse(pattern).matches(topic) for pattern in patterns)
    except (PathRefused, AttributeError):
        return False

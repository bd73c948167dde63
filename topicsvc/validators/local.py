"""Validates tokens in this process, with a key file.

A token is a JWT (RFC 7519) that is signed with HMAC-SHA256. Its claims are ``exp``,
``topics`` (a list of paths, such as ``/cell1/box1/*`` for all below), ``may`` (a list of
``receive`` and ``send``) and, optionally, ``sub`` and ``nbf``.
"""

from __future__ import annotations

import base64
import binascii
import codecs
import hmac
import json
import os
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jwt
from jwt.algorithms import HMACAlgorithm
from jwt.api_jws import PyJWS
from jwt.utils import force_bytes
from twisted.internet.defer import Deferred, fail, succeed

from topicsvc.errors import PathRefused, TokenInactive
from topicsvc.files import read_file
from topicsvc.interfaces import Grant, TokenValidator
from topicsvc.refusals import Refusal, RefusalReason, quoted_list
from topicsvc.topics import TopicAddress, TopicPattern
from topicsvc.validators.token_cache import TokenCache

__all__ = [
    "MAX_TOKENS",
    "RIGHTS",
    "LocalValidator",
    "make_key",
    "read_key",
    "sign_token",
    "write_key",
]

RIGHTS = ("receive", "send")

MAX_TOKENS = 10000
"""Tokens whose verified claims are cached: some 8 MB."""

_ALGORITHM = "HS256"
_HEADER = jwt.encode({}, bytes(32), algorithm=_ALGORITHM).partition(".")[0] + "."
"""The first part of a token of `sign_token`, with the dot behind it."""

_KEY_BYTES = 32

_SIGN_ANOTHER = 'sign a token whose "topics" and "may" have the right; see docs/configuration.md'


def make_key() -> bytes:
    """Return a new random key."""
    return secrets.token_bytes(_KEY_BYTES)


def write_key(path: Path, key: bytes) -> None:
    """Write `key` to a new file that only its owner may read.

    Raises:
        OSError: the file exists or cannot be written. An incomplete file is removed.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(base64.urlsafe_b64encode(key) + b"\n")
            file.flush()
            os.fsync(descriptor)  # some file systems report a full disk only now
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def read_key(path: Path) -> bytes:
    """Read a key that `write_key` wrote.

    Raises:
        OSError: the file cannot be read.
        ValueError: the file has no key of at least 32 bytes.
    """
    try:
        text = read_file(path).removeprefix(codecs.BOM_UTF8).strip()
        if not text:
            raise ValueError("the file is empty")
        key = base64.b64decode(text, altchars=b"-_", validate=True)
    except binascii.Error:
        raise ValueError("not a key in base64url") from None
    if len(key) < _KEY_BYTES:
        raise ValueError(f"a key has at least {_KEY_BYTES} bytes")
    return key


def sign_token(
    key: bytes, subject: str | None, topics: Sequence[str], may: Sequence[str], expires_at: int
) -> str:
    """Return a signed token.

    Args:
        key: the key that `LocalValidator` has.
        subject: ``sub``; None: none.
        topics: paths or patterns of topics.
        may: some of `RIGHTS`.
        expires_at: seconds since the epoch.
    """
    claims: dict[str, object] = {"exp": expires_at, "topics": list(topics), "may": list(may)}
    if subject is not None:
        claims["sub"] = subject
    return jwt.encode(claims, key, algorithm=_ALGORITHM)


@dataclass(frozen=True, slots=True)
class _Token:
    """The claims of a token whose signature is valid."""

    grant: Grant
    not_before: float
    topics: tuple[TopicPattern, ...]


class _PreparedKey(HMACAlgorithm):
    """HS256 with a key that is known to be valid. PyJWT would check it for each token."""

    def prepare_key(self, key: str | bytes) -> bytes:
        return force_bytes(key)


class LocalValidator(TokenValidator):
    """Validates tokens by their signature and claims.

    A sender shows its token with each message, so the claims of a token whose signature has
    been verified are cached. Expiry and topics are checked at each use.

    Args:
        key: the key that tokens are signed with.
        now: the time of day, in seconds since the epoch, which decides about expiry.
        max_tokens: tokens that are cached. If there are more, the oldest is evicted.
    """

    def __init__(self, key: bytes, now: Callable[[], float], max_tokens: int = MAX_TOKENS) -> None:
        self._key = key
        self._now = now
        self._signatures = PyJWS(algorithms=[_ALGORITHM])
        self._signatures.unregister_algorithm(_ALGORITHM)
        self._signatures.register_algorithm(_ALGORITHM, _PreparedKey(HMACAlgorithm.SHA256))
        self._cache = TokenCache[_Token](max_tokens)

    def validate(self, token: str, topic: TopicAddress) -> Deferred[Grant]:
        """See `topicsvc.interfaces.TokenValidator`; the Deferred has fired already."""
        try:
            return succeed(self._grant(self._claims(token), topic))
        except TokenInactive as refusal:
            return fail(refusal)

    def remembered(self, token: str, topic: TopicAddress) -> Grant | None:
        """See `topicsvc.interfaces.TokenValidator`."""
        # A signature is verified at once, so a valid token needs no Deferred.
        try:
            return self._grant(self._claims(token), topic)
        except TokenInactive:
            return None

    def _grant(self, claims: _Token, topic: TopicAddress) -> Grant:
        now = self._now()
        if claims.grant.is_expired(now):
            raise TokenInactive(Refusal(RefusalReason.EXPIRED))
        if claims.not_before > now:
            raise TokenInactive(Refusal(RefusalReason.NOT_YET_VALID))
        for pattern in claims.topics:
            if pattern.matches(topic):
                return claims.grant
        # The token is valid and has no right here: a client must not throw it away.
        refusal = Refusal(
            RefusalReason.NO_RIGHT,
            f"its topics are {quoted_list(map(str, claims.topics))}",
            _SIGN_ANOTHER,
        )
        return Grant(claims.grant.subject, claims.grant.expires_at, False, False, refusal)

    def _claims(self, token: str) -> _Token:
        key = self._cache.key(token)
        claims = self._cache.get(key)
        if claims is None:
            claims = self._read(token)
            self._cache.put(key, claims)
        return claims

    def _signed_payload(self, token: str) -> bytes | None:
        """Return the payload of a token with the header and the spelling of `sign_token`.

        It costs a fifth of PyJWT's method, which parses the header of each token.

        Returns:
            None: PyJWT decides about the token.
        """
        signed, _, signature = token.rpartition(".")
        if not signed.startswith(_HEADER) or not token.isascii():
            return None
        digest = hmac.digest(self._key, signed.encode("ascii"), "sha256")
        expected = base64.urlsafe_b64encode(digest).rstrip(b"=")
        if not hmac.compare_digest(expected, signature.encode("ascii")):
            return None
        payload = signed[len(_HEADER) :]
        return base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4))

    def _read(self, token: str) -> _Token:
        """Verify the signature and read the claims; the caller checks the times."""
        try:
            payload = self._signed_payload(token)
            if payload is None:
                payload = self._signatures.decode(token, self._key, algorithms=[_ALGORITHM])
            claims = json.loads(payload.decode("utf-8"))
        except jwt.InvalidSignatureError as error:
            raise TokenInactive(
                Refusal(
                    RefusalReason.SIGNATURE,
                    specific_advice="the token was signed with another key than that of "
                    "validator.key_file, or was changed",
                )
            ) from error
        except jwt.InvalidAlgorithmError as error:
            raise TokenInactive(
                Refusal(RefusalReason.ALGORITHM, f"{_ALGORITHM} is required")
            ) from error
        except (jwt.InvalidTokenError, ValueError, RecursionError) as error:
            raise TokenInactive(Refusal(RefusalReason.MALFORMED, "not a JWT")) from error
        if not isinstance(claims, dict):
            raise _invalid_claims("the claims are not an object")
        subject: Any = claims.get("sub")
        expires_at: Any = claims.get("exp")
        not_before: Any = claims.get("nbf", 0)
        if not (subject is None or isinstance(subject, str)):
            raise _invalid_claims('"sub" is not a string')
        if not _is_time(expires_at) or not _is_time(not_before):
            raise _invalid_claims('"exp" or "nbf" is not a time')
        may = claims.get("may")
        if not isinstance(may, list):
            raise _invalid_claims('"may" is not a list')
        may_receive, may_send = "receive" in may, "send" in may
        grant = Grant(
            subject, expires_at, may_receive, may_send, _missing_right(may_receive, may_send)
        )
        return _Token(grant, not_before, _patterns(claims.get("topics")))


def _missing_right(may_receive: bool, may_send: bool) -> Refusal | None:
    if may_receive and may_send:
        return None
    if may_receive:
        return Refusal(RefusalReason.MAY_NOT_SEND, "", _SIGN_ANOTHER)
    if may_send:
        return Refusal(RefusalReason.MAY_NOT_RECEIVE, "", _SIGN_ANOTHER)
    return Refusal(RefusalReason.NO_RIGHT, '"may" has no right', _SIGN_ANOTHER)


def _is_time(claim: Any) -> bool:
    """Whether `claim` is a NumericDate (RFC 7519, section 2) of less than 2**53 seconds."""
    return isinstance(claim, (int, float)) and not isinstance(claim, bool) and 0 <= claim < 2**53


def _patterns(claim: Any) -> tuple[TopicPattern, ...]:
    if not isinstance(claim, list) or not all(isinstance(text, str) for text in claim):
        raise _invalid_claims('"topics" is not a list of strings')
    try:
        return tuple(map(TopicPattern.parse, claim))
    except PathRefused as error:
        raise _invalid_claims('"topics" has an invalid topic') from error


def _invalid_claims(detail: str) -> TokenInactive:
    return TokenInactive(Refusal(RefusalReason.CLAIMS, detail))

"""Takes JWTs apart (RFC 7515, section 3.1), strictly, without a look at the signature."""

from __future__ import annotations

import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from json import JSONDecoder
from typing import Any

from topicsvc.errors import TokenInactive
from topicsvc.refusals import Refusal, RefusalReason
from topicsvc.strict_json import reject_constant, reject_duplicates

__all__ = ["MAX_TOKEN", "Jwt", "decode_base64url", "is_clean", "parse"]

MAX_TOKEN = 32768
"""Most characters of a token, as on the wire."""

_BASE64URL = re.compile(r"[A-Za-z0-9_-]*")
_decoder = JSONDecoder(object_pairs_hook=reject_duplicates, parse_constant=reject_constant)


@dataclass(frozen=True, slots=True)
class Jwt:
    """A token in its parts.

    Attributes:
        header: the members of its header.
        claims: its claims.
        signed: the bytes that are signed.
        signature: the signature.
    """

    header: Mapping[str, Any]
    claims: Mapping[str, Any]
    signed: bytes
    signature: bytes


def parse(token: str) -> Jwt:
    """Take a token apart.

    Each part must be base64url without padding. Header and claims must be JSON objects in UTF-8,
    without duplicate keys, ``NaN`` and ``Infinity``.

    Raises:
        TokenInactive: it is no JWT.
    """
    if len(token) > MAX_TOKEN:
        raise _malformed(f"more than {MAX_TOKEN} characters")
    parts = token.split(".")
    if len(parts) == 5:
        raise _malformed("an encrypted token (JWE); the issuer must send signed ones")
    if len(parts) != 3:
        raise _malformed("not a JWT, but an opaque token")
    return Jwt(
        _read_object(parts[0], "header"),
        _read_object(parts[1], "claims"),
        token.rpartition(".")[0].encode("ascii"),
        _decode(parts[2], "signature"),
    )


def decode_base64url(text: str) -> bytes:
    """Decode base64url without padding (RFC 7515, section 2).

    Raises:
        ValueError: it has other characters, or bits that belong to no byte.
    """
    if not _BASE64URL.fullmatch(text):
        raise ValueError("not base64url")
    data = urlsafe_b64decode(text + "=" * (-len(text) % 4))
    if urlsafe_b64encode(data).rstrip(b"=") != text.encode("ascii"):
        raise ValueError("not base64url")
    return data


def is_clean(text: str) -> bool:
    """Whether a text from JSON can be encoded: it has no half of a surrogate pair."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _read_object(part: str, name: str) -> dict[str, Any]:
    data = _decode(part, name)
    try:
        members = _decoder.decode(data.decode("utf-8"))
    except (ValueError, RecursionError):
        raise _malformed(f"its {name} is not JSON, or a key occurs twice") from None
    if not isinstance(members, dict):
        raise _malformed(f"its {name} is not a JSON object")
    return members


def _decode(part: str, name: str) -> bytes:
    try:
        return decode_base64url(part)
    except ValueError:
        raise _malformed(f"its {name} is not base64url without padding") from None


def _malformed(detail: str) -> TokenInactive:
    return TokenInactive(Refusal(RefusalReason.MALFORMED, detail))

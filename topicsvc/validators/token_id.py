"""Identifies tokens in the log, so that one client can be followed through it."""

from __future__ import annotations

import secrets
from hashlib import blake2b

__all__ = ["ID_LENGTH", "KEY_BYTES", "TokenIds"]

ID_LENGTH = 8
"""Characters of an identifier."""

KEY_BYTES = 32
"""Bytes of a key."""


class TokenIds:
    """Makes the identifiers of tokens: a keyed hash (BLAKE2b), of which 32 bits are kept.

    The default key is random and belongs to this process, or to the parent of several workers. So
    an identifier says nothing about the token: it cannot be computed from a token elsewhere, and
    many tokens share it. Of 10,000 tokens, one pair has the same identifier with a probability of
    1 %.

    Args:
        key: the key of the hash; None: a new random key.
    """

    __slots__ = ("_key",)

    def __init__(self, key: bytes | None = None) -> None:
        self._key = secrets.token_bytes(KEY_BYTES) if key is None else key

    def use_key(self, key: bytes) -> None:
        """Make the identifiers that other processes with this key make."""
        self._key = key

    def __call__(self, token: str) -> str:
        """The identifier of `token`: 8 hexadecimal digits."""
        data = token.encode("utf-8", "surrogatepass")
        return blake2b(data, digest_size=ID_LENGTH // 2, key=self._key).hexdigest()

"""Caches what is known about tokens, without the tokens."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from hashlib import blake2b
from typing import Generic, TypeVar

__all__ = ["TokenCache"]

_Value = TypeVar("_Value")

_HASH_BYTES = 32


class TokenCache(Generic[_Value]):
    """A bounded mapping from tokens to values. The oldest entry is evicted first.

    A token is replaced by its hash (BLAKE2b). The key of the hash is random and belongs to
    this cache, so neither the token nor a hash that others can compute stays in memory.

    Args:
        max_entries: most entries that are kept.
        is_current: whether an entry is still of use; the oldest ones that are not are evicted
            when another is added. None: entries do not age.
    """

    def __init__(
        self, max_entries: int, is_current: Callable[[_Value], bool] | None = None
    ) -> None:
        self._max_entries = max_entries
        self._is_current = is_current
        self._secret = secrets.token_bytes(_HASH_BYTES)
        self._entries: dict[bytes, _Value] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def key(self, text: str) -> bytes:
        """The key of an entry: the hash of a token, or of a token and what else it is for."""
        return blake2b(text.encode("utf-8"), digest_size=_HASH_BYTES, key=self._secret).digest()

    def get(self, key: bytes) -> _Value | None:
        """The value under `key`, current or not; None: there is none."""
        return self._entries.get(key)

    def put(self, key: bytes, value: _Value) -> None:
        """Keep `value` as the newest entry, and evict old ones."""
        self._entries.pop(key, None)
        self._entries[key] = value
        while self._entries:
            oldest, known = next(iter(self._entries.items()))
            if len(self._entries) <= self._max_entries and (
                self._is_current is None or self._is_current(known)
            ):
                return
            del self._entries[oldest]

    def discard(self, key: bytes) -> None:
        """Remove the entry under `key`, if there is one."""
        self._entries.pop(key, None)

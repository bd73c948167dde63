"""Adapter: who we are to a broker, whichever it is."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["Login"]


@dataclass(frozen=True, slots=True)
class Login:
    """User name and password."""

    username: str
    password: str = field(repr=False)

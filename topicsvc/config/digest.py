"""Identifies settings by a digest, so that processes can find out whether they have the same."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from hashlib import sha256
from typing import Any

from topicsvc.settings import Config

__all__ = ["digest"]


def digest(settings: Config) -> str:
    """Return a digest of all settings, which is the same in each process that has the same.

    What the libraries keep behind an object of theirs, such as trusted authorities, is not known,
    and left out.
    """
    return sha256(_canonical(settings).encode("utf-8", "surrogateescape")).hexdigest()


def _canonical(value: Any) -> str:
    if is_dataclass(value) and not isinstance(value, type):
        members = [f"{each.name}={_canonical(getattr(value, each.name))}" for each in fields(value)]
        return f"{type(value).__name__}({','.join(members)})"
    if isinstance(value, Mapping):
        return (
            f"{{{','.join(sorted(f'{_canonical(k)}:{_canonical(v)}' for k, v in value.items()))}}}"
        )
    if isinstance(value, (set, frozenset)):  # without order, and different in each process
        return f"{{{','.join(sorted(map(_canonical, value)))}}}"
    if isinstance(value, (list, tuple)):
        return f"[{','.join(map(_canonical, value))}]"
    if isinstance(value, re.Pattern):
        return repr(value.pattern)
    if hasattr(value, "identity"):
        return _canonical(value.identity)
    text = repr(value)
    return type(value).__name__ if text.startswith("<") else text

"""Divides the limits of a machine among the workers that share it.

A limit is divided if it protects the machine: its memory, its sockets, its processor time, the
validator, or tokens against guessing. The kernel distributes connections over the workers, so each
worker gets about the same number of them.

A limit on the use by one client or one cell is not divided. A client with one connection reaches
one worker only, and would get a fraction of its limit.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from topicsvc.settings import Config

__all__ = ["DIVIDED_LIMITS", "UNDIVIDED_LIMITS", "divide", "share"]

DIVIDED_LIMITS = (
    "connections",
    "unauthenticated",
    "unauthenticated_per_address",
    "accepts_per_second",
    "failed_tokens_per_minute",
    "queued_bytes",
)
"""The settings of ``[limits]`` of which each worker has its share.

``validator.concurrency`` and ``history.total`` are divided too.
"""

UNDIVIDED_LIMITS = (
    "per_address",
    "connections_per_cell",
    "sends_per_minute",
    "sends_per_minute_per_cell",
    "messages_per_minute",
    "frames_per_message",
    "trusted_proxies",
    "allowed_origins",
)
"""The settings of ``[limits]`` that each worker applies as they are."""


def divide(limit: int, workers: int) -> int:
    """The share of one worker, rounded up. A limit of 0, which means none, stays 0."""
    return -(-limit // workers)


def share(settings: Config, workers: int) -> Config:
    """Return the settings of one of `workers` workers, whose limits are its share."""
    limits = settings.limits
    divided: dict[str, Any] = {
        name: divide(getattr(limits, name), workers) for name in DIVIDED_LIMITS
    }
    return replace(
        settings,
        limits=replace(limits, **divided),
        history=replace(settings.history, total=divide(settings.history.total, workers)),
        checks=replace(settings.checks, concurrency=divide(settings.checks.concurrency, workers)),
    )

"""Reads how many processes serve clients."""

from __future__ import annotations

from collections.abc import Callable

from topicsvc.config.toml_table import Table
from topicsvc.process.processors import usable_processors
from topicsvc.settings import BrokerSettings, MemorySettings

__all__ = ["ALLOWED", "AUTO", "MAX_WORKERS", "memory_problem", "read_workers", "workers_of"]

MAX_WORKERS = 64
"""Most workers of one parent."""

AUTO = "auto"
"""As many workers as there are processors for this process, at most `MAX_WORKERS`."""

ALLOWED = f'"{AUTO}" or a whole number from 1 to {MAX_WORKERS}'
"""The values of the setting and of the option, for the text of a problem."""


def read_workers(
    table: Table,
    option: str | None,
    broker: BrokerSettings,
    broker_table: Table,
    processors: Callable[[], int] = usable_processors,
) -> int:
    """Return the number of workers.

    Args:
        table: the whole file.
        option: ``--workers``, which overrides the file; None: not given.
        broker: the settings of the broker.
        broker_table: their table. If it has a problem, `broker` may be another one.
        processors: returns how many processors this process may use.
    """
    value = table.integer_or("workers", 1, 1, MAX_WORKERS, AUTO)
    if option is not None:
        try:
            value = workers_of(option)
        except ValueError as error:
            table.problem("workers", str(error), ALLOWED)
            return 1
    count = min(processors(), MAX_WORKERS) if value == AUTO else int(value)
    kind = broker_table.given("kind")
    if isinstance(broker, MemorySettings) and kind in (None, "memory"):
        problem = memory_problem(count)
        if problem is not None:
            table.add(problem)
            return 1
    return count


def workers_of(option: str) -> int | str:
    """The value of ``--workers``.

    Raises:
        ValueError: it has no such value.
    """
    is_number = option.isascii() and option.isdecimal() and len(option) < 10
    if option == AUTO:
        return AUTO
    if not is_number or not 1 <= int(option) <= MAX_WORKERS:
        raise ValueError(f"{option[:40]!r} is not a number of workers")
    return int(option)


def memory_problem(count: int) -> str | None:
    """Why `count` processes cannot have a memory broker, and the smallest way out."""
    if count == 1:
        return None
    return (
        f'workers: {count} processes need a broker that they share, and broker.kind is "memory"; '
        "the smallest one: apt-get install redis-server, pip install 'topicsvc[redis]', and three "
        'lines in the file: [broker], kind = "redis", url = "redis://localhost"'
    )

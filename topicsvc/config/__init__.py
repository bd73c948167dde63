"""Reads settings from a TOML file and command-line options into one frozen `Config`.

All problems are reported at once.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterable
from pathlib import Path

from topicsvc.config.admin import read_admin
from topicsvc.config.broker import queue_problem, read_broker, read_history
from topicsvc.config.files import read_secret, read_settings_file
from topicsvc.config.limits import read_limits
from topicsvc.config.shares import divide
from topicsvc.config.toml_table import Table
from topicsvc.config.topics import read_topics
from topicsvc.config.validator import CELL_URLS, kind_of, read_checks, read_validator
from topicsvc.config.workers import read_workers
from topicsvc.errors import ConfigError
from topicsvc.files import explain_file_error
from topicsvc.settings import (
    DAY,
    MEBIBYTE,
    Config,
    LogSettings,
    SendSettings,
    SessionSettings,
    StopSettings,
)
from topicsvc.topics import CellUrlStyle, Unit

__all__ = ["load", "read", "read_secret"]

ExtraCheck = Callable[["Config"], Iterable[str]]
"""Returns further problems of settings, one line for each. Invalid settings have their defaults."""


def read(
    path: Path,
    listen: Iterable[str] = (),
    admin: str | None = None,
    extra_check: ExtraCheck | None = None,
    directory: Path = Path(),
    workers: str | None = None,
) -> Config:
    """Read a configuration file; see `load`.

    Raises:
        ConfigError: the file cannot be read, or a setting cannot be used.
    """
    try:
        text = read_settings_file(path)
    except (OSError, ValueError) as error:
        raise ConfigError([explain_file_error(path, error)]) from error
    options = {"listen": bool(listen), "admin": bool(admin), "workers": workers is not None}
    try:
        return load(text, listen, admin, extra_check, directory, workers)
    except ConfigError as error:
        raise ConfigError([_with_source(line, path, options) for line in error.problems]) from error


def _with_source(problem: str, path: Path, options: dict[str, bool]) -> str:
    """Name the file of a problem, or the option that overrides the file."""
    is_option = options.get(problem.partition(":")[0], False)
    return f"--{problem}" if is_option else f"{path}: {problem}"


def load(
    text: str,
    listen: Iterable[str] = (),
    admin: str | None = None,
    extra_check: ExtraCheck | None = None,
    directory: Path = Path(),
    workers: str | None = None,
) -> Config:
    """Read settings in TOML; command-line options override them.

    Args:
        text: the content of the file.
        listen: overrides the endpoints of the file, if not empty.
        admin: overrides the admin endpoint of the file.
        extra_check: finds problems that need more than the file, to report all at once.
        directory: the directory that relative paths start from.
        workers: overrides the number of workers of the file.

    Raises:
        ConfigError: with all problems.
    """
    try:
        members = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError([f"not TOML: {error}"]) from error
    table = Table(members, directory=directory)
    from_file = table.texts("listen")
    endpoints = tuple(listen) or from_file
    if not endpoints and not table.has_problem("listen"):
        table.problem("listen", "nothing to listen on", 'an endpoint, ["tcp:8080"]')
    config = _config(table, endpoints, admin, workers)
    table.raise_problems(() if extra_check is None else extra_check(config))
    return config


def _config(
    table: Table, listen: tuple[str, ...], admin: str | None, workers: str | None = None
) -> Config:
    default = SessionSettings()
    if table.given("topics") == []:
        table.problem("topics", "empty", '["/cell1/box1/*"], or leave the setting out')
    admin_from_file, operator = read_admin(table)
    session = table.table("session")
    send = table.table("send")
    stop = table.table("stop")
    log = table.table("log")
    history = table.table("history")
    send_queue = session.integer("send_queue", default.send_queue, 65536, 2**30)
    kept = read_history(history, send_queue)
    unfit = queue_problem(kept, send_queue)
    if unfit is not None:
        history.add(f"history.bytes: {unfit}")
    validator = table.table("validator")
    broker_table = table.table("broker")
    broker = read_broker(broker_table, kept)
    count = read_workers(table, workers, broker, broker_table)
    if kept.seconds and divide(kept.total, count) < kept.bytes:
        each = f" for {count} workers, {divide(kept.total, count)} for each," if count > 1 else ""
        history.problem(
            "total",
            f"{kept.total}{each} is less than history.bytes, {kept.bytes}, for one topic",
            f"at least {kept.bytes * count}, or a smaller history.bytes",
        )
    return Config(
        listen=listen,
        admin=admin or admin_from_file,
        operator=operator,
        unit=_unit(table, validator),
        topics=tuple(read_topics(table)),
        session=SessionSettings(
            token_timeout=session.number("token_timeout", default.token_timeout, 1, DAY),
            ping_interval=session.number("ping_interval", default.ping_interval, 1, DAY),
            ping_limit=session.integer("ping_limit", default.ping_limit, 1, 1000),
            max_message=session.integer("max_message", default.max_message, 1024, MEBIBYTE),
            send_queue=send_queue,
            timestamps=session.choice("timestamps", ("seconds", "milliseconds")),
        ),
        send=SendSettings(
            enabled=send.flag("enabled", True),
            max_body=send.integer("max_body", MEBIBYTE, 1, 2**30),
            max_batch=send.integer("max_batch", 10000, 1, 10**6),
            trust_via=send.flag("trust_via", False),
        ),
        validator=read_validator(validator, table),
        checks=read_checks(validator),
        broker=broker,
        history=kept,
        limits=read_limits(table.table("limits")),
        stop=StopSettings(drain=stop.number("drain", 5, 0, 3600)),
        directory=table.directory,
        log=LogSettings(subjects=log.flag("subjects", True)),
        workers=count,
    )


def _unit(table: Table, validator: Table) -> Unit:
    url = table.text("unit_url", None, 'a URL, "https://unit1.example/"')
    hosts = table.texts("hosts")
    cell_urls: CellUrlStyle = "host"
    if kind_of(validator) == "personium":
        cell_urls = validator.choice("cell_urls", CELL_URLS)
    url = url or "https://invalid/"
    try:
        Unit(url, cell_urls=cell_urls)
    except ValueError as error:
        table.problem("unit_url", str(error), 'a URL, "https://unit1.example/"')
        url = "https://invalid/"
    try:
        return Unit(url, hosts, cell_urls)
    except ValueError as error:
        table.problem("hosts", str(error), 'names, ["unit1.example", "unit1.internal"]')
        return Unit(url, cell_urls=cell_urls)

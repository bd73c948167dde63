"""``topicsvc check``: reports the problems of a configuration."""

from __future__ import annotations

import json
import os
import pwd
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

from topicsvc import config
from topicsvc.cli.terminal import CommandFailed, print_error, print_line
from topicsvc.errors import ConfigError
from topicsvc.options import MEMORY_BROKER_SHARED, check_problems
from topicsvc.process.instances import count_locks, enabled_instances
from topicsvc.settings import Config, MemorySettings

__all__ = ["run"]


def run(options: Namespace) -> None:
    """Read a configuration, and the endpoints, certificates, keys and passwords that it names.

    A memory broker behind more than one process is a warning.

    Raises:
        CommandFailed: a setting cannot be used; one line for each. Or this user cannot check for
            another user.
    """
    user = None if options.user is None else _find_user(options.user)
    try:
        settings = config.read(options.config, extra_check=check_problems)
    except ConfigError as error:
        raise CommandFailed(*error.problems) from error
    for warning in _warnings(options.config, settings):
        print_error(f"topicsvc check: warning: {options.config}: {warning}")
    if user is not None:
        for problem in _problems_of(user, options.config):
            print_error(f"topicsvc check: warning: as user {user.pw_name}: {problem}")
    print_line(f"{options.config}: good")


def _problems(path: Path) -> tuple[str, ...]:
    try:
        config.read(path, extra_check=check_problems)
    except ConfigError as error:
        return error.problems
    return ()


def _find_user(name: str) -> pwd.struct_passwd:
    try:
        user = pwd.getpwnam(name)
    except KeyError:
        raise CommandFailed(f"--user {name}: there is no such user") from None
    if os.geteuid() not in (0, user.pw_uid):
        raise CommandFailed(f"--user {name}: only root can check for another user: sudo topicsvc")
    return user


def _problems_of(user: pwd.struct_passwd, path: Path) -> list[str]:
    """Check in a child process that has the rights of `user`."""
    if user.pw_uid == os.geteuid():
        return []
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        _run_child(user, path, writer)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        answer = pipe.read()
    os.waitpid(child, 0)
    if not answer:
        return ["the check failed"]
    problems: list[str] = json.loads(answer)
    return problems


def _run_child(user: pwd.struct_passwd, path: Path, writer: int) -> None:
    """Write the problems into the pipe as JSON, and end this process without any cleanup."""
    try:
        os.initgroups(user.pw_name, user.pw_gid)
        os.setgid(user.pw_gid)
        os.setuid(user.pw_uid)
        with os.fdopen(writer, "wb") as pipe:
            pipe.write(json.dumps(_problems(path)).encode("ascii"))
    finally:
        os._exit(0)


def _warnings(file: Path, settings: Config) -> Iterator[str]:
    """Yield what may be intended, but loses messages."""
    if not isinstance(settings.broker, MemorySettings):
        return
    count = count_locks(file)
    if count > 1:
        yield MEMORY_BROKER_SHARED.format(f"{count} processes use this file now")
    template, enabled = enabled_instances(file)
    if enabled:
        yield MEMORY_BROKER_SHARED.format(f"systemd starts {enabled} instances of {template}")

"""``topicsvc token``: makes keys and tokens for the local validator."""

from __future__ import annotations

import os
import time
from argparse import Namespace
from pathlib import Path

from topicsvc.cli.terminal import CommandFailed, print_error, print_line
from topicsvc.errors import PathRefused
from topicsvc.topics import TopicPattern
from topicsvc.validators.local import RIGHTS, make_key, read_key, sign_token, write_key

__all__ = ["run"]


def run(options: Namespace) -> None:
    """Make a key, a token, or both; print only the token.

    Raises:
        CommandFailed: the key cannot be made or read, or a topic is wrong.
    """
    for topic in options.topic:
        try:
            TopicPattern.parse(topic)
        except PathRefused as error:
            raise CommandFailed(
                f"--topic {topic}: {error}; "
                "allowed: /{cell}/{box}/{collection}/topic/{name}, or a pattern /{cell}/{box}/*"
            ) from error
    if not options.topic and not options.new_key:
        raise CommandFailed("--topic is missing: it names the topics of the token")
    key = _new_key(options.key_file) if options.new_key else _read_key(options.key_file)
    if options.topic:
        expires_at = int(time.time()) + options.expires_in
        may = options.may or RIGHTS[:1]
        print_line(sign_token(key, options.subject, options.topic, may, expires_at))


def _new_key(path: Path) -> bytes:
    key = make_key()
    try:
        write_key(path, key)
    except FileExistsError as error:
        if path.is_file() and path.stat().st_size == 0:
            raise CommandFailed(f"{path} exists and is empty: remove it first") from error
        raise CommandFailed(
            f"{path} exists; a new key would invalidate all tokens of the old one"
        ) from error
    except OSError as error:
        raise CommandFailed(f"{path}: {error.strerror}") from error
    owner = _owner(path)
    print_error(
        f"{path}: created with mode 0600 and owner {owner}; "
        f"if the service runs as another user: chown USER {path}"
    )
    return key


def _owner(path: Path) -> str:
    try:
        return path.owner()
    except (KeyError, OSError):  # a user without a name
        return str(os.geteuid())


def _read_key(path: Path) -> bytes:
    try:
        return read_key(path)
    except OSError as error:
        advice = "; --new-key creates one" if isinstance(error, FileNotFoundError) else ""
        raise CommandFailed(f"{path}: {error.strerror}{advice}") from error
    except ValueError as error:
        raise CommandFailed(
            f"{path}: {error}; to create another key, remove the file and give --new-key"
        ) from error

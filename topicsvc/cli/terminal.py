"""Composition: what the commands share: failing in a line, finding the token."""

from __future__ import annotations

import os
import sys
from argparse import Namespace
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import react
from twisted.python.failure import Failure

__all__ = ["Failed", "find_token", "run_reactor", "say"]


class Failed(Exception):
    """A command cannot do what it was asked to.

    Attributes:
        lines: why, and what to do, for standard error.
    """

    def __init__(self, *lines: str) -> None:
        super().__init__(*lines)
        self.lines = lines


def say(line: str) -> bool:
    """Print `line` at once. False: nobody reads what is printed any more."""
    try:
        print(line, flush=True)
    except BrokenPipeError:
        # What Python still holds would be complained of again at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return False
    return True


def find_token(options: Namespace) -> str:
    """The token that options, a file or the environment give.

    Raises:
        Failed: there is none.
    """
    if options.token_file is not None:
        try:
            token: str = options.token_file.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "not a text file"
            raise Failed(f"{options.token_file}: {reason}") from error
    else:
        token = options.token or os.environ.get("TOPICSVC_TOKEN", "")
    if not token.strip():
        raise Failed("no token: give --token, --token-file or $TOPICSVC_TOKEN")
    return token.strip()


def run_reactor(work: Callable[[Any], Deferred[None]]) -> None:
    """Run the reactor until `work` is done.

    Raises:
        Failed: `work` failed; what is no `Failed` is told by its message alone.
    """
    failures: list[Failure] = []
    try:
        react(lambda reactor: work(reactor).addErrback(failures.append))
    except SystemExit as ended:
        if ended.code:  # interrupted
            raise KeyboardInterrupt from None
    if not failures:
        return
    error = failures[0].value
    raise error if isinstance(error, Failed) else Failed(str(error) or type(error).__name__)

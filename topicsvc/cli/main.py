"""The ``topicsvc`` command: runs one of its commands.

Nothing but the standard library is imported before a command needs it, so that help and errors
appear at once.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from topicsvc.cli.terminal import INTERRUPTED, CommandFailed, exit_on_interrupt, print_error

if TYPE_CHECKING:
    from argparse import Namespace

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code.

    Args:
        arguments: None: those of the process, which SIGINT then ends at once.
    """
    name = "topicsvc"
    try:
        if arguments is None:
            exit_on_interrupt()
            arguments = sys.argv[1:]
        from topicsvc.cli.parser import make_parser

        parser = make_parser()
        options = parser.parse(arguments)
        name = f"topicsvc {options.command}"
        _run(options)
    except CommandFailed as error:
        for line in error.lines:
            print_error(f"{name}: {line}")
        return 1
    except KeyboardInterrupt:
        return INTERRUPTED
    return 0


def _run(options: Namespace) -> None:
    """Import the module of a command and run it."""
    match options.command:
        case "serve":
            from topicsvc.cli.serve import run
        case "token":
            from topicsvc.cli.token import run
        case "subscribe":
            from topicsvc.cli.subscribe import run
        case "send":
            from topicsvc.cli.send import run
        case "check":
            from topicsvc.cli.check import run
        case "doctor":
            from topicsvc.cli.doctor.command import run
        case "top":
            from topicsvc.cli.top import run
        case _:
            from topicsvc.cli.completion import run
    run(options)

"""Output, errors and signals that all commands share. Imports only the standard library."""

from __future__ import annotations

import os
import signal
import sys
from typing import TextIO

from topicsvc.printable import printable

__all__ = [
    "INTERRUPTED",
    "CommandFailed",
    "exit_on_interrupt",
    "print_error",
    "print_line",
    "print_text",
]

INTERRUPTED = 130
"""Exit code after SIGINT: as shells report it."""


class CommandFailed(Exception):
    """A command failed.

    Attributes:
        lines: the reasons, and what to do, for standard error.
    """

    def __init__(self, *lines: str) -> None:
        super().__init__(*lines)
        self.lines = lines


def print_line(line: str, is_raw: bool = False) -> None:
    """Print `line` and flush.

    To a terminal, the line is printed without characters that could drive the terminal.

    Args:
        line: may come from the network.
        is_raw: print it unchanged, also to a terminal.

    Raises:
        CommandFailed: standard output cannot take the line.
    """
    out = _standard_output()
    if not is_raw and out.isatty():
        line = printable(line).encode(out.encoding, "backslashreplace").decode(out.encoding)
    print_text(f"{line}\n")


def print_text(text: str) -> None:
    """Print lines of the command itself, such as its help, and flush.

    Raises:
        CommandFailed: standard output cannot take them.
    """
    out = _standard_output()
    try:
        out.write(text)
        out.flush()
    except UnicodeEncodeError as error:
        wrong = error.object[error.start]
        raise CommandFailed(
            f"standard output: its encoding, {out.encoding}, has no U+{ord(wrong):04X}; "
            "set PYTHONIOENCODING=utf-8"
        ) from error
    except OSError as error:
        _discard_output(out)
        raise CommandFailed(f"standard output: {error.strerror}") from error


def print_error(line: str) -> None:
    """Print `line` on standard error, if that is open; it is always one line."""
    if sys.stderr is None:  # closed before the process started
        return
    try:
        print(printable(line), file=sys.stderr, flush=True)
    except OSError:
        _discard_output(sys.stderr)


def exit_on_interrupt() -> None:
    """Let SIGINT end the process at once, without a traceback, whatever the process does.

    A signal that the process ignores, as a command behind ``nohup`` may, stays ignored.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, lambda *_: os._exit(INTERRUPTED))


def _standard_output() -> TextIO:
    if sys.stdout is None:  # closed before the process started
        raise CommandFailed("standard output is closed")
    return sys.stdout


def _discard_output(stream: TextIO) -> None:
    """Discard the buffered output: otherwise Python fails again when it exits."""
    descriptor = os.open(os.devnull, os.O_WRONLY)
    os.dup2(descriptor, stream.fileno())
    os.close(descriptor)

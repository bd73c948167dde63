"""Prints the manual page of the ``topicsvc`` command: ``python -m topicsvc.cli.manual``.

The page, docs/topicsvc.1, is made from the parser, in the language of mdoc(7).
"""

from __future__ import annotations

import argparse
import re
import sys
import textwrap
from collections.abc import Iterator

from topicsvc.cli.parser import Parser, make_parser

__all__ = ["manual"]

_HEAD = """\
.\\" Made by python -m topicsvc.cli.manual. Do not change this file.
.Dd {date}
.Dt TOPICSVC 1
.Os
.Sh NAME
.Nm topicsvc
.Nd token-guarded topics over WebSocket"""

_TAIL = """\
.Sh ENVIRONMENT
.Bl -tag -width TOPICSVC_TOKEN
.It Ev TOPICSVC_TOKEN
the token, if neither
.Fl \\-token
nor
.Fl \\-token-file
is given
.It Ev SSL_CERT_FILE
a file of authorities that
.Cm subscribe
and
.Cm send
trust instead of the system's
.El
.Sh EXIT STATUS
0 after success, 1 after an error, 130 after an interrupt.
.Cm serve
ends with the signal that stops it.
.Sh SEE ALSO
.Xr twistd 1"""

DATE = "November 28, 2026"
"""The date of the last change of the arguments."""


def manual(parser: Parser) -> str:
    """The page, in mdoc(7)."""
    return "\n".join(_lines(parser)) + "\n"


def _lines(parser: Parser) -> Iterator[str]:
    yield _HEAD.format(date=DATE)
    yield ".Sh SYNOPSIS"
    for name, command in parser.commands.items():
        yield f".Nm topicsvc Cm {name}"
        yield from (_synopsis(each) for each in command.arguments if each.dest != "help")
    yield ".Sh DESCRIPTION"
    yield _text(parser.description)
    for name, command in parser.commands.items():
        yield f".Ss topicsvc {name}"
        yield _text(command.description)
        arguments = [each for each in command.arguments if each.dest != "help"]
        yield ".Bl -tag -width Ds"
        for action in arguments:
            yield f".It {_heading(action)}"
            yield _text(action.help)
        yield ".El"
    yield _TAIL


def _synopsis(action: argparse.Action) -> str:
    if action.option_strings:
        first = next(each for each in action.option_strings if each.startswith("--"))
        words = _flag(first) + _argument(action)
    else:
        words = _argument(action).lstrip()
    is_required = action.required if action.option_strings else action.nargs != "?"
    return f".{words}" if is_required else f".Op {words}"


def _heading(action: argparse.Action) -> str:
    flags = " , ".join(_flag(each) for each in action.option_strings)
    return (flags + _argument(action)).lstrip()


def _flag(option: str) -> str:
    return "Fl " + option[1:].replace("-", "\\-", 1) if option[1] == "-" else f"Fl {option[1:]}"


def _argument(action: argparse.Action) -> str:
    if action.nargs == 0:
        return ""
    name = action.metavar or ("|".join(action.choices) if action.choices else action.dest)
    return f" Ar {name}"


def _text(text: str | None) -> str:
    r"""Lines of text; a dot at the beginning of one would be a command, as would each ``\``."""
    lines = textwrap.wrap((text or "").replace("\\", "\\e"), 78)
    return "\n".join(re.sub(r"^([.'])", r"\\&\1", line) for line in lines)


if __name__ == "__main__":
    sys.stdout.write(manual(make_parser()))

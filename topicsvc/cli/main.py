"""Composition: the ``topicsvc`` command's arguments."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from topicsvc import __version__
from topicsvc.cli import check, send, subscribe, token
from topicsvc.cli.doctor import command
from topicsvc.cli.terminal import Failed
from topicsvc.validators.local import RIGHTS

__all__ = ["main"]


class _Parser(argparse.ArgumentParser):
    """One line for a wrong option, and exit code 1 as for any other mistake."""

    def error(self, message: str) -> NoReturn:
        self.exit(1, f"{self.prog}: {message} (--help tells more)\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code."""
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except Failed as error:
        for line in error.lines:
            print(f"topicsvc {options.command}: {line}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="topicsvc", description="Tools for topicsvc and its clients.")
    parser.add_argument("--version", action="version", version=f"topicsvc {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    make = commands.add_parser("token", help="print a token for the local validator")
    make.add_argument("--key-file", required=True, type=Path, metavar="K", help="the key")
    make.add_argument("--new-key", action="store_true", help="make the key file first (mode 0600)")
    make.add_argument(
        "--topic",
        action="append",
        default=[],
        metavar="PATH",
        help="/cell1/box1/col/topic/name, or /cell1/box1/* for all below; may be repeated",
    )
    make.add_argument(
        "--may",
        type=_rights,
        default=RIGHTS[:1],
        metavar="receive,send",
        help="what it allows (default: receive)",
    )
    make.add_argument("--subject", metavar="URL", help="whose it is: a cell's URL")
    make.add_argument(
        "--expires-in",
        type=_positive,
        default=3600,
        metavar="SECONDS",
        help="how long it lives (default: 3600)",
    )
    make.set_defaults(run=token.run)

    receive = commands.add_parser("subscribe", help="print what is sent to a topic")
    receive.add_argument("url", metavar="WS_URL", help="wss://cell1.unit1.example/__topic/...")
    _add_token(receive)
    receive.add_argument("--count", type=_positive, metavar="N", help="end after N messages")
    receive.set_defaults(run=subscribe.run)

    post = commands.add_parser("send", help="send to a topic")
    post.add_argument("url", metavar="HTTP_URL", help="https://cell1.unit1.example/box1/...")
    _add_token(post)
    post.add_argument(
        "json", nargs="?", default="-", metavar="JSON", help="the message; -: one a line of input"
    )
    post.set_defaults(run=send.run)

    look = commands.add_parser("check", help="say what is wrong with a configuration")
    look.add_argument("--config", required=True, type=Path, metavar="FILE", help="the file")
    look.set_defaults(run=check.run)

    attempt = commands.add_parser("doctor", help="try a configuration for real")
    attempt.add_argument("--config", required=True, type=Path, metavar="FILE", help="the file")
    _add_token(attempt)
    attempt.add_argument(
        "--topic",
        metavar="PATH",
        help="subscribe to /cell1/box1/col/topic/name with the token, and send a message if it may",
    )
    attempt.set_defaults(run=command.run)
    return parser


def _add_token(parser: argparse.ArgumentParser) -> None:
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--token", metavar="T", help="the token (default: $TOPICSVC_TOKEN)")
    group.add_argument("--token-file", type=Path, metavar="F", help="the file that holds it")


def _rights(text: str) -> tuple[str, ...]:
    rights = tuple(text.split(","))
    if not set(rights) <= set(RIGHTS):
        raise argparse.ArgumentTypeError(f"{text!r} is none of receive; send; receive,send")
    return rights


def _positive(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) < 2**31:
        raise argparse.ArgumentTypeError(f"{text!r} is no positive whole number")
    return int(text)

"""The arguments of the ``topicsvc`` command."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from topicsvc import __version__
from topicsvc.cli import check, send, subscribe, token
from topicsvc.cli.doctor import command
from topicsvc.cli.terminal import CommandFailed
from topicsvc.validators.local import RIGHTS

__all__ = ["main"]


class _Parser(argparse.ArgumentParser):
    """Prints one line for a wrong option; exits with code 1, as for all other errors."""

    def error(self, message: str) -> NoReturn:
        self.exit(1, f"{self.prog}: {message} (see --help)\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except CommandFailed as error:
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
    make.add_argument(
        "--key-file", required=True, type=Path, metavar="K", help="the file of the key"
    )
    make.add_argument(
        "--new-key", action="store_true", help="create the key file first (mode 0600)"
    )
    make.add_argument(
        "--topic",
        action="append",
        default=[],
        metavar="PATH",
        help="a topic, /cell1/box1/col/topic/name, or a pattern, /cell1/box1/*; may be repeated",
    )
    make.add_argument(
        "--may",
        type=_rights,
        default=RIGHTS[:1],
        metavar="receive,send",
        help="the rights of the token (default: receive)",
    )
    make.add_argument("--subject", metavar="URL", help="the subject of the token: a cell's URL")
    make.add_argument(
        "--expires-in",
        type=_positive,
        default=3600,
        metavar="SECONDS",
        help="the lifetime of the token (default: 3600)",
    )
    make.set_defaults(run=token.run)

    receive = commands.add_parser("subscribe", help="print the messages of a topic")
    receive.add_argument("url", metavar="WS_URL", help="wss://cell1.unit1.example/__topic/...")
    _add_token(receive)
    receive.add_argument("--count", type=_positive, metavar="N", help="exit after N messages")
    receive.set_defaults(run=subscribe.run)

    post = commands.add_parser("send", help="send messages to a topic")
    post.add_argument("url", metavar="HTTP_URL", help="https://cell1.unit1.example/box1/...")
    _add_token(post)
    post.add_argument(
        "json",
        nargs="?",
        default="-",
        metavar="JSON",
        help="the message; - (the default): each line of standard input is a message",
    )
    post.set_defaults(run=send.run)

    check_parser = commands.add_parser("check", help="report the problems of a configuration")
    check_parser.add_argument(
        "--config", required=True, type=Path, metavar="FILE", help="the configuration file"
    )
    check_parser.set_defaults(run=check.run)

    doctor_parser = commands.add_parser(
        "doctor", help="test the endpoints, broker and validator of a configuration"
    )
    doctor_parser.add_argument(
        "--config", required=True, type=Path, metavar="FILE", help="the configuration file"
    )
    _add_token(doctor_parser)
    doctor_parser.add_argument(
        "--topic",
        metavar="PATH",
        help="subscribe to /cell1/box1/col/topic/name with the token; send a message if it may",
    )
    doctor_parser.set_defaults(run=command.run)
    return parser


def _add_token(parser: argparse.ArgumentParser) -> None:
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--token", metavar="T", help="the token (default: $TOPICSVC_TOKEN)")
    group.add_argument(
        "--token-file", type=Path, metavar="F", help="a file that contains the token"
    )


def _rights(text: str) -> tuple[str, ...]:
    rights = tuple(text.split(","))
    if not set(rights) <= set(RIGHTS):
        raise argparse.ArgumentTypeError(f"{text!r} is not one of receive; send; receive,send")
    return rights


def _positive(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) < 2**31:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive whole number")
    return int(text)

"""The arguments of the ``topicsvc`` command. Imports only the standard library."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from topicsvc import __version__
from topicsvc.cli.terminal import print_error, print_text

__all__ = ["SHELLS", "SORTS", "VIEWS", "Parser", "make_parser"]

SHELLS = ("bash", "zsh", "fish")

VIEWS = ("topics", "sessions", "ended", "senders")
"""The lists of ``topicsvc top``."""

SORTS = ("messages", "bytes", "sessions")
"""The orders of topics in ``topicsvc top``."""

_EPILOG = """\
start a service:
  topicsvc serve --demo            try it, without a file
  topicsvc serve --config FILE     in the foreground
  twistd topicsvc --config FILE    as a daemon, with a pid file and twistd's options

topicsvc COMMAND --help shows the arguments of a command."""


class Parser(argparse.ArgumentParser):
    """A parser that prints one line for a wrong argument and exits with code 1.

    Attributes:
        arguments: the arguments, in the order of their definition.
        commands: the parsers of the commands, by name.
    """

    def __init__(self, **options: Any) -> None:
        self.arguments: list[argparse.Action] = []
        self.commands: dict[str, Parser] = {}
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, **options)

    def add_argument(self, *names: Any, **options: Any) -> argparse.Action:
        """See `argparse.ArgumentParser.add_argument`."""
        action = super().add_argument(*names, **options)
        self.arguments.append(action)
        return action

    def error(self, message: str) -> NoReturn:
        """End the process because of a wrong argument."""
        print_error(f"{self.prog}: {message} (see --help)")
        raise SystemExit(1)

    def print_help(self, file: Any = None) -> None:
        """Print the help on standard output.

        Raises:
            CommandFailed: standard output cannot take it.
        """
        print_text(self.format_help())

    def parse(self, arguments: Sequence[str]) -> argparse.Namespace:
        """Parse the arguments of the process; ends it if one is wrong.

        Unlike argparse itself, this takes positional arguments behind options too.
        """
        command = self.commands.get(arguments[0]) if arguments else None
        if command is None:
            return self.parse_args(arguments)  # one of its own options, or an error
        options = command.parse_intermixed_args(arguments[1:])
        options.command = arguments[0]
        return options


class _Version(argparse.Action):
    """Prints the version and exits."""

    def __init__(self, option_strings: Sequence[str], dest: str, **options: Any) -> None:
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, help="print the version")

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        print_text(f"topicsvc {__version__}\n")
        raise SystemExit(0)


class _Rights(argparse.Action):
    """Adds rights: ``--may receive,send`` and ``--may receive --may send`` are the same."""

    def __call__(
        self, _: argparse.ArgumentParser, options: argparse.Namespace, values: Any, *__: Any
    ) -> None:
        earlier = getattr(options, self.dest) or ()
        setattr(options, self.dest, tuple(dict.fromkeys((*earlier, *values))))


def make_parser() -> Parser:
    """Make the parser of the whole command line."""
    parser = Parser(
        prog="topicsvc",
        description="Serves topics over WebSocket; and tools for its operators and clients.",
        epilog=_EPILOG,
    )
    parser.add_argument("--version", action=_Version)
    commands = parser.add_subparsers(required=True, metavar="COMMAND", title="commands")

    def command(name: str, summary: str) -> Parser:
        made: Parser = commands.add_parser(
            name, help=summary, description=f"{summary[0].upper()}{summary[1:]}."
        )
        parser.commands[name] = made
        return made

    _add_serve(command("serve", "run the service in the foreground"))
    _add_token(command("token", "print a token for the local validator"))
    _add_subscribe(command("subscribe", "print the messages of a topic"))
    _add_send(command("send", "send messages to a topic"))
    _add_check(
        command(
            "check", "report the problems of a configuration; it reads files, and sends no requests"
        )
    )
    _add_doctor(command("doctor", "test the endpoints, broker and validator of a configuration"))
    _add_top(command("top", "show the topics, sessions and senders of a running service"))
    _add_completion(command("completion", "print a script that completes commands in a shell"))
    return parser


def _add_serve(parser: Parser) -> None:
    parser.add_argument("--config", "-c", metavar="FILE", help="read the settings from this file")
    parser.add_argument(
        "--listen",
        "-l",
        action="append",
        default=[],
        metavar="ENDPOINT",
        help="serve clients on this endpoint, e.g. tcp:8080; may be repeated; overrides the file",
    )
    parser.add_argument(
        "--admin",
        "-a",
        metavar="ENDPOINT",
        help="serve health and metrics on this endpoint, e.g. tcp:9090:interface=127.0.0.1; "
        "overrides the file",
    )
    parser.add_argument(
        "--workers",
        "-w",
        metavar="N",
        help="serve with this number of processes, or with one for each processor: auto; "
        "overrides the file",
    )
    parser.add_argument(
        "--demo",
        action="store_true",
        help="run a demo without a file, with a new key and a token to try it",
    )


def _add_token(parser: Parser) -> None:
    parser.add_argument(
        "--key-file", required=True, type=Path, metavar="K", help="the file of the key"
    )
    parser.add_argument(
        "--new-key", action="store_true", help="create the key file first (mode 0600)"
    )
    parser.add_argument(
        "--topic",
        action="append",
        default=[],
        metavar="PATH",
        help="a topic, /cell1/box1/col/topic/name, or a pattern, /cell1/box1/*; may be repeated",
    )
    parser.add_argument(
        "--may",
        action=_Rights,
        type=_rights,
        metavar="receive,send",
        help="the rights of the token (default: receive); may be repeated",
    )
    parser.add_argument("--subject", metavar="URL", help="the subject of the token: a cell's URL")
    parser.add_argument(
        "--expires-in",
        type=_positive,
        default=3600,
        metavar="SECONDS",
        help="the lifetime of the token (default: 3600)",
    )


def _add_subscribe(parser: Parser) -> None:
    parser.add_argument("url", metavar="WS_URL", help="wss://cell1.unit1.example/__topic/...")
    _add_token_options(parser)
    parser.add_argument(
        "--since",
        type=_position,
        metavar="POSITION",
        help="go on after this position, or now; nothing is missed from there, or it is said",
    )
    parser.add_argument(
        "--reconnect",
        action="store_true",
        help="connect again after the end of a connection, and go on where it ended",
    )
    parser.add_argument("--count", type=_positive, metavar="N", help="exit after N messages")
    parser.add_argument(
        "--json",
        action="store_true",
        help="print positions, and messages unchanged on a terminal, with control characters",
    )


def _add_send(parser: Parser) -> None:
    parser.add_argument("url", metavar="HTTP_URL", help="https://cell1.unit1.example/box1/...")
    _add_token_options(parser)
    parser.add_argument(
        "json",
        nargs="?",
        metavar="JSON",
        help="the message; - (the default): each line of standard input is a message",
    )


def _add_check(parser: Parser) -> None:
    _add_config(parser)
    parser.add_argument(
        "--user",
        metavar="NAME",
        help="warn about files that this user, as which the service runs, cannot read; needs root",
    )


def _add_doctor(parser: Parser) -> None:
    _add_config(parser)
    _add_token_options(parser)
    parser.add_argument(
        "--topic",
        metavar="PATH",
        help="subscribe to /cell1/box1/col/topic/name with the token; send a message if it may",
    )


def _add_top(parser: Parser) -> None:
    parser.add_argument(
        "view",
        nargs="?",
        choices=VIEWS,
        default=VIEWS[0],
        metavar="VIEW",
        help="topics (the default), sessions, ended (connections, with the reason) or senders",
    )
    parser.add_argument(
        "--admin",
        "-a",
        metavar="URL",
        default="http://127.0.0.1:9090",
        help="the admin endpoint (default: http://127.0.0.1:9090)",
    )
    parser.add_argument(
        "--token-file",
        type=Path,
        metavar="F",
        help="a file with a token for a proxy in front of the endpoint",
    )
    parser.add_argument(
        "--sort",
        choices=SORTS,
        help="the topics with the most messages (the default), bytes or sessions first",
    )
    parser.add_argument("--topic", metavar="PATH", help="only this topic")
    parser.add_argument("--subject", metavar="S", help="only clients whose token has this subject")
    parser.add_argument(
        "--address", metavar="A", help="only clients with this address; for sessions or a network"
    )
    parser.add_argument(
        "--limit", type=_limit, default=100, metavar="N", help="most lines (default: 100)"
    )
    parser.add_argument(
        "--interval",
        type=_positive,
        default=2,
        metavar="SECONDS",
        help="time between two requests, on a terminal (default: 2)",
    )
    parser.add_argument("--once", action="store_true", help="print once, on a terminal too")


def _add_completion(parser: Parser) -> None:
    parser.add_argument("shell", choices=SHELLS, help="the shell")


def _add_config(parser: Parser) -> None:
    parser.add_argument(
        "--config", "-c", required=True, type=Path, metavar="FILE", help="the configuration file"
    )


def _add_token_options(parser: Parser) -> None:
    group = parser.add_mutually_exclusive_group()
    parser.arguments += [
        group.add_argument(
            "--token",
            metavar="T",
            help="the token, which other users of the machine can see in the list of processes: "
            "prefer --token-file, or $TOPICSVC_TOKEN (the default)",
        ),
        group.add_argument(
            "--token-file", type=Path, metavar="F", help="a file that contains the token"
        ),
    ]


def _rights(text: str) -> tuple[str, ...]:
    from topicsvc.validators.local import RIGHTS

    rights = tuple(text.split(","))
    if not set(rights) <= set(RIGHTS):
        raise argparse.ArgumentTypeError(f"{text!r} is not one of receive; send; receive,send")
    return rights


def _position(text: str) -> str:
    if not re.fullmatch(r"[!-~]{1,128}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a position: 1 to 128 visible ASCII")
    return text


def _limit(text: str) -> int:
    if not text.isdecimal() or not text.isascii() or not 0 < int(text) <= 1000:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 to 1000")
    return int(text)


def _positive(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) < 2**31:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive whole number")
    return int(text)

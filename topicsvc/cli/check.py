"""``topicsvc check``: reports the problems of a configuration."""

from __future__ import annotations

from argparse import Namespace

from topicsvc import config
from topicsvc.cli.terminal import CommandFailed, print_line
from topicsvc.errors import ConfigError
from topicsvc.options import check_problems

__all__ = ["run"]


def run(options: Namespace) -> None:
    """Read a configuration, and the endpoints, certificates, keys and passwords that it names.

    Raises:
        CommandFailed: a setting cannot be used; one line for each.
    """
    try:
        config.read(options.config, extra_check=check_problems)
    except ConfigError as error:
        raise CommandFailed(*error.problems) from error
    print_line(f"{options.config}: good")

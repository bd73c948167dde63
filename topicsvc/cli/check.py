"""Composition: ``topicsvc check``."""

from __future__ import annotations

from argparse import Namespace
from functools import partial

from topicsvc import config
from topicsvc.cli.terminal import Failed, say
from topicsvc.errors import ConfigError
from topicsvc.options import endpoint_problems

__all__ = ["run"]


def run(options: Namespace) -> None:
    """Read a configuration and all that it names: endpoints, certificates, keys, passwords.

    Raises:
        Failed: a setting cannot be used; a line for each.
    """
    try:
        config.read(options.config, extra_check=partial(endpoint_problems, is_start=False))
    except ConfigError as error:
        raise Failed(*error.problems) from error
    say(f"{options.config}: good")

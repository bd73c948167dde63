"""Composition: ``topicsvc check``."""

from __future__ import annotations

from argparse import Namespace

from topicsvc import config
from topicsvc.cli.terminal import Failed, say
from topicsvc.errors import ConfigError
from topicsvc.service import TopicService

__all__ = ["run"]


def run(options: Namespace) -> None:
    """Read a configuration and make, but not start, the service that it describes.

    Raises:
        Failed: a setting cannot be used; a line for each.
    """
    from twisted.internet import reactor

    try:
        TopicService(config.read(options.config), reactor)
    except ConfigError as error:
        raise Failed(*error.problems) from error
    say(f"{options.config}: good")

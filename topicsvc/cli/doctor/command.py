"""Composition: ``topicsvc doctor``: a configuration tried for real, a line for each trial."""

from __future__ import annotations

from argparse import Namespace
from functools import partial

from twisted.internet.defer import Deferred

from topicsvc import config
from topicsvc.cli.doctor.checks import Checks
from topicsvc.cli.doctor.report import CheckResult
from topicsvc.cli.terminal import Failed, find_token, run_reactor, say
from topicsvc.errors import ConfigError, PathRefused
from topicsvc.options import endpoint_problems
from topicsvc.topics import TopicAddress

__all__ = ["run"]


def run(options: Namespace) -> None:
    """Try what the configuration names, and with a token and a topic the whole way.

    Raises:
        Failed: something does not work.
    """
    topic = token = None
    if options.topic is not None:
        try:
            topic = TopicAddress.from_path(options.topic)
        except PathRefused as error:
            raise Failed(f"--topic {options.topic}: {error}") from error
        token = find_token(options)
    elif options.token or options.token_file:
        raise Failed("--topic is missing: where shall the token be tried?")
    failures = 0

    def tell(finding: CheckResult) -> None:
        nonlocal failures
        failures += finding.level == "FAIL"
        say(f"{finding.level:<4}  {finding.what}: {finding.text}")

    try:
        settings = config.read(
            options.config, extra_check=partial(endpoint_problems, is_start=False)
        )
    except ConfigError as error:
        for problem in error.problems:
            tell(CheckResult("FAIL", "settings", problem))
        raise Failed("the rest is tried when the settings are good") from error
    tell(CheckResult("ok", "settings", str(options.config)))
    run_reactor(
        lambda reactor: Deferred.fromCoroutine(Checks(settings, reactor, tell).all(token, topic))
    )
    if failures:
        raise Failed(f"{failures} of these failed" if failures > 1 else "one of these failed")

"""``topicsvc doctor``: runs all checks and prints one line for each."""

from __future__ import annotations

from argparse import Namespace
from functools import partial

from twisted.internet.defer import Deferred

from topicsvc import config
from topicsvc.cli.client import find_token, run_reactor
from topicsvc.cli.doctor.checks import Checks
from topicsvc.cli.doctor.report import CheckResult
from topicsvc.cli.terminal import CommandFailed, print_line
from topicsvc.errors import ConfigError, PathRefused
from topicsvc.options import endpoint_problems
from topicsvc.topics import TopicAddress

__all__ = ["run"]


def run(options: Namespace) -> None:
    """Run the checks; with a token and a topic, a round trip too.

    Raises:
        CommandFailed: a check failed.
    """
    topic = token = None
    if options.topic is not None:
        try:
            topic = TopicAddress.from_path(options.topic)
        except PathRefused as error:
            raise CommandFailed(f"--topic {options.topic}: {error}") from error
    if topic is not None or options.token is not None or options.token_file:
        token = find_token(options)
    failures = 0

    def report(result: CheckResult) -> None:
        nonlocal failures
        failures += result.level == "FAIL"
        print_line(f"{result.level:<4}  {result.subject}: {result.text}")

    try:
        settings = config.read(
            options.config, extra_check=partial(endpoint_problems, is_start=False)
        )
    except ConfigError as error:
        for problem in error.problems:
            report(CheckResult("FAIL", "settings", problem))
        raise CommandFailed("the other checks need valid settings") from error
    if token is not None and topic is None and settings.validator.kind != "jwt":
        raise CommandFailed("--topic is missing: it names the topic on which the token is tested")
    report(CheckResult("ok", "settings", str(options.config)))
    run_reactor(
        lambda reactor: Deferred.fromCoroutine(Checks(settings, reactor, report).all(token, topic))
    )
    if failures:
        raise CommandFailed(f"{failures} checks failed" if failures > 1 else "1 check failed")

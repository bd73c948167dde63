"""Checks that the software of an integration test is installed."""

import os
import resource

from twisted.trial.unittest import SkipTest


def need(is_there: object, what: str) -> None:
    """Skip the test without `what`; fail it if TOPICSVC_REQUIRE_INTEGRATION is set."""
    if is_there:
        return
    if os.environ.get("TOPICSVC_REQUIRE_INTEGRATION"):
        raise AssertionError(f"needs {what}")
    raise SkipTest(f"needs {what}")


def need_files(count: int) -> None:
    """Skip or fail the test if a child cannot open so many files; see `allow_files`."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    need(most == resource.RLIM_INFINITY or most >= count, f"{count} open files: ulimit -Hn")


def allow_files() -> None:
    """Raise the limit of open files to the hard limit; called in a child."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))

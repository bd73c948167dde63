"""What an integration test needs, and what happens without it."""

import os
import resource

from twisted.trial.unittest import SkipTest


def need(is_there: object, what: str) -> None:
    """Skip the test without `what`; fail it where integration tests are required to run."""
    if is_there:
        return
    if os.environ.get("TOPICSVC_REQUIRE_INTEGRATION"):
        raise AssertionError(f"needs {what}")
    raise SkipTest(f"needs {what}")


def need_files(count: int) -> None:
    """Skip the test where a child cannot have so many files open; see `allow_files`."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    need(most == resource.RLIM_INFINITY or most >= count, f"{count} open files: ulimit -Hn")


def allow_files() -> None:
    """In a child: as many open files as this user may have."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))

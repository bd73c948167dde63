"""What an integration test needs, and what happens without it."""

import os

from twisted.trial.unittest import SkipTest


def need(is_there: object, what: str) -> None:
    """Skip the test without `what`; fail it where integration tests are required to run."""
    if is_there:
        return
    if os.environ.get("TOPICSVC_REQUIRE_INTEGRATION"):
        raise AssertionError(f"needs {what}")
    raise SkipTest(f"needs {what}")

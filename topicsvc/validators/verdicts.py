"""Combines the results of several requests about one token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from topicsvc.errors import TokenInactive

__all__ = ["all_or_first_refusal"]


def all_or_first_refusal(requests: Sequence[Deferred[Any]]) -> Deferred[list[Any]]:
    """Wait for all requests; fires with their results, in their order.

    The first refusal cancels the others. Another failure does not: a later request may still
    refuse the token, and the result must not depend on the order of the responses.
    Cancelling the Deferred cancels all requests.

    Fails with:
        TokenInactive: a request failed with it.
        Exception: the first other failure of a request, after all have ended.
    """
    results: dict[int, Any] = {}
    failures: list[Failure] = []
    pending = len(requests)

    def cancel_all(_: object = None) -> None:
        for request in requests:
            request.cancel()

    def succeeded(result: Any, index: int) -> None:
        results[index] = result
        ended()

    def failed(failure: Failure) -> None:
        if failure.check(TokenInactive) and not verdict.called:
            verdict.errback(failure)
            cancel_all()
        else:
            failures.append(failure)
            ended()

    def ended() -> None:
        nonlocal pending
        pending -= 1
        if pending or verdict.called:
            return
        if failures:
            verdict.errback(failures[0])
        else:
            verdict.callback([results[index] for index in range(len(requests))])

    verdict: Deferred[list[Any]] = Deferred(cancel_all)
    for index, request in enumerate(requests):
        request.addCallbacks(succeeded, failed, callbackArgs=(index,))
    return verdict

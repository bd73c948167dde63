"""Adapter: several questions about one token, asked together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from topicsvc.errors import TokenInactive

__all__ = ["all_or_first_refusal"]


def all_or_first_refusal(questions: Sequence[Deferred[Any]]) -> Deferred[list[Any]]:
    """Wait for all answers; fires with them, in the order of the questions.

    The first plain no ends the rest. One that cannot be decided does not: another may
    still say no, and the verdict must not hang on who answers first.

    Fails with:
        TokenInactive: one of them does.
        whatever else one of them fails with, once all others are answered.
    """
    answers: dict[int, Any] = {}
    undecided: list[Failure] = []
    waiting = len(questions)

    def leave(_: object = None) -> None:
        for question in questions:
            question.cancel()

    def answered(answer: Any, place: int) -> None:
        answers[place] = answer
        settle()

    def failed(failure: Failure) -> None:
        if failure.check(TokenInactive) and not verdict.called:
            verdict.errback(failure)
            leave()
        else:
            undecided.append(failure)
            settle()

    def settle() -> None:
        nonlocal waiting
        waiting -= 1
        if waiting or verdict.called:
            return
        if undecided:
            verdict.errback(undecided[0])
        else:
            verdict.callback([answers[place] for place in range(len(questions))])

    verdict: Deferred[list[Any]] = Deferred(leave)
    for place, question in enumerate(questions):
        question.addCallbacks(answered, failed, callbackArgs=(place,))
    return verdict

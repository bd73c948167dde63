"""Does long work in pieces, within the budget of each reactor iteration."""

from __future__ import annotations

from collections.abc import Generator
from typing import TypeVar

from twisted.internet.defer import Deferred

from topicsvc.scheduling.work_budget import WorkBudget

__all__ = ["Pieces", "run_in_pieces"]

T = TypeVar("T")

Pieces = Generator[None, None, T]
"""Work that yields after each piece, which takes a fraction of 1 ms, and returns its result."""


def run_in_pieces(work: Pieces[T], budget: WorkBudget) -> Deferred[T]:
    """Do `work`: pieces at once until the budget is spent, the others in later iterations.

    What `work` reads may change between two pieces.

    Returns:
        Fires with the result; it has fired already, if the budget is enough. Fails with the
        exception that `work` raises. Cancelling stops the work after the current piece.
    """
    done: Deferred[T] = Deferred(lambda _: work.close())

    def step() -> None:
        since = budget.now()
        while not done.called:
            if budget.is_spent:
                budget.defer(step)
                return
            try:
                next(work)
            except StopIteration as end:
                budget.spend(since)
                done.callback(end.value)
            except Exception:
                budget.spend(since)
                done.errback()
            else:
                since = budget.spend(since)

    step()
    return done

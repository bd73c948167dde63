"""What all runs found, and the tables of it."""

from __future__ import annotations

import os
import platform
import statistics

from bench.sessions import Figures

__all__ = ["Results"]

_PARTS = ((0.5, "p50"), (0.99, "p99"))


class Results:
    """Keeps what each run finds under a name; one with a peer is ``scenario: server``."""

    def __init__(self) -> None:
        self._found: dict[str, list[float]] = {}

    def note(self, name: str, figures: Figures) -> None:
        """A measurement of deliveries."""
        self.note_figure(name, figures.rate)
        for part, label in _PARTS:
            self.note_figure(f"{name} {label}", figures.percentile(part) * 1000)
        self.note_figure(f"{name} idle", figures.idle)

    def note_figure(self, name: str, value: float) -> None:
        """One figure."""
        self._found.setdefault(name, []).append(value)

    def median(self, name: str) -> float:
        return statistics.median(self._found[name])

    def ratio(self, one: str, other: str) -> float:
        """How many times the other it is, in the median of the runs."""
        pairs = zip(self._found[one], self._found[other], strict=True)
        return statistics.median(first / second for first, second in pairs)

    def print(self, runs: int) -> None:
        """Print the tables, as Markdown."""
        print(f"\n{runs} runs; medians; {platform.processor() or platform.machine()}, ", end="")
        print(f"{os.cpu_count()} cores, Python {platform.python_version()}\n")
        print("| what | deliveries/s | p50 ms | p99 ms | load idle | topicsvc is |")
        print("|---|---|---|---|---|---|")
        parts = ("p50", "p99", "idle")
        derived = {f"{name} {part}" for name in self._found for part in parts}
        deliveries = [name for name in self._found if f"{name} p50" in self._found]
        for name in deliveries:
            self._print_row(name)
        print("\n| what | figure |\n|---|---|")
        for name in self._found:
            if name not in deliveries and name not in derived:
                against = self._against(name)
                figure = f"{self.median(name):,.1f}"
                print(f"| {name} | {figure}{against and f' (topicsvc is {against})'} |")

    def print_ratio(self, label: str, one: str, other: str) -> None:
        """One more row, of two of the same run."""
        print(f"| {label} | {self.ratio(one, other):.2f} x |")

    def _print_row(self, name: str) -> None:
        print(
            f"| {name} | {self.median(name):,.0f} | {self.median(name + ' p50'):.1f} "
            f"| {self.median(name + ' p99'):.1f} | {self.median(name + ' idle'):.0%} "
            f"| {self._against(name)} |"
        )

    def _against(self, name: str) -> str:
        scenario, _, server = name.partition(": ")
        mine = f"{scenario}: topicsvc"
        if server in ("", "topicsvc") or mine not in self._found:
            return ""
        return f"{self.ratio(mine, name):.2f} x"

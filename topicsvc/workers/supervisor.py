"""Decides what the parent does with its workers. Without I/O: `topicsvc.workers.parent` does it.

Each worker has a place, from 1 on, with its own listening sockets. Inputs are method calls, with
the time where it matters; outputs are effects, to be carried out in their order.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

__all__ = [
    "MAX_DELAY",
    "MIN_DELAY",
    "RELOAD_GRACE",
    "STABLE",
    "Apply",
    "Check",
    "Crashed",
    "Drain",
    "Drop",
    "Effect",
    "Fail",
    "GiveUpLater",
    "NotReloaded",
    "OtherSettings",
    "Refuse",
    "Reloaded",
    "RollEnded",
    "RollFailed",
    "Start",
    "StartLater",
    "Started",
    "Stopped",
    "Supervisor",
]

MIN_DELAY = 0.1
"""Seconds after a first crash before a place gets another worker."""

MAX_DELAY = 3.0
"""Most seconds: each crash in a row doubles them."""

STABLE = 10.0
"""Seconds that a worker must have been ready for its crash to count as a first one."""

RELOAD_GRACE = 2.0
"""Seconds that the start of a worker waits for a reload: for the workers that check."""


@dataclass(frozen=True, slots=True)
class Start:
    """Start a worker at a place."""

    worker: int
    place: int


@dataclass(frozen=True, slots=True)
class StartLater:
    """Call `Supervisor.start_again` for a place after `delay` seconds."""

    place: int
    delay: float


@dataclass(frozen=True, slots=True)
class Refuse:
    """Let the sockets of a place refuse connections, until a worker listens on them again."""

    place: int


@dataclass(frozen=True, slots=True)
class Drain:
    """Let a worker close its port and its sessions, and end; see `Supervisor.ended`."""

    worker: int
    is_replaced: bool


@dataclass(frozen=True, slots=True)
class Check:
    """Let each of the workers read the settings; see `Supervisor.checked`."""

    workers: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class GiveUpLater:
    """Call `Supervisor.give_up` for a reload after `delay` seconds."""

    reload: int
    delay: float


@dataclass(frozen=True, slots=True)
class Apply:
    """Let each of the workers apply the settings that it has read."""

    workers: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Drop:
    """Let each of the workers forget the settings that it has read."""

    workers: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Started:
    """All places have had a worker that was ready."""


@dataclass(frozen=True, slots=True)
class Fail:
    """End all: a worker failed before all were ready."""

    place: int
    reason: str


@dataclass(frozen=True, slots=True)
class Crashed:
    """A worker has ended by itself, for the log."""

    place: int
    reason: str
    delay: float


@dataclass(frozen=True, slots=True)
class OtherSettings:
    """A worker has started with settings that the others do not have yet, for the log."""

    place: int


@dataclass(frozen=True, slots=True)
class RollEnded:
    """All workers have been replaced, for the log."""


@dataclass(frozen=True, slots=True)
class RollFailed:
    """A replacement has not become ready: the others stay, for the log."""

    place: int
    reason: str


@dataclass(frozen=True, slots=True)
class Reloaded:
    """All workers change their settings, for the log."""


@dataclass(frozen=True, slots=True)
class NotReloaded:
    """No worker changes its settings, for the log."""

    problems: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Stopped:
    """All workers have ended after `Supervisor.stop`."""


Effect = (
    Start
    | StartLater
    | Refuse
    | Drain
    | Check
    | GiveUpLater
    | Apply
    | Drop
    | Started
    | Fail
    | Crashed
    | OtherSettings
    | RollEnded
    | RollFailed
    | Reloaded
    | NotReloaded
    | Stopped
)


@dataclass(slots=True)
class _Place:
    """One place.

    Attributes:
        number: from 1 on.
        serving: the worker that serves; None: there is none now.
        starting: the worker that is not ready yet; None: there is none.
        crashes: crashes in a row.
        ready_at: when the worker that serves was ready.
        unserved_since: since when no worker serves; None: one serves, or none has been ready yet.
        failing_since: since when `Supervisor.unserved` counts; None: it does not.
    """

    number: int
    serving: int | None = None
    starting: int | None = None
    crashes: int = 0
    ready_at: float = 0.0
    unserved_since: float | None = None
    failing_since: float | None = None


@dataclass(slots=True)
class _Reload:
    """A reload in progress: the workers that check, and their results."""

    number: int
    waiting: set[int]
    checked: list[int] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    digests: set[str] = field(default_factory=set)
    is_limited: bool = False


class Supervisor:
    """The rules for the workers of one parent.

    Args:
        count: the number of places.

    Attributes:
        is_started: whether all places have had a worker that was ready.
        is_stopping: whether `stop` was called.
        crashes: by place, how many workers have ended by themselves.
    """

    def __init__(self, count: int) -> None:
        self.is_started = False
        self.is_stopping = False
        self.crashes = dict.fromkeys(range(1, count + 1), 0)
        self._places = {number: _Place(number) for number in range(1, count + 1)}
        self._alive: dict[int, _Place] = {}
        self._last_worker = 0
        self._digest: str | None = None
        self._reload: _Reload | None = None
        self._reloads = 0
        self._wants_reload = False
        self._delayed_starts: list[int] = []  # places, until a reload has ended
        self._roll: list[int] | None = None  # the places that come next
        self._is_roll_of_all = True
        self._rolls_again = False
        self._roll_digest: str | None = None  # the settings of the last new worker
        self._leaving: int | None = None  # the worker that a rolling restart waits for

    @property
    def alive(self) -> tuple[int, ...]:
        """All workers that have not ended."""
        return tuple(self._alive)

    @property
    def is_rolling(self) -> bool:
        """Whether a rolling restart is in progress."""
        return self._roll is not None

    @property
    def have_been_ready(self) -> list[tuple[int, int, bool]]:
        """All workers that were ready and have not ended: worker, place, and whether it serves."""
        return [
            (worker, place.number, worker == place.serving)
            for worker, place in self._alive.items()
            if worker != place.starting
        ]

    @property
    def serving(self) -> dict[int, int | None]:
        """By place, the worker that serves."""
        return {place.number: place.serving for place in self._places.values()}

    def unserved(self, now: float) -> float:
        """The seconds for which a place has had no worker that serves: the most of all places.

        A place does not count while its settings keep its workers from starting: a restart of the
        whole service would fail for the same reason.
        """
        since = [each.failing_since for each in self._places.values()]
        return max((now - each for each in since if each is not None), default=0.0)

    def start(self) -> list[Effect]:
        """Start a worker at each place."""
        return [self._start(place) for place in self._places.values()]

    def _start(self, place: _Place) -> Effect:
        self._last_worker += 1
        place.starting = self._last_worker
        self._alive[self._last_worker] = place
        return Start(self._last_worker, place.number)

    def start_again(self, number: int) -> list[Effect]:
        """The delay after a crash has passed."""
        place = self._places[number]
        if self.is_stopping or place.serving is not None or place.starting is not None:
            return []
        if self._reload is not None:
            self._delayed_starts.append(number)
            return self._limit_reload()
        return [self._start(place)]

    def ready(self, worker: int, digest: str, now: float) -> list[Effect]:
        """A worker serves.

        Args:
            worker: the worker.
            digest: identifies the settings that it has read.
            now: the time.
        """
        place = self._alive[worker]
        old, place.serving = place.serving, worker
        place.starting = None
        place.ready_at = now
        place.unserved_since = place.failing_since = None
        effects: list[Effect] = []
        if not self.is_started:
            self.is_started = all(each.serving is not None for each in self._places.values())
            if self.is_started:
                effects.append(Started())
        if self.is_stopping:
            return effects
        if self._digest is None:
            self._digest = digest
        if self._roll is not None:
            self._roll_digest = digest
        elif digest != self._digest:
            effects.append(OtherSettings(place.number))
        if old is not None:
            self._leaving = old
            effects.append(Drain(old, is_replaced=True))
        elif self._roll is not None and self._leaving is None:
            effects += self._roll_on()
        return effects + self._reload_if_wanted()

    def ended(self, worker: int, reason: str, now: float, is_refused: bool = False) -> list[Effect]:
        """A worker has ended: by itself, or after `Drain`.

        Args:
            worker: the worker.
            reason: why.
            now: the time.
            is_refused: whether its settings or files have kept it from starting.
        """
        place = self._alive.pop(worker)
        was_starting = worker == place.starting
        was_serving = worker == place.serving
        if was_starting:
            place.starting = None
        if was_serving:
            place.serving = None
            place.unserved_since = place.failing_since = now
        effects: list[Effect] = []
        if self.is_stopping:
            return [] if self._alive else [Stopped()]
        if not self.is_started:
            return [Fail(place.number, reason)]
        if was_starting and place.serving is not None:
            self._roll = self._roll_digest = None
            self._rolls_again = False
            effects.append(RollFailed(place.number, reason))
        elif was_starting or was_serving:
            self.crashes[place.number] += 1
            if place.starting is None:
                delay = self._delay(place, was_serving, now)
                effects += [Crashed(place.number, reason, delay), StartLater(place.number, delay)]
                effects += self._fails(place, is_refused, now)
            else:
                effects.append(Crashed(place.number, reason, 0))
            if self._leaving is None:
                effects += self._roll_on()
        elif worker == self._leaving:
            self._leaving = None
            effects += self._roll_on()
        effects += self._leave_reload(worker)
        return effects + self._reload_if_wanted()

    def _fails(self, place: _Place, is_refused: bool, now: float) -> list[Effect]:
        """A place has no worker. Without one for some seconds, its sockets refuse connections.

        Until then connections wait for the next worker. They do so too if no place has a worker.
        """
        if is_refused:
            place.failing_since = None
        elif place.failing_since is None:
            place.failing_since = now
        since = place.unserved_since
        is_alone = all(each.serving is None for each in self._places.values())
        if since is None or now - since < MAX_DELAY or is_alone:
            return []
        return [Refuse(place.number)]

    def _delay(self, place: _Place, was_ready: bool, now: float) -> float:
        if was_ready and now - place.ready_at >= STABLE:
            place.crashes = 0
        delay = min(MIN_DELAY * 2.0**place.crashes, MAX_DELAY)
        place.crashes = min(place.crashes + 1, 16)
        return delay

    def reload(self) -> list[Effect]:
        """Let all workers check the settings, and change theirs if none has a problem.

        Waits for workers that start: they may have read the old settings or the new ones. A
        further call during a reload is a further reload.
        """
        if self.is_stopping:
            return []
        self._wants_reload = True
        return self._reload_if_wanted()

    def _reload_if_wanted(self) -> list[Effect]:
        if not self._wants_reload or self._reload is not None or self.is_stopping:
            return []
        if any(place.starting is not None for place in self._places.values()):
            return []
        workers = [place.serving for place in self._places.values() if place.serving is not None]
        if not workers:
            return []
        self._wants_reload = False
        self._reloads += 1
        self._reload = _Reload(self._reloads, set(workers))
        return [Check(tuple(workers))]

    def checked(self, worker: int, problems: Iterable[str], digest: str) -> list[Effect]:
        """A worker has read the settings.

        Args:
            worker: the worker.
            problems: why it cannot use them; empty: it can.
            digest: identifies the settings.
        """
        reload = self._reload
        if reload is None or worker not in reload.waiting:
            return []
        reload.waiting.remove(worker)
        reload.checked.append(worker)
        new = [each for each in problems if each not in reload.problems]
        reload.problems += new
        if not new and not reload.problems:
            reload.digests.add(digest)
        return self._end_reload()

    def _leave_reload(self, worker: int) -> list[Effect]:
        """A worker has ended: a reload waits for it no longer."""
        if self._reload is None:
            return []
        self._reload.waiting.discard(worker)
        if worker in self._reload.checked:
            self._reload.checked.remove(worker)
        return self._end_reload()

    def _limit_reload(self) -> list[Effect]:
        """A start waits for the reload: it must not wait long for a worker that is blocked."""
        reload = self._reload
        if reload is None or reload.is_limited:
            return []
        reload.is_limited = True
        return [GiveUpLater(reload.number, RELOAD_GRACE)]

    def give_up(self, number: int) -> list[Effect]:
        """End a reload for which a start has waited, without a change, unless it has ended."""
        reload = self._reload
        if reload is None or reload.number != number:
            return []
        for worker in sorted(reload.waiting):
            place = self._alive[worker].number
            reload.problems.append(
                f"worker {place} has not answered yet, and another one must start: reload again"
            )
        reload.checked += sorted(reload.waiting)
        reload.waiting.clear()
        return self._end_reload()

    def _end_reload(self) -> list[Effect]:
        reload = self._reload
        if reload is None or reload.waiting:
            return []
        self._reload = None
        effects: list[Effect] = []
        problems = list(reload.problems)
        if not problems and len(reload.digests) > 1:
            problems.append("the files changed while the workers read them: reload again")
        workers = tuple(reload.checked)
        if problems:
            effects += [Drop(workers), NotReloaded(tuple(problems))]
        elif workers:
            [self._digest] = reload.digests
            self._roll_digest = None
            effects += [Apply(workers), Reloaded()]
        else:
            self._wants_reload = True  # all have ended: the next ones check
        delayed, self._delayed_starts = self._delayed_starts, []
        for number in delayed:
            effects += self.start_again(number)
        if self._roll is not None and self._leaving is None:
            effects += self._roll_on()
        return effects + self._reload_if_wanted()

    def roll(self) -> list[Effect]:
        """Replace all workers, one after another: the new one is ready before the old one drains.

        A further call during a rolling restart is a further rolling restart.
        """
        if self.is_stopping or not self.is_started:
            return []
        if self._roll is not None:
            self._rolls_again = True
            return []
        self._roll = list(self._places)
        self._roll_digest = None
        self._is_roll_of_all = True
        return self._roll_on()

    def not_applied(self, worker: int) -> list[Effect]:
        """A worker has failed to apply the settings of a reload: another one takes its place."""
        place = self._alive.get(worker)
        if place is None or place.serving != worker or self.is_stopping:
            return []
        if self._roll is None:
            self._roll = []
            self._is_roll_of_all = False
        if place.number not in self._roll and place.starting is None:
            self._roll.append(place.number)
        return [] if self._leaving is not None else self._roll_on()

    def _roll_on(self) -> list[Effect]:
        """Replace the next worker. A place without one gets a new one anyway."""
        if self._roll is None:
            return []
        if self._reload is not None:
            return self._limit_reload()
        if any(place.starting is not None for place in self._places.values()):
            return []
        while self._roll:
            place = self._places[self._roll.pop(0)]
            if place.serving is not None:
                return [self._start(place)]
        self._roll = None
        if self._roll_digest is not None:
            self._digest, self._roll_digest = self._roll_digest, None
        effects: list[Effect] = [RollEnded()] if self._is_roll_of_all else []
        if self._rolls_again:
            self._rolls_again = False
            effects += self.roll()
        return effects

    def stop(self) -> list[Effect]:
        """Drain all workers."""
        self.is_stopping = True
        self._reload = self._roll = None
        drains: Sequence[Effect] = [Drain(worker, is_replaced=False) for worker in self._alive]
        return [*drains] if drains else [Stopped()]

"""Runs the cases of clients/scripted_servers.json; clients/README.md describes the file."""

from __future__ import annotations

import itertools
import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

from twisted.trial.unittest import SynchronousTestCase

FILE = Path(__file__).parents[2] / "clients" / "scripted_servers.json"

DEFAULTS = {
    "recover": True,
    "since": None,
    "minDelay": 500,
    "maxDelay": 30000,
    "connectTimeout": 10000,
    "replyTimeout": 15000,
    "buffer": 1000,
}

_NOTES = {
    "get_token failed": "getToken",
    "get_token returned": "getToken",
    "on_gap failed": "onGap",
    "the service has no positions": "positions",
    "the server sent a message that is not": "message",
}
_GAP = re.compile(r"messages may be missing between (\S+) and (\S+)")


class Call(Protocol):
    """A call of ``getToken`` or ``onGap`` without a result."""

    def returns(self, value: Any) -> None: ...

    def fails(self) -> None: ...


class Connection(Protocol):
    """A connection of the client, as the server sees it."""

    def accept(self) -> None: ...

    def refuse(self, status: int, retry_after: int | None) -> None: ...

    def send_text(self, text: str) -> None: ...

    def send_binary(self, data: bytes) -> None: ...

    def cut(self, code: int, reason: str) -> None: ...

    def drop(self) -> None: ...


class ScriptedClient:
    """A client under test. A runner for one kind of client overrides the methods that raise.

    Args:
        case: the case.

    Attributes:
        seen: what the client has done since the last step, as ``then`` says it.
        connections: all connections that the client has begun.
        token_calls: the calls of ``getToken`` without a result.
        gap_calls: the calls of ``onGap`` without a result.
        milliseconds: the time.
    """

    def __init__(self, case: dict[str, Any]) -> None:
        self.options = {**DEFAULTS, **case.get("options", {})}
        self.has_on_gap = case.get("onGap", False)
        self.seen: dict[str, Any] = defaultdict(list)
        self.connections: list[Any] = []
        self.token_calls: list[Any] = []
        self.gap_calls: list[Any] = []
        self.milliseconds = 0
        fractions = case.get("random", 0.5)
        fractions = fractions if isinstance(fractions, list) else [fractions]
        self._fractions = itertools.chain(fractions, itertools.repeat(fractions[-1]))
        self._waits = 0

    def random(self) -> float:
        return next(self._fractions)

    def policy(self) -> dict[str, Any]:
        """The arguments of `Policy`."""
        return {
            "min_delay": self.options["minDelay"] / 1000,
            "max_delay": self.options["maxDelay"] / 1000,
            "connect_timeout": self.options["connectTimeout"] / 1000,
            "reply_timeout": self.options["replyTimeout"] / 1000,
            "buffer": self.options["buffer"],
        }

    # What the runner of one kind of client does.

    def perform(self, action: Callable[[], None]) -> None:
        """Carry out an action of the script."""
        action()

    def start(self) -> None:
        raise NotImplementedError

    def refresh(self) -> None:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError

    def run_until(self, seconds: float) -> None:
        """Let time pass; without timers that are due, only let the client settle."""
        raise NotImplementedError

    def position(self) -> str | None:
        raise NotImplementedError

    def stop(self) -> None:
        """End the test, whatever the state is."""
        raise NotImplementedError

    # What the client tells.

    def note(self, text: str) -> None:
        """The client has told the application something."""
        gap = _GAP.match(text)
        if gap is not None:
            since, position = (None if each == "None" else each for each in gap.groups())
            self.seen["gap"].append({"since": since, "position": position})
            return
        [kind] = [kind for begin, kind in _NOTES.items() if text.startswith(begin)]
        self.seen["error"].append(kind)

    def called_on_gap(self, gap: Any, call: Call) -> None:
        """The client has called ``onGap``."""
        self.seen["onGap"].append({"since": gap.since, "position": gap.position})
        self.gap_calls.append(call)

    def called_get_token(self, reason: str, call: Call) -> None:
        """The client has called ``getToken``."""
        self.seen["getToken"].append(reason)
        self.token_calls.append(call)

    def aborted(self, name: str, call: Call) -> None:
        """The client does not want the result of a call any more."""
        calls = {"getToken": self.token_calls, "onGap": self.gap_calls}[name]
        calls.remove(call)
        self.seen["aborted"].append(name)

    def connected(self, connection: Connection) -> None:
        """The client has begun a handshake."""
        self.connections.append(connection)
        self.seen["connect"] = self.seen.get("connect", 0) + 1

    def sent(self, text: str) -> None:
        """The client has sent a text message."""
        self.seen["sent"].append(json.loads(text))

    def changed(self, state: str) -> None:
        """The client has a new state."""
        self.seen["state"].append(state)

    def closed(self, code: int | str) -> None:
        """The client has closed a connection, or given up a handshake."""
        self.seen["closed"].append(code)

    def got(self, message: Any) -> None:
        """The application has received a message."""
        told = {"text": message.text, "from": message.sender, "position": message.position}
        self.seen["message"].append(told)

    # The script.

    def play(self, step: dict[str, Any]) -> dict[str, Any]:
        """Carry out one step; return what the client has done."""
        self.seen.clear()
        name = "do_" + re.sub("[A-Z]", lambda match: "_" + match[0].lower(), step["do"])
        self.perform(lambda: getattr(self, name)(step))
        self.settle()
        return dict(self.seen)

    def settle(self) -> None:
        # Sums of floats are not exact. The clock is a little late, and later after each wait.
        self.run_until(self.milliseconds / 1000 + self._waits * 1e-6)

    def do_start(self, _: dict[str, Any]) -> None:
        self.start()

    def do_close_idle(self, _: dict[str, Any]) -> None:
        self.close()

    def do_token(self, step: dict[str, Any]) -> None:
        self._answer(self.token_calls, step.get("value"), "fails" in step)

    def do_gap_done(self, _: dict[str, Any]) -> None:
        self._answer(self.gap_calls, None)

    def do_gap_fails(self, _: dict[str, Any]) -> None:
        self._answer(self.gap_calls, None, True)

    def _answer(self, calls: list[Any], value: Any, fails: bool = False) -> None:
        if calls:
            call = calls.pop(0)
            call.fails() if fails else call.returns(value)

    def do_accept(self, _: dict[str, Any]) -> None:
        self.connections[-1].accept()

    def do_refuse(self, step: dict[str, Any]) -> None:
        self.connections[-1].refuse(step["status"], step.get("retryAfter"))

    def do_send(self, step: dict[str, Any]) -> None:
        if "binary" in step:
            self.connections[-1].send_binary(bytes.fromhex(step["binary"]))
        elif "text" in step:
            self.connections[-1].send_text(step["text"])
        else:
            text = json.dumps(step["message"], separators=(",", ":"), ensure_ascii=False)
            self.connections[-1].send_text(text)

    def do_cut(self, step: dict[str, Any]) -> None:
        self.connections[-1].cut(step["code"], step.get("reason", ""))

    def do_drop(self, _: dict[str, Any]) -> None:
        self.connections[-1].drop()

    def do_wait(self, step: dict[str, Any]) -> None:
        self.milliseconds += step["ms"]
        self._waits += 1

    def do_refresh(self, _: dict[str, Any]) -> None:
        self.refresh()

    def do_close(self, _: dict[str, Any]) -> None:
        self.close()


def steps_of(steps: list[dict[str, Any]], preludes: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The steps, with those that they include."""
    for step in steps:
        if "include" in step:
            yield from steps_of(preludes[step["include"]], preludes)
        else:
            yield step


class ScriptedServerTestCase(SynchronousTestCase):
    """Runs all cases that a client can have. A subclass has the name ``test_...`` for each.

    Attributes:
        client_class: the runner.
    """

    client_class: type[ScriptedClient]
    can = frozenset({"status"})
    """The values of ``needs``: both clients see the status of a refusal. They are not told of a
    wake-up, and Linux's monotonic clock stands still during a sleep."""

    def run_case(self, case: dict[str, Any], preludes: dict[str, Any]) -> None:
        client = self.client_class(case)
        try:
            for number, step in enumerate(steps_of(case["steps"], preludes)):
                done = client.play(step)
                if self.flushLoggedErrors(OSError):
                    done.setdefault("error", []).append("onGap")
                wanted = dict(step.get("then", {}))
                if client.has_on_gap:
                    done["gap"] = wanted.get("gap", [])  # on_gap is called instead
                position = wanted.pop("position", "any")
                done = {key: value for key, value in done.items() if value}
                self.assertEqual(done, wanted, f"step {number}: {step}")
                if position != "any":
                    self.assertEqual(client.position(), position, f"step {number}: {step}")
        finally:
            client.stop()


def add_cases(to: type[ScriptedServerTestCase]) -> type[ScriptedServerTestCase]:
    """Give a test case one method for each case of the file."""
    table = json.loads(FILE.read_text("utf-8"))
    for case in table["cases"]:
        if not set(case.get("needs", [])) <= to.can:
            continue

        def run(self: ScriptedServerTestCase, case: dict[str, Any] = case) -> None:
            self.run_case(case, table["preludes"])

        name = "test_" + re.sub(r"\W+", "_", case["name"].lower())
        assert not hasattr(to, name), name
        run.__doc__ = case["name"]
        setattr(to, name, run)
    return to

"""The house of four floors: imports only go down."""

from __future__ import annotations

import ast
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

import topicsvc

ROOT = Path(topicsvc.__file__).parent

PURE = {
    "address", "endings", "errors", "heartbeat", "origin", "pace", "peers", "ports",
    "session", "tally", "wire",
}  # fmt: skip
APPLICATION = {
    "backlog", "deadlines", "ebb", "hub", "journal", "lag", "limits", "outbound", "rechecks",
    "tries", "turns", "visits",
}  # fmt: skip
ADAPTERS = {
    "brokers", "heap", "listening", "logs", "notify", "records", "signals", "transmit",
    "validators", "web", "websocket",
}  # fmt: skip
COMPOSITION = {
    "carrier", "cli", "config", "demo", "judge", "options", "process", "reload", "service",
}  # fmt: skip

FLOORS = [PURE, APPLICATION, ADAPTERS, COMPOSITION]

MAY_KNOW = {
    ("web", "websocket"),
    ("websocket", "transmit"),
    ("transmit", "records"),
}
"""Adapters that may import another: one port serves both sides; one connection has one way out."""


FAMILIES = {"brokers", "listening", "validators"}
"""Where a module may be pure all the same, and says so: parsers, codecs."""


def first_word(path: Path) -> str:
    """What a module's docstring says that its floor is."""
    docstring = ast.get_docstring(ast.parse(path.read_text("utf-8"))) or ""
    return docstring.split(":")[0].removesuffix("s")


def room(module: str) -> str:
    """``topicsvc.web.send`` is in the room ``web``."""
    return module.split(".")[1] if "." in module else ""


def floor(name: str) -> int:
    return next(number for number, rooms in enumerate(FLOORS) if name in rooms)


def imports(path: Path) -> set[str]:
    """The modules that a file imports, for types or for real."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "no relative imports"
            found.add(node.module or "")
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


class LayerTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.files = {
            ".".join(path.relative_to(ROOT.parent).with_suffix("").parts): path
            for path in ROOT.rglob("*.py")
        }
        self.files = {name.removesuffix(".__init__"): path for name, path in self.files.items()}
        del self.files["topicsvc"]

    def ours(self, path: Path) -> set[str]:
        return {room(name) for name in imports(path) if name.startswith("topicsvc.")} - {
            "__version__"
        }

    def test_every_module_stands_on_a_floor(self) -> None:
        self.assertEqual(
            {room(name) for name in self.files}, PURE | APPLICATION | ADAPTERS | COMPOSITION
        )

    def test_imports_only_go_down(self) -> None:
        for name, path in self.files.items():
            for other in self.ours(path):
                with self.subTest(module=name, imports=other):
                    self.assertLessEqual(floor(other), floor(room(name)))

    def test_adapters_do_not_know_each_other(self) -> None:
        for name, path in self.files.items():
            if room(name) in ADAPTERS:
                for other in self.ours(path) & ADAPTERS - {room(name)}:
                    self.assertIn((room(name), other), MAY_KNOW)

    def test_the_pure_floor_needs_nothing_but_the_standard_library(self) -> None:
        import sys

        for name, path in self.files.items():
            if room(name) in PURE - {"ports"} or first_word(path) == "Pure":
                foreign = {each.split(".")[0] for each in imports(path)} - {"topicsvc"}
                self.assertEqual(foreign - set(sys.stdlib_module_names), set(), name)

    def test_the_application_floor_has_no_sockets_and_parses_nothing(self) -> None:
        for name, path in self.files.items():
            if room(name) in APPLICATION:
                known = {each.split(".")[0] for each in imports(path)}
                self.assertEqual(known & {"socket", "json", "autobahn", "treq"}, set(), name)

    def test_nobody_reads_the_clock_but_the_clock(self) -> None:
        for name, path in self.files.items():
            if room(name) not in COMPOSITION:
                self.assertNotIn("time", {each.split(".")[0] for each in imports(path)}, name)

    def test_a_module_s_first_word_is_its_floor(self) -> None:
        words = ["Pure", "Application", "Adapter", "Composition"]
        for name, path in self.files.items():
            if room(name) == "ports":
                continue
            if room(name) in FAMILIES and first_word(path) == "Pure":
                self.assertLessEqual(self.ours(path), PURE, name)
                continue
            self.assertEqual(first_word(path), words[floor(room(name))], name)

"""The layers of the package: a module imports only what stands below it."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

import topicsvc

ROOT = Path(topicsvc.__file__).parent

LAYERS = [
    ["cli"],
    ["worker_process"],
    ["service"],
    ["workers"],
    ["admin"],
    ["web", "options"],
    ["websocket", "config", "demo"],
    ["brokers", "validators", "delivery", "admission"],
    ["interfaces", "settings"],
    ["topics", "strict_json", "listening", "process", "client"],
    ["scheduling", "errors", "explain", "files", "histogram", "logs"],
    ["refusals", "printable", "pieces"],
]
"""From the top down. Packages and modules of one layer do not import one another.

docs/design.md shows the same list.
"""

PURE = {
    "admin.answers",
    "admin.query",
    "admin.request",
    "admission.addresses",
    "admission.origins",
    "client.rules",
    "client.rules.close_codes",
    "client.rules.effects",
    "client.rules.failures",
    "client.rules.messages",
    "client.rules.responses",
    "client.rules.session",
    "client.rules.tokens",
    "client.rules.urls",
    "brokers.activemq.stomp_frames",
    "brokers.kafka.lanes",
    "brokers.kafka.options",
    "brokers.redis.identity",
    "brokers.redis.scripts",
    "brokers.message_text",
    "delivery.frames",
    "delivery.ring",
    "errors",
    "histogram",
    "interfaces",
    "listening.endpoint_string",
    "listening.proxy_header",
    "pieces",
    "printable",
    "refusals",
    "scheduling.heavy_hitters",
    "scheduling.log_throttle",
    "scheduling.minute_counts",
    "scheduling.rate_limit",
    "scheduling.timing_wheel",
    "settings",
    "strict_json",
    "topics",
    "validators.introspection_response",
    "validators.token_id",
    "validators.jwt.claims",
    "validators.jwt.token",
    "validators.numeric_date",
    "validators.propfind",
    "validators.rules",
    "web.responses",
    "websocket.close_reasons",
    "websocket.keepalive",
    "websocket.messages",
    "websocket.session",
    "websocket.session_info",
    "workers.supervisor",
}
"""Modules without I/O. They import only the standard library and one another."""

NO_SOCKETS = {
    "admission",
    "brokers.kafka.batches",
    "delivery.hub",
    "delivery.send_queue",
    "delivery.slow_consumers",
    "process.reactor_lag",
    "scheduling",
    "validators.jwt.key_source",
    "websocket.revalidation",
    "websocket.session_log",
}
"""Modules with Deferreds and a clock, but without sockets, parsers or protocols."""

MAY_READ_THE_CLOCK = {"cli", "config", "demo", "options", "process.setup", "service"}
"""Code that passes the clock to all other code."""


@cache
def modules() -> dict[str, Path]:
    """Return the files of all modules, by module name without ``topicsvc.``."""
    found = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in ROOT.rglob("*.py")
    }
    del found["__init__"]
    return {name.removesuffix(".__init__"): path for name, path in found.items()}


@cache
def imports(path: Path) -> frozenset[str]:
    """Return the modules that a file imports, also for types."""
    return frozenset(_imports(path))


IN_TWO_PACKAGES = "client.rules"
"""A package that another distribution contains under another name: its imports are relative."""


def _imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if node.level:
                assert node.level == 1, f"{path}: an import from a package above"
                package = ".".join(path.relative_to(ROOT).parent.parts)
                assert package == IN_TWO_PACKAGES, f"{path}: a relative import"
                module = f"topicsvc.{package}.{module}".rstrip(".")
            found = {f"{module}.{alias.name}" for alias in node.names}
            # ``from package import module`` imports the module, not the package's own code.
            within = {name for name in found if name.removeprefix("topicsvc.") in modules()}
            yield from within or {module}


def is_below(name: str, packages: set[str]) -> bool:
    return any(name == each or name.startswith(each + ".") for each in packages)


class LayerTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.modules = modules()
        self.imports = {
            name: {
                each.removeprefix("topicsvc.")
                for each in imports(path)
                if each.removeprefix("topicsvc.") in self.modules
                and each.startswith("topicsvc.")
                and each != f"topicsvc.{name}"
            }
            for name, path in self.modules.items()
        }
        self.number = {name: number for number, layer in enumerate(LAYERS) for name in layer}
        self.number["__main__"] = -1  # above all

    def top(self, name: str) -> str:
        """Return the package or module in `LAYERS`: ``web`` for ``web.send``."""
        return name.split(".", maxsplit=1)[0]

    def assertNoCircle(self, graph: dict[str, set[str]]) -> None:
        try:
            TopologicalSorter(graph).prepare()
        except CycleError as error:
            self.fail(f"an import circle: {' -> '.join(error.args[1])}")

    def test_each_module_is_in_a_layer(self) -> None:
        self.assertEqual({self.top(name) for name in self.modules}, set(self.number))

    def test_imports_only_go_down(self) -> None:
        wrong = {
            f"{name} imports {other}"
            for name, others in self.imports.items()
            for other in others
            if self.top(other) != self.top(name)
            and self.number[self.top(other)] <= self.number[self.top(name)]
        }
        self.assertEqual(wrong, set())

    def test_no_circle_between_modules(self) -> None:
        self.assertNoCircle(self.imports)

    def test_no_circle_between_packages(self) -> None:
        packages: dict[str, set[str]] = {}
        for name, others in self.imports.items():
            package = name if self.modules[name].name == "__init__.py" else name.rpartition(".")[0]
            package = package or name
            for other in others:
                is_package = self.modules[other].name == "__init__.py"
                imported = other if is_package else other.rpartition(".")[0] or other
                if imported != package and not imported.startswith(f"{package}."):
                    packages.setdefault(package, set()).add(imported)
        self.assertNoCircle(packages)

    def test_pure_modules_need_only_the_standard_library(self) -> None:
        for name in PURE:
            foreign = {
                each.split(".")[0]
                for each in imports(self.modules[name])
                if not each.startswith("topicsvc")
            } - set(sys.stdlib_module_names)
            if name == "interfaces":
                foreign.discard("twisted")  # Deferred, in the signatures
            with self.subTest(module=name):
                self.assertEqual(foreign, set())
                self.assertLessEqual(self.imports[name], PURE)

    def test_modules_with_a_clock_have_no_sockets_and_parse_nothing(self) -> None:
        for name, path in self.modules.items():
            if is_below(name, NO_SOCKETS):
                known = {each.split(".")[0] for each in imports(path)}
                self.assertEqual(known & {"socket", "json", "autobahn", "treq"}, set(), name)

    def test_only_the_listed_modules_read_the_clock(self) -> None:
        for name, path in self.modules.items():
            if not is_below(name, MAY_READ_THE_CLOCK):
                self.assertNotIn("time", {each.split(".")[0] for each in imports(path)}, name)

    def test_every_package_is_in_the_wheel(self) -> None:
        # Beside the tests: the package may be an installed wheel, which has no setup.cfg.
        setup = Path(__file__).parents[2] / "setup.cfg"
        listed = setup.read_text("utf-8").split("packages =")[1].split("\ninstall_requires")[0]
        packages = {
            f"topicsvc.{name}" for name, path in self.modules.items() if path.name == "__init__.py"
        }
        self.assertEqual(packages - set(listed.split()), set())

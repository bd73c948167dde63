"""docs/design.md shows the layers, the modules and the private names as they are in the code."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import sys
import textwrap
from collections.abc import Iterator
from functools import cache

from twisted.trial.unittest import SynchronousTestCase

from tests.docs.test_docs import ROOT as PROJECT
from tests.docs.test_docs import page
from tests.docs.test_layers import LAYERS, ROOT, modules
from topicsvc import service
from topicsvc.admission import limits, token_attempts
from topicsvc.delivery import channel, hub
from topicsvc.delivery.slow_consumers import STALL_TIMEOUT
from topicsvc.scheduling import timing_wheel
from topicsvc.settings import SessionSettings
from topicsvc.validators import http_agent
from topicsvc.websocket import server

PAGE = "docs/design.md"

DOCUMENTED = {"KafkaError", "os"}
"""A class and a module with documented names of that form: librdkafka's error codes, `os._exit`."""


def section(title: str) -> str:
    """The text under a heading of the second level."""
    [text] = re.findall(rf"^## {title}\n(.*?)(?=^## |\Z)", page(PAGE), re.MULTILINE | re.DOTALL)
    return str(text)


class LayerTests(SynchronousTestCase):
    def test_the_picture_shows_the_layers_of_the_layer_test(self) -> None:
        [picture] = re.findall(r"```text\n(.*?)```", section("The layers"), re.DOTALL)
        shown = [line.split() for line in picture.splitlines()]
        self.assertEqual([int(number) for number, *_ in shown], list(range(len(LAYERS), 0, -1)))
        self.assertEqual([names for _, *names in shown], LAYERS)

    def test_the_table_lists_each_module_in_its_package(self) -> None:
        text = re.sub(r"\n +", " ", section("The layers"))
        rows = re.findall(r"^\* `([\w/.]+)`: .*?(?: Modules: (.*))?\.$", text, re.MULTILINE)
        documented = {name: set(re.findall(r"`(\w+)`", inside)) for name, inside in rows}
        known: dict[str, set[str]] = {}
        for name, path in modules().items():
            package, _, last = name.rpartition(".")
            if path.name == "__init__.py":
                known.setdefault(name.replace(".", "/") + "/", set())
            elif package:
                known.setdefault(package.replace(".", "/") + "/", set()).add(last)
            else:
                known[f"{name}.py"] = set()
        self.assertEqual(documented, known)

    def test_each_file_that_the_page_names_exists(self) -> None:
        for name in re.findall(r"`([\w/]+\.py)`", page(PAGE)):
            self.assertTrue((ROOT / name).exists() or (PROJECT / name).exists(), name)


class FigureTests(SynchronousTestCase):
    def test_each_figure_is_that_of_the_code(self) -> None:
        text = " ".join(page(PAGE).split())
        for figure in (
            f"{hub.MAX_DELIVERIES_PER_ITERATION} deliveries or {1e3 * hub.MAX_DELIVERY_TIME:g} ms",
            f"high-water mark, {hub.HIGH_WATER >> 20} MiB",
            f"low-water mark, {hub.LOW_WATER >> 20} MiB",
            f"at most {channel.MAX_JOINED >> 10} KiB",
            f"topics take turns of {hub.TOPIC_QUANTUM} deliveries",
            f"informs at most {hub.NOTIFY_PER_ITERATION} members",
            f"a timing wheel with {timing_wheel.SLOTS} slots",
            f"{SessionSettings().token_timeout:.0f} s for a valid token",
            f"{server.CLOSE_TIMEOUT:.0f} s for a close handshake",
            f"{STALL_TIMEOUT:.0f} s for a client that reads nothing",
            f"{http_agent.MAX_RESPONSE >> 10} KiB for each response",
            f"counts for another {token_attempts.ABANDONED_CHECK_TTL:.0f} s",
            f"up to {limits.MAX_POLITE_REFUSALS} at once and {limits.MAX_POLITE_REFUSALS} a second",
            f"Both take at most {service.SENDS_GRACE:.0f} s",
            f"the {limits.RESERVED_FILES} reserved file descriptors",
        ):
            self.assertTrue(figure in text, figure)


class PrivateNameTests(SynchronousTestCase):
    """Each row names attributes of a library. Its file is in the row or in the line above."""

    def setUp(self) -> None:
        self.listed = set()
        above = ""
        for line in section("Private names of libraries").splitlines():
            if line.startswith("In `"):
                above = line.split("`")[1]
            elif line.startswith("| `"):
                names, *others = line.strip("| ").split(" | ")
                file = re.fullmatch(r"`([\w/]+\.py)`", others[0])
                for name in re.findall(r"`([\w.]+)`", names):
                    self.listed.add((file[1] if file else above, name.rpartition(".")[2]))

    def test_each_private_name_is_listed_and_no_other(self) -> None:
        private = {(file, name) for file, name in self.listed if is_private(name)}
        self.assertEqual(private, used_names())

    def test_each_undocumented_name_of_the_list_is_used(self) -> None:
        for file, name in self.listed:
            if not is_private(name):
                source = (ROOT / file).read_text("utf-8")
                self.assertRegex(source, rf"\b{name}\b", f"{file} does not use {name}")

    def test_the_tested_versions_are_allowed_by_the_package(self) -> None:
        documented = re.findall(
            r"^\| ([\w-]+) \| ([\d.]+) \| ([\d.]+) \|$", page(PAGE), re.MULTILINE
        )
        self.assertGreater(len(documented), 3)
        wanted = dict(
            re.findall(r"^\s+([\w-]+)(?:\[\w+\])?>=([\d.]+)$", page("setup.cfg"), re.MULTILINE)
        )
        for library, least, tested in documented:
            self.assertEqual(wanted[library], least, library)
            self.assertGreaterEqual(version(tested), version(least), library)

    def test_the_search_finds_each_kind_of_use(self) -> None:
        source = """
            import private._module
            from private import _name
            from private._other import name
            import public.module
            from public import name
            class Own:
                def _method(self): return self._own + other._method() + KafkaError._CODE
            connection._attribute
            getattr(connection, "_by_name", None)
            super()._inherited()
            """
        self.assertEqual(
            set(accesses(ast.parse(textwrap.dedent(source)))),
            {"_module", "_name", "_other", "_attribute", "_by_name", "_inherited"},
        )


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name != "_"


def version(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(".")))


@cache
def used_names() -> frozenset[tuple[str, str]]:
    """Private names of libraries, each with the file that uses it."""
    found = set()
    for module, path in modules().items():
        file = str(path.relative_to(ROOT))
        names = [*accesses(ast.parse(path.read_text("utf-8"))), *inherited(f"topicsvc.{module}")]
        found |= {(file, name) for name in names}
    return frozenset(found)


def accesses(tree: ast.Module) -> Iterator[str]:
    """Private names that a module imports, or uses of an object that is not ``self``.

    A name that a function of the same module has is the module's own.
    """
    own = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=aliases):
                parts = [part for alias in aliases for part in alias.name.split(".")]
                yield from filter(is_private, parts)
            case ast.ImportFrom(module=str(module), names=aliases):
                if module.split(".")[0] != "topicsvc":
                    parts = [*module.split("."), *(alias.name for alias in aliases)]
                    yield from filter(is_private, parts)
            case ast.Attribute(value=ast.Name(id=name)) if name in {"self", "cls", *DOCUMENTED}:
                pass
            case ast.Attribute(attr=name) if is_private(name) and name not in own:
                yield name
            case ast.Call(
                func=ast.Name(id="getattr" | "hasattr" | "setattr"),
                args=[_, ast.Constant(value=str(name)), *_],
            ) if is_private(name):
                yield name


def inherited(module: str) -> Iterator[str]:
    """Private names that classes of a module share with their base classes in libraries.

    The class overrides the name, calls it or sets it, by intention or not.
    """
    for kind in vars(importlib.import_module(module)).values():
        if isinstance(kind, type) and kind.__module__ == module:
            libraries = [each for each in kind.__mro__ if is_of_library(each)]
            inherited_names = {name for each in libraries for name in names_of(each)}
            yield from names_of(kind) & inherited_names


def is_of_library(kind: type) -> bool:
    return kind.__module__.split(".")[0] not in {"topicsvc", *sys.stdlib_module_names}


@cache
def names_of(kind: type) -> frozenset[str]:
    """Private names of ``self`` in the source of a class; none, if it has no source."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(kind)))
    except (OSError, TypeError):  # made by C or by a decorator
        return frozenset()
    found = set()
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(value=ast.Name(id="self" | "cls"), attr=name):
                found.add(name)
            case ast.FunctionDef(name=name) | ast.Name(id=name, ctx=ast.Store()):
                found.add(name)
    return frozenset(filter(is_private, found))

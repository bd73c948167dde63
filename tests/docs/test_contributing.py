"""CONTRIBUTING.md, tests/README.md and .ci/run agree with the tree and with one another."""

from __future__ import annotations

import re
from configparser import ConfigParser
from pathlib import Path

from twisted.python.reflect import namedAny
from twisted.trial.unittest import SynchronousTestCase

import topicsvc
from tests.docs.test_docs import ROOT, page
from tests.docs.test_layers import LAYERS

PAGES = ("CONTRIBUTING.md", "tests/README.md")
FAST = "python -m twisted.trial -j2 tests.unit tests.docs tests.end_to_end"
INTEGRATION = "TOPICSVC_REQUIRE_INTEGRATION=1 python -m twisted.trial tests.integration"
CHECKS = ("ruff check .", "ruff format --check .", "mypy --strict")
PACKAGE = Path(topicsvc.__file__).parent
"""The sources: in a checkout, or in an installed wheel."""


class TestCommandTests(SynchronousTestCase):
    def test_the_readme_begins_with_the_two_commands(self) -> None:
        text = page("README.md")
        self.assertIn(
            "\n    python3 -m venv .venv && . .venv/bin/activate\n"
            "    pip install . && twistd -n topicsvc --demo\n",
            text,
        )
        self.assertIn(f"\n    pip install '.[test]' && {FAST}\n", text)

    def test_ci_runs_both_test_commands(self) -> None:
        lines = page(".ci/run").splitlines()
        for command in (FAST, INTEGRATION):
            self.assertEqual(sum(line.startswith(f"{command} | tee ") for line in lines), 1)
        self.assertIn("retry sh tests/integration/install.sh", lines)

    def test_ci_runs_lint_and_types(self) -> None:
        for command in CHECKS:
            self.assertIn(command, page(".ci/run").splitlines())
            self.assertIn(f"    {command}", page("CONTRIBUTING.md").splitlines())

    def test_both_pages_have_both_commands(self) -> None:
        for name in PAGES:
            self.assertIn(FAST, page(name), name)
            self.assertIn(f"\n    {INTEGRATION}\n", page(name), name)
            self.assertIn("\n    sh tests/integration/install.sh\n", page(name), name)

    def test_every_test_module_is_in_one_of_the_commands(self) -> None:
        packages = {
            path.relative_to(ROOT / "tests").parts[0]
            for path in (ROOT / "tests").rglob("test_*.py")
        }
        commands = f"{FAST} {INTEGRATION}"
        self.assertEqual(packages, set(re.findall(r"\btests\.(\w+)", commands)))

    def test_every_module_class_and_test_of_a_command_exists(self) -> None:
        for name in PAGES:
            for line in re.findall(r"^ {4}.*twisted\.trial (.*)$", page(name), re.MULTILINE):
                for target in line.split():
                    if target.startswith("tests."):
                        self.assertTrue(namedAny(target), target)


class NameTests(SynchronousTestCase):
    def test_every_file_and_directory_exists(self) -> None:
        for name in PAGES:
            here = (ROOT / name).parent
            for path in re.findall(r"`([\w.]+/[\w./]*|\w+\.(?:py|md|sh|toml|cfg))`", page(name)):
                places = ROOT, here, PACKAGE.parent, PACKAGE / "brokers", ROOT / "tests/integration"
                self.assertTrue(any((place / path).exists() for place in places), path)

    def test_every_extra_exists(self) -> None:
        setup = ConfigParser(interpolation=None)
        setup.read(ROOT / "setup.cfg")
        for name in (*PAGES, "README.md"):
            for extra in re.findall(r"pip install [^\n`]*'\.\[(\w+)\]'", page(name)):
                self.assertIn(extra, setup["options.extras_require"], name)

    def test_the_layers_are_those_of_the_test(self) -> None:
        rows = re.findall(r"^\d+\. (`.*)$", page("CONTRIBUTING.md"), re.MULTILINE)
        self.assertEqual([re.findall(r"`(\w+)`", row) for row in rows], LAYERS)

    def test_every_class_and_constant_exists(self) -> None:
        sources = [*(ROOT / "tests").rglob("*.py"), *PACKAGE.rglob("*.py")]
        text = "\n".join(path.read_text("utf-8") for path in sources)
        for name in re.findall(r"`(_?[A-Z]\w+)`", page("CONTRIBUTING.md")):
            self.assertRegex(text, rf"(?m)^(?:class )?{name}\b", name)


class TestsPageTests(SynchronousTestCase):
    def rows(self, heading: str) -> list[list[str]]:
        """The cells of all tables below a heading, without the tables' heads."""
        text = page("tests/README.md").split(f"\n## {heading}\n")[1].split("\n## ")[0]
        lines = [line for line in text.splitlines() if line.startswith("| ")]
        rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
        return [row for row in rows if row[0].startswith("`") or heading != "Support modules"]

    def test_every_package_is_there_and_no_other(self) -> None:
        there = {path.parent.name for path in (ROOT / "tests").glob("*/__init__.py")}
        documented = {row[0].strip("`/") for row in self.rows("The tree")} - {"package"}
        self.assertEqual(documented, there)

    def test_every_support_module_is_there_and_no_other(self) -> None:
        documented = [row[0].strip("`") for row in self.rows("Support modules")]
        there = [
            sorted(path.stem for path in (ROOT / "tests" / place).glob("[!_]*.py"))
            for place in ("support", "integration/support")
        ]
        self.assertEqual(documented, there[0] + there[1])

    def test_every_package_that_is_installed_is_there(self) -> None:
        rows = self.rows("What install.sh installs")[1:]
        documented = {word for row in rows for word in re.split(r", ", row[0].replace("`", ""))}
        script = page("tests/integration/install.sh").replace("\\\n", "")
        installed = {
            word
            for words in re.findall(r"apt-get install (.*)$", script, re.MULTILINE)
            for word in words.split()
            if not word.startswith("-")
        }
        others = {"oidc-provider", "Kafka", "Keycloak", "hadolint", "dclint"}
        others |= {"Node.js 22 and 24", "Bun", "Deno", "TypeScript", "esbuild"}
        self.assertEqual(documented - others, installed)
        for row in rows:
            for module in re.findall(r"`(\w+)`", row[1]):
                self.assertTrue((ROOT / f"tests/integration/{module}.py").exists(), module)

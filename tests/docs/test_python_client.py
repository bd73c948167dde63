"""The distribution of the asyncio client: its files, its version and its dependencies."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

import topicsvc
from tests.docs.test_docs import ROOT, page
from tests.support.python_client import SOURCE, client

PACKAGE = SOURCE / "topicsvc_client"


def files(directory: Path) -> dict[str, bytes]:
    """The content of all files with types, by path."""
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in sorted(directory.rglob("*.py"))
    }


class DistributionTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.project = tomllib.loads(page("clients/python/pyproject.toml"))

    def test_it_has_the_version_of_the_service(self) -> None:
        self.assertEqual(client.__version__, topicsvc.__version__)

    def test_every_package_is_in_the_distribution(self) -> None:
        packages = {
            ".".join(path.parent.relative_to(SOURCE).parts)
            for path in (PACKAGE / "__init__.py", PACKAGE / "rules" / "__init__.py")
        }
        self.assertEqual(set(self.project["tool"]["setuptools"]["packages"]), packages)
        found = {path.parent for path in PACKAGE.rglob("__init__.py")} | {PACKAGE / "rules"}
        self.assertEqual(len(found), len(packages))

    def test_both_clients_have_the_same_rules(self) -> None:
        """In a checkout the directory is a link; distributions contain the files."""
        installed = Path(topicsvc.__file__).parent / "client" / "rules"
        self.assertEqual(files(PACKAGE / "rules"), files(installed))
        self.assertGreater(len(files(installed)), 3)
        self.assertEqual(files(Path(client.__file__).parent / "rules"), files(installed))

    def test_it_needs_websockets_and_the_standard_library_alone(self) -> None:
        needed = set()
        for path in (*PACKAGE.glob("*.py"), *(PACKAGE / "rules").glob("*.py")):
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                if isinstance(node, ast.Import):
                    needed |= {alias.name.split(".")[0] for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and node.level == 0:
                    needed.add((node.module or "").split(".")[0])
        self.assertEqual(needed - set(sys.stdlib_module_names), {"websockets"})
        names = [re.match(r"\w+", each)[0] for each in self.project["project"]["dependencies"]]
        self.assertEqual(names, ["websockets"])

    def test_the_service_does_not_need_websockets(self) -> None:
        required = page("setup.cfg").split("install_requires =")[1].split("[options.extras")[0]
        self.assertNotIn("websockets", required)

    def test_its_types_are_checked_and_published(self) -> None:
        self.assertTrue((PACKAGE / "py.typed").exists())
        self.assertIn("clients/python/src/topicsvc_client", page("setup.cfg").split("[mypy]")[1])

    def test_it_has_the_license_of_the_service(self) -> None:
        own = (ROOT / "clients" / "python" / "LICENSE").read_bytes()
        self.assertEqual(own, (ROOT / "LICENSE").read_bytes())

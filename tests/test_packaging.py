"""What is installed is what is here."""

from __future__ import annotations

from configparser import ConfigParser
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

ROOT = Path(__file__).parent.parent


class PackageTests(SynchronousTestCase):
    def test_every_package_is_installed(self) -> None:
        setup = ConfigParser()
        setup.read(ROOT / "setup.cfg", "utf-8")
        listed = setup["options"]["packages"].split()
        there = [
            ".".join(init.parent.relative_to(ROOT).parts)
            for init in (ROOT / "topicsvc").rglob("__init__.py")
        ]
        self.assertEqual(sorted(listed), sorted(there))

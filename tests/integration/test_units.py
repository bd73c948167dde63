"""systemd-analyze accepts the systemd units of examples/."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.integration.support.requirements import need

UNITS = Path(__file__).parent.parent.parent / "examples" / "systemd"
MAX_EXPOSURE = 2.0
"""Exposure level of systemd-analyze: from 0, hardened, to 10."""


class UnitTests(SynchronousTestCase):
    def setUp(self) -> None:
        need(shutil.which("systemd-analyze"), "systemd-analyze (tests/integration/install.sh)")
        self.directory = Path(self.mktemp()).absolute()
        self.directory.mkdir()
        # The program must exist.
        for file in UNITS.iterdir():
            text = file.read_text("utf-8").replace("/opt/topicsvc/bin/twistd", "/bin/true")
            (self.directory / file.name).write_text(text)
        drop_in = self.directory / "topicsvc.socket.d"
        drop_in.mkdir()
        (self.directory / "instances.conf").rename(drop_in / "instances.conf")

    def analyze(self, *arguments: str) -> str:
        done = subprocess.run(
            ["systemd-analyze", *arguments],
            cwd=self.directory,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=300,
            check=False,
        )
        self.assertEqual(done.returncode, 0, done.stdout)
        return done.stdout

    def test_systemd_reports_no_problem(self) -> None:
        for unit in ("topicsvc.service", "topicsvc.socket", "topicsvc@1.service"):
            output = self.analyze("verify", "--man=no", f"./{unit}")
            lines = [line for line in output.splitlines() if "topicsvc" in line]
            self.assertEqual(lines, [], output)

    def test_the_services_are_hardened(self) -> None:
        for unit in ("topicsvc.service", "topicsvc@1.service"):
            output = self.analyze("security", "--offline=true", f"./{unit}")
            exposure = float(re.search(r"Overall exposure level for \S+: ([\d.]+)", output)[1])
            self.assertLess(exposure, MAX_EXPOSURE, output)

    def test_an_instance_differs_only_in_description_and_command(self) -> None:
        one = (UNITS / "topicsvc.service").read_text().splitlines()
        many = (UNITS / "topicsvc@.service").read_text().splitlines()
        self.assertEqual(len(one), len(many))
        differ = {
            line.partition("=")[0] for line, _ in zip(one, many, strict=True) if line not in many
        }
        self.assertEqual(
            {each for each in differ if not each.startswith("#")}, {"Description", "ExecStart"}
        )

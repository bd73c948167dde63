"""The systemd units of examples/, as systemd itself reads them."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.integration.support.requirements import need

UNITS = Path(__file__).parent.parent.parent / "examples" / "systemd"
MOST_EXPOSED = 2.0


class UnitTests(SynchronousTestCase):
    def setUp(self) -> None:
        need(shutil.which("systemd-analyze"), "systemd-analyze (tests/integration/install.sh)")
        self.directory = Path(self.mktemp()).absolute()
        self.directory.mkdir()
        # Only the program has to be there.
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
            timeout=60,
            check=False,
        )
        self.assertEqual(done.returncode, 0, done.stdout)
        return done.stdout

    def test_systemd_has_nothing_to_say_about_them(self) -> None:
        for unit in ("topicsvc.service", "topicsvc.socket", "topicsvc@1.service"):
            said = self.analyze("verify", "--man=no", f"./{unit}")
            ours = [line for line in said.splitlines() if "topicsvc" in line]
            self.assertEqual(ours, [], said)

    def test_they_are_hardened(self) -> None:
        for unit in ("topicsvc.service", "topicsvc@1.service"):
            said = self.analyze("security", "--offline=true", f"./{unit}")
            exposure = float(re.search(r"Overall exposure level for \S+: ([\d.]+)", said)[1])
            self.assertLess(exposure, MOST_EXPOSED, said)

    def test_an_instance_differs_in_what_it_must(self) -> None:
        one = (UNITS / "topicsvc.service").read_text().splitlines()
        many = (UNITS / "topicsvc@.service").read_text().splitlines()
        self.assertEqual(len(one), len(many))
        differ = {
            line.partition("=")[0] for line, _ in zip(one, many, strict=True) if line not in many
        }
        self.assertEqual(
            {each for each in differ if not each.startswith("#")}, {"Description", "ExecStart"}
        )

"""The commands of docs/deployment.md, run one after the other as they stand there.

What changes the machine is caught: absolute paths lead into a directory of the test, and
programs such as apt-get and systemctl are stand-ins that look at what they are told.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.integration.process import TOPICSVC, TWISTD, environment
from tests.integration.requirements import need

ROOT = Path(__file__).parent.parent.parent
CAUGHT = ("apt-get", "adduser", "curl", "nginx", "haproxy", "sleep")

SYSTEMCTL = """
for word in "$@"; do
    case $word in
        topicsvc*.service|topicsvc*.socket)
            unit=$(printf %s "$word" | sed 's/@[0-9]*/@/')
            [ "$1" = disable ] || [ -f "{root}/etc/systemd/system/$unit" ] || exit 5 ;;
        topicsvc*|*.service|*.socket) exit 6 ;;
    esac
done
"""

INSTALL = """
for word in "$@"; do case $word in -g|topicsvc) ;; *) set -- "$@" "$word" ;; esac; shift; done
exec /usr/bin/install "$@"
"""

PYTHON = """
[ "$1 $2" = "-m venv" ] || exit 7
mkdir -p "$3/bin"
cp "{root}/shims/pip" "{root}/shims/twistd" "{root}/shims/topicsvc" "$3/bin"
"""


class DeploymentTests(SynchronousTestCase):
    def setUp(self) -> None:
        need(shutil.which("systemd-analyze"), "systemd-analyze (tests/integration/install.sh)")
        self.root = Path(self.mktemp()).absolute()
        for directory in ("shims", "etc/nginx/sites-enabled", "etc/haproxy", "etc/systemd/system"):
            (self.root / directory).mkdir(parents=True)
        self.log = self.root / "log"
        for name in CAUGHT:
            self.shim(name, "")
        self.shim("systemctl", SYSTEMCTL)
        self.shim("install", INSTALL)
        self.shim("python3", PYTHON)
        self.shim("runuser", 'shift 3; exec "$@"')
        self.shim("pip", '[ -f "$2/setup.cfg" ] || [ "$2" = . ]')
        for name, command in (("twistd", TWISTD), ("topicsvc", TOPICSVC)):
            words = " ".join(f"'{word}'" for word in command)
            self.shim(name, f'exec {words} "$@"')

    def shim(self, name: str, script: str) -> None:
        """A program that writes down what it is told, and then does `script`."""
        file = self.root / "shims" / name
        text = script.replace("{root}", str(self.root))
        file.write_text(f'#!/bin/bash\necho {name} "$@" >>{self.log}\n{text}\n')
        file.chmod(0o755)

    def run_block(self, block: str) -> subprocess.CompletedProcess[str]:
        block = re.sub(r"(?<![\w.])/(etc|opt)/", rf"{self.root}/\1/", block)
        path = f"{self.root}/shims:{os.environ['PATH']}"
        return subprocess.run(
            ["bash", "-euc", block],
            input="the unit's password\n",
            env={**environment(), "PATH": path},
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def verify(self, unit: str) -> None:
        """Let systemd read a unit as it was put in place."""
        units = self.root / "etc/systemd/system"
        done = subprocess.run(
            ["systemd-analyze", "verify", "--man=no", str(units / unit)],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        # The program is where the unit says, below the test's directory.
        program = "/opt/topicsvc/bin/twistd"
        self.assertTrue((self.root / program[1:]).exists())
        ours = [line for line in done.stderr.splitlines() if "topicsvc" in line]
        self.assertEqual([line for line in ours if f"Command {program} " not in line], [], unit)

    def test_every_command_works_as_it_stands_there(self) -> None:
        text = (ROOT / "docs/deployment.md").read_text("utf-8")
        blocks = re.findall(r"^```sh\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
        self.assertGreaterEqual(len(blocks), 12)
        for block in blocks:
            done = self.run_block(block)
            said = f"{block}\n{done.stdout}{done.stderr}"
            if " doctor " in block:
                # There is no unit here, and it says so.
                self.assertEqual(done.returncode, 1, said)
                self.assertIn("ok    settings: ", done.stdout)
                self.assertIn("warn  validator: the domain name system knows no cell", done.stdout)
                self.assertIn("FAIL  clock: https://unit1.example/ ", done.stdout)
                continue
            if " check " in block:
                self.point_settings_here()
                done = self.run_block(block)
            self.assertEqual(done.returncode, 0, said + done.stderr)
            if "systemctl" in block and "topicsvc" in block:
                for unit in (self.root / "etc/systemd/system").glob("topicsvc*.s*"):
                    if unit.is_file() and "@" not in unit.name:
                        self.verify(unit.name)
        told = self.log.read_text()
        for words in (
            "systemctl enable --now topicsvc.socket topicsvc.service",
            "systemctl enable --now topicsvc@1.service topicsvc@2.service",
            "systemctl restart topicsvc@2.service",
            "nginx -t",
            "curl -fs http://127.0.0.1:9092/health/ready",
        ):
            self.assertIn(words, told)
        self.assertIn("runuser -u topicsvc", told)
        self.assertNotIn("topicsvc.socket", self.unit("topicsvc.service"), "the last chapter")

    def point_settings_here(self) -> None:
        file = self.root / "etc/topicsvc/topicsvc.toml"
        file.write_text(file.read_text().replace('"/etc/', f'"{self.root}/etc/'))

    def unit(self, name: str) -> str:
        return (self.root / "etc/systemd/system" / name).read_text()

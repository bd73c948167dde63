"""Runs the commands of docs/deployment.md in their order.

The machine is not changed: absolute paths lead into a directory of the test, and programs such
as apt-get and systemctl are replaced by scripts that check their arguments.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.integration.support.requirements import need
from tests.support.processes import TOPICSVC, TWISTD, environment, free_port

ROOT = Path(__file__).parent.parent.parent
REPLACED = ("apt-get", "adduser", "curl", "nginx", "haproxy", "sleep")

SYSTEMCTL = """
cd "{root}/etc/systemd/system"
verb=$1
shift
[ "$1" = --now ] && shift
for word in "$@"; do
    case $word in
        topicsvc*.service|topicsvc*.socket) ;;
        topicsvc*|*.service|*.socket) exit 6 ;;
        *) continue ;;
    esac
    [ "$verb" = disable ] || [ -f "$(printf %s "$word" | sed 's/@[0-9]*/@/')" ] || exit 5
    case $verb in
        enable) touch "{root}/enabled/$word" ;;
        disable) rm "{root}/enabled/$word" || exit 7 ;;
        restart|reload) [ -f "{root}/enabled/$word" ] || exit 7 ;;
    esac
done
# The socket unit would start the service again at the next connection.
if [ "$verb" = disable ] && [ -f "{root}/enabled/topicsvc.socket" ]; then
    case " $* " in *" topicsvc.service "*) exit 8 ;; esac
fi
"""

INSTALL = """
for word in "$@"; do case $word in -g|-o|topicsvc) ;; *) set -- "$@" "$word" ;; esac; shift; done
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
        self.saved = Path(self.mktemp()).absolute()
        directories = "etc/nginx/sites-enabled", "etc/haproxy", "etc/systemd/system"
        for directory in ("shims", "enabled", "run", "var/log", *directories):
            (self.root / directory).mkdir(parents=True)
        self.log = self.root / "log"
        for name in REPLACED:
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
        """Create a program that logs its arguments and then runs `script`."""
        file = self.root / "shims" / name
        text = script.replace("{root}", str(self.root))
        file.write_text(f'#!/bin/bash\necho {name} "$@" >>{self.log}\n{text}\n')
        file.chmod(0o755)

    def relocated(self, text: str) -> str:
        """Replace absolute paths by paths in the test's directory."""
        return re.sub(r"(?<![\w.])/(etc|opt|run|var)/", rf"{self.root}/\1/", text)

    def run_block(self, block: str) -> subprocess.CompletedProcess[str]:
        path = f"{self.root}/shims:{os.environ['PATH']}"
        return subprocess.run(
            ["bash", "-euo", "pipefail", "-c", self.relocated(block)],
            input="the unit's password\n",
            env={**environment(), "PATH": path},
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    def verify(self, unit: str) -> None:
        """Check an installed unit with systemd-analyze."""
        units = self.root / "etc/systemd/system"
        done = subprocess.run(
            ["systemd-analyze", "verify", "--man=no", str(units / unit)],
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        # The program exists below the test's directory, at the path in the unit.
        program = "/opt/topicsvc/bin/twistd"
        self.assertTrue((self.root / program[1:]).exists())
        lines = [line for line in done.stderr.splitlines() if "topicsvc" in line]
        self.assertEqual([line for line in lines if f"Command {program} " not in line], [], unit)

    def test_each_command_works_as_documented(self) -> None:
        text = (ROOT / "docs/deployment.md").read_text("utf-8")
        first, *others = re.split(r"^## ", text, flags=re.MULTILINE)[1:]
        self.follow(first)
        self.assertEqual(self.enabled, {"topicsvc.service", "topicsvc.socket"})
        shutil.copytree(self.root, self.saved, symlinks=True)
        instances = {"topicsvc@1.service", "topicsvc@2.service"}
        for chapter, enabled in zip(
            others,
            (
                {"topicsvc.service", "topicsvc.socket"},
                {"topicsvc.service", "topicsvc.socket"},
                {"topicsvc.socket", *instances},
                instances,
                {"topicsvc.service"},
                {"topicsvc.service", "topicsvc.socket"},
                {"topicsvc.service", "topicsvc.socket"},
            ),
            strict=True,
        ):
            self.follow(chapter)
            self.assertEqual(self.enabled, enabled, chapter)
            if chapter.startswith("Without a proxy"):
                self.assertNotIn("topicsvc.socket", self.unit("topicsvc.service"))
                self.renew()
            if chapter.startswith("HAProxy"):
                self.assertNotIn("topicsvc.socket", self.unit("topicsvc@.service"))
                self.assertIn("--listen haproxy:tcp:808%i:", self.unit("topicsvc@.service"))
            log = self.log.read_text()
            shutil.rmtree(self.root)
            shutil.copytree(self.saved, self.root, symlinks=True)
            self.log.write_text(log)
        for words in (
            "systemctl enable --now topicsvc.socket topicsvc.service",
            "systemctl restart topicsvc@2.service",
            "nginx -t",
            "haproxy -c",
            "curl -fs http://127.0.0.1:9092/health/ready",
            "runuser -u topicsvc",
        ):
            self.assertIn(words, log)

    def test_the_commands_without_systemd_work_as_documented(self) -> None:
        text = (ROOT / "docs/deployment.md").read_text("utf-8")
        chapters = dict(
            re.findall(r"^## ([^\n]+)\n(.*?)(?=^## |\Z)", text, re.DOTALL | re.MULTILINE)
        )
        self.follow(chapters["One process behind nginx"])
        chapter = chapters["Without systemd"].split("\n### ")[0]
        commands = "".join(line[4:] for line in chapter.splitlines(True) if line[:4] == "    ")
        port = str(free_port())
        commands = commands.replace("8081", port).replace(
            "--uid topicsvc --gid topicsvc", f"--uid {os.getuid()} --gid {os.getgid()}"
        )
        # The machine of the test may not allow as many.
        commands = commands.replace("ulimit -n 65536", 'ulimit -n "$(ulimit -Hn)"')
        admin = str(free_port())
        settings = self.root / "etc/topicsvc/topicsvc.toml"
        settings.write_text(settings.read_text().replace("9090", admin))
        done = self.run_block(commands)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        reload, stop = re.findall(r"`(kill [^`]*)`", chapter)
        log = self.root / "var/log/topicsvc/topicsvc.log"
        self.addCleanup(self.run_block, f"{stop.replace('kill', 'kill -9')} || true")
        self.wait_for(log, r"serves 2 ports")
        self.assertEqual(self.run_block(reload).returncode, 0)
        self.wait_for(log, r"reload|no change")
        self.assertEqual(self.run_block(stop).returncode, 0)
        self.wait_for(log, r"Server Shut Down")

    def wait_for(self, log: Path, pattern: str) -> None:
        """Wait until the log of a process that runs in the background matches `pattern`."""
        ends = time.monotonic() + 120
        while not re.search(pattern, text := log.read_text() if log.exists() else ""):
            self.assertLess(time.monotonic(), ends, f"{pattern!r} is not in {text}")
            time.sleep(0.05)

    def follow(self, chapter: str) -> None:
        """Run the commands of a chapter and apply its settings."""
        blocks = re.findall(r"^```(sh|toml)\n(.*?)^```", chapter, re.DOTALL | re.MULTILINE)
        for language, block in blocks:
            if language == "toml":
                self.change_settings(block)
                continue
            if " check " in block:
                self.relocate_settings()
            done = self.run_block(block)
            output = f"{block}\n{done.stdout}{done.stderr}"
            if " doctor " in block:
                # There is no unit in this test, which doctor reports.
                self.assertEqual(done.returncode, 0, output)
                self.assertIn("ok    settings: ", done.stdout)
                self.assertIn("warn  validator: DNS has no host for cell", done.stdout)
                self.assertIn("warn  clock: not compared, as https://unit1.example/ ", done.stdout)
                continue
            self.assertEqual(done.returncode, 0, output)
            if "systemctl" in block and "topicsvc" in block:
                for unit in (self.root / "etc/systemd/system").glob("topicsvc*.s*"):
                    if unit.is_file():
                        self.verify(unit.name)

    def change_settings(self, block: str) -> None:
        """Replace or add the settings of a code block in the configuration file."""
        file = self.root / "etc/topicsvc/topicsvc.toml"
        text = file.read_text()
        for line in block.splitlines():
            key = line.partition(" ")[0]
            text = line + "\n" + re.sub(rf"^{key} = .*\n", "", text, flags=re.MULTILINE)
        file.write_text(text)

    def renew(self) -> None:
        """The hook of certbot installs the right certificate, completely or not at all."""
        installed = self.root / "etc/topicsvc/certificates/push.pem"
        before = installed.read_text()
        reload = "systemctl reload topicsvc.service\n"
        live = self.root / "etc/letsencrypt/live"
        for name in ("push.example", "other.example"):
            (live / name).mkdir(parents=True)
            (live / name / "privkey.pem").write_text(f"the key of {name}\n")
        for lineage, code in (("other.example", 0), ("push.example", 1)):
            # The second one is not complete: the hook fails, and nothing is installed.
            self.assertEqual(self.run_hook(lineage), code)
            self.assertEqual(installed.read_text(), before)
            self.assertFalse(self.log.read_text().endswith(reload))
        (live / "push.example/fullchain.pem").write_text("the chain\n")
        self.assertEqual(self.run_hook("push.example"), 0)
        self.assertEqual(installed.read_text(), "the key of push.example\nthe chain\n")
        self.assertEqual(installed.stat().st_mode & 0o777, 0o640)
        self.assertEqual([each.name for each in installed.parent.iterdir()], ["push.pem"])
        self.assertTrue(self.log.read_text().endswith(reload))

    def run_hook(self, lineage: str) -> int:
        """Run the hook as certbot does after a renewal; return its exit code."""
        return self.run_block(
            f"RENEWED_LINEAGE=/etc/letsencrypt/live/{lineage} "
            "/etc/letsencrypt/renewal-hooks/deploy/topicsvc"
        ).returncode

    @property
    def enabled(self) -> set[str]:
        """The enabled units."""
        return {file.name for file in (self.root / "enabled").iterdir()}

    def relocate_settings(self) -> None:
        file = self.root / "etc/topicsvc/topicsvc.toml"
        file.write_text(self.relocated(file.read_text()))

    def unit(self, name: str) -> str:
        return (self.root / "etc/systemd/system" / name).read_text()

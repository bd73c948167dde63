"""The image and the compose file: linters read them, and their commands run without an engine."""

from __future__ import annotations

import fnmatch
import json
import re
import shutil
import subprocess
import sys
import tomllib
from configparser import ConfigParser
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.integration.support.requirements import need
from tests.support.processes import Process, environment
from topicsvc import config
from topicsvc.settings import RedisSettings
from topicsvc.validators.local import make_key, write_key

ROOT = Path(__file__).parent.parent.parent
LINT = Path(__file__).parent / "lint"
COMPOSE = ROOT / "examples/compose"


def run(*command: str, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        check=False,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=120,
        **options,
    )


class LintTests(SynchronousTestCase):
    def test_hadolint_finds_nothing_in_the_containerfile(self) -> None:
        hadolint = shutil.which("hadolint") or str(LINT / "venv/bin/hadolint")
        need(Path(hadolint).exists(), "hadolint (tests/integration/install.sh)")
        done = run(hadolint, str(ROOT / "Containerfile"))
        self.assertEqual((done.returncode, done.stdout), (0, ""))

    def test_dclint_finds_nothing_in_the_compose_file(self) -> None:
        dclint = LINT / "node_modules/.bin/dclint"
        need(dclint.exists(), "dclint (tests/integration/install.sh)")
        done = run(str(dclint), "--max-warnings", "0", str(COMPOSE / "compose.yaml"))
        self.assertEqual(done.returncode, 0, done.stdout)


class ImageTests(SynchronousTestCase):
    def setUp(self) -> None:
        text = (ROOT / "Containerfile").read_text("utf-8").replace("\\\n", " ")
        self.instructions = [
            line.split(None, 1) for line in text.splitlines() if line[:1].isupper()
        ]

    def words(self, name: str) -> list[str]:
        """The words of the last instruction with this name, which needs no shell."""
        *_, last = (rest for instruction, rest in self.instructions if instruction == name)
        return json.loads(last[last.index("[") :])

    def test_the_user_is_a_number_and_not_root(self) -> None:
        *_, user = (rest for name, rest in self.instructions if name == "USER")
        self.assertRegex(user, r"^[1-9]\d+:[1-9]\d+$")

    def test_the_extras_are_those_of_the_package(self) -> None:
        setup = ConfigParser(interpolation=None)
        setup.read(ROOT / "setup.cfg")
        [extras] = re.findall(r"'\.\[([\w,]+)\]'", (ROOT / "Containerfile").read_text())
        wanted = {"kafka", "redis", "jwt"}
        self.assertEqual(set(extras.split(",")), wanted)
        self.assertLessEqual(wanted, set(setup["options.extras_require"]))

    def test_what_is_copied_is_enough_to_build(self) -> None:
        lines = (ROOT / ".containerignore").read_text().split()
        self.assertEqual(lines[0], "*")
        copied = Path(self.mktemp()).absolute()
        copied.mkdir()
        hidden = [line.removeprefix("**/") for line in lines if line.startswith("**/")]

        def ignore(_: str, names: list[str]) -> set[str]:
            return {name for name in names for each in hidden if fnmatch.fnmatch(name, each)}

        for name in (line[1:] for line in lines if line.startswith("!")):
            source = ROOT / name
            # In continuous integration the package is installed, and its source is not there.
            if name in ("topicsvc", "twisted") and not source.exists():
                continue
            if source.is_dir():
                shutil.copytree(source, copied / name, ignore=ignore)
            else:
                (copied / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(source, copied / name)
        project = tomllib.loads((copied / "pyproject.toml").read_text())
        self.assertIn("build-backend", project["build-system"])
        setup = ConfigParser(interpolation=None)
        setup.read(copied / "setup.cfg")
        for key in ("long_description", "license_files"):
            name = setup["metadata"][key].removeprefix("file: ")
            self.assertTrue((copied / name).exists(), name)

    def test_the_commands_of_the_image_run(self) -> None:
        entry, arguments = self.words("ENTRYPOINT"), self.words("CMD")
        self.assertEqual(entry, ["/opt/topicsvc/bin/topicsvc"])
        directory = Path(self.mktemp()).absolute()
        directory.mkdir()
        file = directory / "topicsvc.toml"
        file.write_text(self.compose_settings(directory))
        command = [word.replace("/etc/topicsvc/topicsvc.toml", str(file)) for word in arguments]
        service = Process([sys.executable, "-m", "topicsvc", *command])
        self.addCleanup(service.stop)
        service.wait_for(r"topicsvc \S+ serves 2 ports\n")
        admin = re.findall(r" on (\d+)\n", service.text)[-1]
        check = self.words("HEALTHCHECK")
        self.assertEqual(check[0], "/opt/topicsvc/bin/python")
        healthy = [word.replace("9090", admin) for word in check[1:]]
        done = run(sys.executable, *healthy, env=environment())
        self.assertEqual(done.returncode, 0, done.stdout)
        service.stop()
        self.assertNotEqual(run(sys.executable, *healthy, env=environment()).returncode, 0)

    def compose_settings(self, directory: Path) -> str:
        """The settings of the compose file, with other paths and ports, and without Redis."""
        text = (COMPOSE / "topicsvc.toml").read_text("utf-8")
        key = directory / "token.key"
        write_key(key, make_key())
        settings = config.load(text.replace("/etc/topicsvc/token.key", str(key)))
        self.assertIsInstance(settings.broker, RedisSettings)
        before, _, after = text.partition("[broker]")
        text = f"{before}{after[after.index('[limits]') :]}"
        text = text.replace("/etc/topicsvc/token.key", str(key))
        return text.replace('"tcp:8080"', '"tcp:0:interface=127.0.0.1"').replace("9090", "0")

"""The commands of README.md make a service, in the order in which they are written."""

from __future__ import annotations

import re
import shutil
import stat
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.integration.support.requirements import need
from tests.support.processes import TOPICSVC, Process, free_port

ROOT = Path(__file__).parent.parent.parent


class ReadmeTests(SynchronousTestCase):
    def setUp(self) -> None:
        need(shutil.which("openssl"), "openssl (tests/integration/install.sh)")
        self.directory = Path(self.mktemp()).absolute()
        self.directory.mkdir()
        command = " ".join(f"'{word}'" for word in TOPICSVC)
        # The function is exec's target too, so that a signal reaches the program itself.
        self.prelude = f'topicsvc() {{ {command} "$@"; }}\n'
        text = (ROOT / "README.md").read_text("utf-8").split("\n## Run it\n")[1]
        self.blocks = re.findall(r"```sh\n(.*?)```", text.split("\n## ")[0], re.DOTALL)
        self.port = free_port()

    def start(self, block: str, directory: Path) -> Process:
        """Run a block of commands; its last command replaces the shell."""
        text = block.replace("8443", str(self.port))
        *first, last = re.split(r"^(?=topicsvc )", text, flags=re.MULTILINE)
        words = " ".join(f"'{word}'" for word in TOPICSVC)
        script = self.prelude + "".join(first) + f"exec {words} {last.removeprefix('topicsvc ')}"
        process = Process(["bash", "-euc", script], cwd=directory)
        self.addCleanup(self.end, process)
        return process

    def end(self, process: Process) -> None:
        if process.child.poll() is None:
            process.child.kill()
        process.wait()

    def test_each_command_works_as_written(self) -> None:
        serve, receive, send = self.blocks
        service = self.start(serve, self.directory)
        service.wait_for(r"topicsvc \S+ serves 1 port\n")
        self.assertIn("topicsvc.toml: good\n", service.text)
        made = self.directory / "my-topics"
        for name in ("key.pem", "token.key"):
            self.assertEqual(stat.S_IMODE((made / name).stat().st_mode), 0o600, name)
        subscriber = self.start(receive, made)
        subscriber.wait_for("subscribed for 3[56][0-9][0-9] seconds")
        sender = self.start(send, made)
        self.assertEqual((sender.wait(), sender.text), (0, ""))
        subscriber.wait_for(r'\{"From":"https://cell1.localhost/","Body":\{"hello":"world"\}\}\n')

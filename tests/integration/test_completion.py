"""The completion scripts work in their shells, and the manual page is well formed."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.integration.support.requirements import need
from topicsvc.cli import completion
from topicsvc.cli.parser import make_parser

PAGE = Path(__file__).parents[2] / "docs" / "topicsvc.1"


class ShellTests(SynchronousTestCase):
    def run_shell(self, shell: str, *arguments: str) -> list[str]:
        need(shutil.which(shell), f"{shell} (tests/integration/install.sh)")
        done = subprocess.run(
            [shell, *arguments], check=True, capture_output=True, timeout=120, text=True
        )
        self.assertEqual(done.stderr, "")
        return done.stdout.split()

    def complete_in_bash(self, *words: str) -> list[str]:
        quoted = " ".join(f"'{word}'" for word in words)
        return self.run_shell(
            "bash",
            "-c",
            completion.bash(make_parser()).replace("compopt", ":")
            + f"\nCOMP_WORDS=({quoted}); COMP_CWORD={len(words) - 1}; _topicsvc"
            + "\nprintf '%s\\n' \"${COMPREPLY[@]}\"",
        )

    def test_bash_completes_commands_options_choices_and_files(self) -> None:
        file = Path(self.mktemp())
        file.write_text("")
        name = str(file)
        for words, expected in (
            (["topicsvc", "s"], ["serve", "subscribe", "send"]),
            (["topicsvc", "send", "--to"], ["--token", "--token-file"]),
            (["topicsvc", "completion", "f"], ["fish"]),
            (["topicsvc", "check", "--config", name[:-2]], [name]),
            (["topicsvc", "serve", "--config", name[:-2]], [name]),
            (["topicsvc", "token", "--subject", ""], []),
        ):
            with self.subTest(words=words):
                self.assertEqual(self.complete_in_bash(*words), expected)

    def test_fish_completes_commands_options_and_choices(self) -> None:
        script = completion.fish(make_parser())
        for line, expected in (
            ("topicsvc s", {"serve", "subscribe", "send"}),
            ("topicsvc send --to", {"--token", "--token-file"}),
            ("topicsvc completion f", {"fish"}),
        ):
            out = self.run_shell("fish", "-c", f"{script}\ncomplete -C '{line}' | cut -f1")
            self.assertEqual(set(out), expected)

    def test_zsh_reads_the_script(self) -> None:
        script = Path(self.mktemp())
        script.write_text(completion.zsh(make_parser()))
        self.run_shell("zsh", "-n", str(script))
        begin = "autoload -U compinit; compinit -D -u; "
        out = self.run_shell("zsh", "-f", "-c", f"{begin}source {script}; print $_comps[topicsvc]")
        self.assertEqual(out, ["_topicsvc"])

    def test_the_manual_page_passes_the_check_of_mandoc(self) -> None:
        need(shutil.which("mandoc"), "mandoc (tests/integration/install.sh)")
        done = subprocess.run(
            ["mandoc", "-T", "lint", "-W", "warning", str(PAGE)],
            check=False, capture_output=True, timeout=120, text=True,
        )  # fmt: skip
        self.assertEqual((done.returncode, done.stdout, done.stderr), (0, "", ""))

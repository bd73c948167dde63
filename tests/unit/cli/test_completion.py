"""The completion scripts and the manual page have all that the parser has."""

from __future__ import annotations

from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from topicsvc.cli import completion, manual
from topicsvc.cli.parser import SHELLS, make_parser

PAGE = Path(__file__).parents[3] / "docs" / "topicsvc.1"


class CompletionTests(SynchronousTestCase):
    """tests.integration.test_completion runs the scripts in their shells."""

    def setUp(self) -> None:
        self.parser = make_parser()

    def test_each_script_has_every_command_option_and_choice(self) -> None:
        for shell in SHELLS:
            script = getattr(completion, shell)(self.parser)
            for name, command in self.parser.commands.items():
                self.assertIn(name, script)
                for action in command.arguments:
                    for option in action.option_strings:
                        bare = option.lstrip("-")
                        self.assertIn(f" {bare} " if shell == "fish" else option, script)
                    for choice in action.choices or ():
                        self.assertIn(choice, script)

    def test_an_apostrophe_does_not_end_a_word(self) -> None:
        self.parser.commands["send"].add_argument("--x", help="the cell's name")
        self.assertIn(r"cell'\''s", completion.zsh(self.parser))
        self.assertIn(r"cell\'s", completion.fish(self.parser))


class ManualTests(SynchronousTestCase):
    def test_the_page_in_the_docs_is_that_of_the_parser(self) -> None:
        self.assertEqual(
            PAGE.read_text("utf-8"),
            manual.manual(make_parser()),
            "python -m topicsvc.cli.manual > docs/topicsvc.1",
        )

    def test_a_line_is_not_a_command_of_the_formatter(self) -> None:
        parser = make_parser()
        parser.commands["send"].add_argument("--x", help=r".Sh and \e")
        self.assertIn("\n\\&.Sh and \\ee\n", manual.manual(parser))

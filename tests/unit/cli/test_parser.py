"""The arguments of the commands."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from topicsvc.cli.parser import make_parser
from topicsvc.options import Options


class ParserTests(SynchronousTestCase):
    def parse(self, *arguments: str) -> dict[str, object]:
        return vars(make_parser().parse(arguments))

    def test_the_message_may_stand_behind_the_options(self) -> None:
        for arguments in (
            ("send", "URL", "--token-file", "F", "JSON"),
            ("send", "URL", "JSON", "--token-file", "F"),
            ("send", "--token-file", "F", "URL", "JSON"),
        ):
            options = self.parse(*arguments)
            self.assertEqual(
                (options["url"], str(options["token_file"]), options["json"]),
                ("URL", "F", "JSON"),
                arguments,
            )

    def test_a_message_may_begin_with_a_hyphen(self) -> None:
        for arguments, message in (
            (("-5",), "-5"),
            (("-",), "-"),
            (("--", "-1e5"), "-1e5"),
            ((), None),
        ):
            options = self.parse("send", "URL", "--token", "T", *arguments)
            self.assertEqual(options["json"], message)

    def test_rights_add_up(self) -> None:
        for arguments, rights in (
            (("--may", "receive", "--may", "send"), {"receive", "send"}),
            (("--may", "receive,send"), {"receive", "send"}),
            (("--may", "send", "--may", "send"), {"send"}),
        ):
            may = self.parse("token", "--key-file", "K", *arguments)["may"]
            self.assertEqual((set(may), len(may)), (rights, len(rights)))

    def test_serve_has_the_options_of_the_twistd_command(self) -> None:
        own = {
            name
            for each in make_parser().commands["serve"].arguments
            for name in each.option_strings
        }
        options = Options()
        long = {f"--{name.rstrip('=')}" for name in options.longOpt}
        short = {f"-{name}" for name in options.shortOpt.replace(":", "")}
        self.assertEqual(own - {"-h"}, (long | short) - {"--version", "-h"})

    def test_the_help_says_how_to_start_the_service(self) -> None:
        text = make_parser().format_help()
        for words in ("topicsvc serve --demo", "topicsvc serve --config FILE", "twistd topicsvc"):
            self.assertIn(words, text)

    def test_the_help_of_check_says_that_it_sends_no_requests(self) -> None:
        """Only ``doctor`` asks issuers for their description and their keys."""
        text = make_parser().commands["check"].format_help()
        self.assertIn("it reads files, and sends no requests", " ".join(text.split()))

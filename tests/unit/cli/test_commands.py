"""The ``topicsvc`` command: its output, and its errors for wrong arguments."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import pwd
import sys
from pathlib import Path

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

import topicsvc
from topicsvc.cli import check, client, token
from topicsvc.cli.main import main
from topicsvc.cli.terminal import CommandFailed
from topicsvc.process.instances import SharedFile
from topicsvc.topics import TopicAddress
from topicsvc.validators.local import LocalValidator, read_key

TOPIC = TopicAddress("cell1", "box1", ("col",), "name")


class CommandTestCase(SynchronousTestCase):
    def run_command(self, *arguments: str) -> tuple[int, str, str]:
        """Run a command; returns its exit code, standard output and standard error."""
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                code = main(arguments)
            except SystemExit as ended:
                code = ended.code
        return code, out.getvalue(), err.getvalue()

    def assert_refused(self, words: str, *arguments: str) -> None:
        """Assert one line on standard error, no standard output, and exit code 1."""
        code, out, err = self.run_command(*arguments)
        self.assertEqual((code, out, err.count("\n")), (1, "", 1), err)
        self.assertTrue(err.startswith("topicsvc"), err)
        self.assertIn(words, err)


class MainTests(CommandTestCase):
    def test_the_version(self) -> None:
        self.assertEqual(
            self.run_command("--version")[:2], (0, f"topicsvc {topicsvc.__version__}\n")
        )

    def test_help_names_every_command(self) -> None:
        code, out, _ = self.run_command("--help")
        self.assertEqual(code, 0)
        for command in ("token", "subscribe", "send", "check"):
            self.assertIn(command, out)

    def test_wrong_arguments(self) -> None:
        self.assert_refused("COMMAND")
        self.assert_refused("nonsense", "nonsense")
        self.assert_refused("--foo", "check", "--config", "x", "--foo")
        self.assert_refused("WS_URL", "subscribe")
        self.assert_refused("0", "subscribe", "ws://x/", "--count", "0")

    def test_closed_standard_input(self) -> None:
        self.patch(sys, "stdin", None)
        self.assert_refused(
            "standard input is closed", "send", "http://localhost/", "--token", "token"
        )


class TokenTests(CommandTestCase):
    def setUp(self) -> None:
        self.key_file = self.mktemp()

    def make(self, *more: str) -> tuple[int, str, str]:
        return self.run_command("token", "--key-file", self.key_file, *more)

    def test_it_prints_only_the_token(self) -> None:
        code, out, err = self.make("--new-key")
        self.assertEqual((code, out), (0, ""))
        self.assertRegex(
            err,
            rf"\A{self.key_file}: created with mode 0600 and owner \w+; "
            rf"if the service runs as another user: chown USER {self.key_file}\n\Z",
        )
        clock = Clock()
        self.patch(token.time, "time", lambda: 1000.5)
        code, out, err = self.make(
            "--topic", TOPIC.path, "--topic", "/cell2/*", "--may", "receive,send",
            "--subject", "https://cell1.unit1.example/", "--expires-in", "60",
        )  # fmt: skip
        self.assertEqual((code, err, out.count("\n"), len(out.split())), (0, "", 1, 1))
        clock.rightNow = 1000.0
        validator = LocalValidator(read_key(Path(self.key_file)), clock.seconds)
        grant = self.successResultOf(validator.validate(out.strip(), TOPIC))
        self.assertEqual(grant.subject, "https://cell1.unit1.example/")
        self.assertEqual((grant.expires_at, grant.may_receive, grant.may_send), (1060, True, True))
        other = TopicAddress("cell2", "b", ("c",), "t")
        self.successResultOf(validator.validate(out.strip(), other))

    def test_by_default_a_token_may_only_receive(self) -> None:
        _, out, _ = self.make("--new-key", "--topic", TOPIC.path)
        clock = Clock()
        validator = LocalValidator(read_key(Path(self.key_file)), clock.seconds)
        grant = self.successResultOf(validator.validate(out.strip(), TOPIC))
        self.assertEqual((grant.may_receive, grant.may_send), (True, False))
        other = validator.validate(out.strip(), TopicAddress("cell2", "b", ("c",), "t"))
        self.assertFalse(self.successResultOf(other).may_receive)

    def test_wrong_arguments(self) -> None:
        begin = ("token", "--key-file", self.key_file)
        self.assert_refused("--new-key creates one", *begin, "--topic", TOPIC.path)
        self.assert_refused("--topic is missing", *begin)
        self.assert_refused("not /{cell}", *begin, "--topic", "cell1")
        self.assert_refused("receive; send", *begin, "--topic", TOPIC.path, "--may", "read")
        self.assert_refused("'-5'", *begin, "--topic", TOPIC.path, "--expires-in=-5")
        self.make("--new-key")
        self.assert_refused("exists", *begin, "--new-key")
        Path(self.key_file).write_text("short")
        self.assert_refused("not a key", *begin, "--topic", TOPIC.path)
        self.assert_refused("nowhere", "token", "--key-file", "nowhere/key", "--new-key")
        Path(self.key_file).write_text("")
        self.assert_refused("the file is empty", *begin, "--topic", TOPIC.path)
        self.assert_refused("exists and is empty: remove it first", *begin, "--new-key")

    def test_rights_that_are_given_twice_add_up(self) -> None:
        self.make("--new-key")
        _, out, _ = self.make("--topic", TOPIC.path, "--may", "receive", "--may", "send")
        validator = LocalValidator(read_key(Path(self.key_file)), Clock().seconds)
        grant = self.successResultOf(validator.validate(out.strip(), TOPIC))
        self.assertEqual((grant.may_receive, grant.may_send), (True, True))

    def test_nothing_is_left_of_a_new_key_if_the_disk_is_full(self) -> None:
        for function in ("fdopen", "fsync"):
            with self.subTest(function=function):

                def fail(*_: object) -> None:
                    raise OSError(errno.ENOSPC, "No space left on device")

                self.patch(os, function, fail)
                self.assert_refused(
                    f"{self.key_file}: No space left on device",
                    "token", "--key-file", self.key_file, "--new-key",
                )  # fmt: skip
                self.assertFalse(Path(self.key_file).exists())


class ClientTests(CommandTestCase):
    def test_without_a_token(self) -> None:
        self.patch(client.os, "environ", {})
        for command in ("subscribe", "send"):
            self.assert_refused("no token: give --token", command, "http://127.0.0.1:1/")
            for empty in ("", " "):
                self.assert_refused(
                    "option --token is empty", command, "http://127.0.0.1:1/", "--token", empty
                )
        self.assert_refused("option --token is empty", "doctor", "--config", "c", "--token", "")
        self.assert_refused("nowhere: No such", "send", "http://x/", "--token-file", "nowhere")
        self.assert_refused("not allowed", "send", "x", "--token", "x", "--token-file", "x")

    def test_wrong_urls(self) -> None:
        for url in ("nonsense", "", "http://127.0.0.1/", "ws://", "ws://x:y/", "ws://two words/",
                    "ws://x:99999/", "ws://x/#y"):  # fmt: skip
            self.assert_refused(url, "subscribe", url, "--token", "x")
        for url in ("nonsense", "", "ws://127.0.0.1/", "http://", "http://x:y/", "http://[::1"):
            self.assert_refused(url, "send", url, "1", "--token", "x")

    def test_urls_with_names_in_any_script(self) -> None:
        for text, encoded in (
            ("ws://localhost:1/c\u00f6l.topic.n%C3%A4me?q=%26", "c%C3%B6l.topic.n%C3%A4me?q=%26"),
            ("WSS://b\u00fcro.example/a/%2F", "wss://xn--bro-hoa.example/a/%2F"),
            ("ws://[::1]:8080/\u00e9", "ws://[::1]:8080/%C3%A9"),
        ):
            self.assertTrue(client.parse_url(text, "ws", "wss").to_text().endswith(encoded), text)

    def test_the_token_file_is_stripped(self) -> None:
        file = Path(self.mktemp())
        file.write_text(" a-token\n")
        options = type("Options", (), {"token": None, "token_file": file})
        self.assertEqual(client.find_token(options), "a-token")

    def test_a_token_that_no_header_can_carry_is_refused_before_a_connection(self) -> None:
        """Without its text: it may be a token with something else behind it."""
        for text in ("secret two", "secret\n2", "s\u20accret"):
            options = type("Options", (), {"token": text, "token_file": None})
            with self.assertRaises(CommandFailed) as caught:
                client.find_token(options)
            line = "the token has characters that no token has: blanks, or not ASCII"
            self.assertEqual(caught.exception.lines, (line,))


class UserTests(CommandTestCase):
    """``check --user NAME`` warns about files that the user of the service cannot read."""

    def setUp(self) -> None:
        self.directory = Path(self.mktemp()).absolute()
        self.directory.mkdir()
        self.file = self.directory / "topicsvc.toml"
        key_file = self.directory / "key"
        self.run_command("token", "--key-file", str(key_file), "--new-key")
        self.file.write_text(
            'listen = ["tcp:8080"]\nunit_url = "https://unit1.example/"\n'
            f'[validator]\nkind = "local"\nkey_file = "{key_file}"\n'
        )

    def check(self, *more: str) -> tuple[int, str, str]:
        return self.run_command("check", "--config", str(self.file), *more)

    def test_an_unknown_user(self) -> None:
        self.assert_refused(
            "--user no-such-user: there is no such user",
            "check", "--config", str(self.file), "--user", "no-such-user",
        )  # fmt: skip

    def test_the_own_user_can_read_what_was_read(self) -> None:
        name = pwd.getpwuid(os.geteuid()).pw_name
        self.assertEqual(self.check("--user", name), (0, f"{self.file}: good\n", ""))

    def test_only_root_can_check_for_another_user(self) -> None:
        self.patch(os, "geteuid", lambda: 12345)
        self.assert_refused(
            "--user nobody: only root can check for another user",
            "check", "--config", str(self.file), "--user", "nobody",
        )  # fmt: skip

    def test_problems_of_the_user_are_warnings(self) -> None:
        problem = f"{self.file}: validator.key_file: key: Permission denied"
        self.patch(check, "_problems_of", lambda *_: [problem])
        self.assertEqual(
            self.check("--user", "nobody"),
            (
                0,
                f"{self.file}: good\n",
                f"topicsvc check: warning: as user nobody: {problem}\n",
            ),
        )


class CheckTests(CommandTestCase):
    def test_a_valid_file(self) -> None:
        key_file, file = self.mktemp(), Path(self.mktemp())
        self.run_command("token", "--key-file", key_file, "--new-key")
        file.write_text(
            f"""
            listen = ["tcp:8080:interface=127.0.0.1"]
            unit_url = "https://unit1.example/"
            [validator]
            kind = "local"
            key_file = "{key_file}"
            """
        )
        self.assertEqual(
            self.run_command("check", "--config", str(file)), (0, f"{file}: good\n", "")
        )
        locks = [SharedFile(), SharedFile()]
        for number, lock in enumerate(locks):
            lock.join(file)
            self.addCleanup(lock.leave)
            code, out, err = self.run_command("check", "--config", str(file))
            self.assertEqual((code, out), (0, f"{file}: good\n"))
            self.assertEqual("2 processes use" in err, number == 1)
        self.assertTrue(err.startswith(f"topicsvc check: warning: {file}: broker.kind = "), err)
        file.write_text(file.read_text().replace("tcp:8080", "ssl:8080:privateKey=nowhere"))
        self.assert_refused("listen: ", "check", "--config", str(file))

    def test_all_problems_of_an_invalid_file(self) -> None:
        file = Path(self.mktemp())
        file.write_text("nonsense = 1")
        code, out, err = self.run_command("check", "--config", str(file))
        self.assertEqual((code, out, err.count("\n")), (1, "", 4))
        for line in err.splitlines():
            self.assertTrue(line.startswith(f"topicsvc check: {file}: "), line)
        file.write_text(
            """
            listen = ["tcp:99999", "nonsense:1", "ssl:443:privateKey=nowhere/key.pem",
                "tls:nowhere:port=443", "tcp:8080", "systemd:domain=INET:index=0"]
            admin = "tcp:none"
            unit_url = "ftp://x/"
            [session]
            ping_interval = "often"
            [validator]
            kind = "personium"
            username = "u"
            password_file = "nowhere/password"
            [broker]
            kind = "activemq"
            endpoint = "udp:x"
            """
        )
        _, _, err = self.run_command("check", "--config", str(file))
        for words in (
            "listen: 'tcp:99999': 99999 is not a port",
            "listen: 'nonsense:1': Unknown endpoint type",
            "nowhere/key.pem: No such file",
            "listen: 'tls:nowhere:port=443': nowhere: No such file or directory",
            "admin: 'tcp:none': ",
            "unit_url: not an http",
            "session.ping_interval: must be a number from 1 to 86400, is text: ",
            "validator.password_file: nowhere/password: No such file",
            "broker.endpoint: 'udp:x' is not a tcp: or tls: endpoint",
        ):
            self.assertIn(words, err)
        self.assertEqual(err.count("\n"), 9, err)
        self.assert_refused("nowhere.toml: No such file", "check", "--config", "nowhere.toml")

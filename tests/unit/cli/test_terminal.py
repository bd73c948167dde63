"""Output of all commands: to terminals, pipes, full disks and closed descriptors."""

from __future__ import annotations

import errno
import io
import os
import signal
import sys

from twisted.trial.unittest import SynchronousTestCase

from topicsvc.cli import terminal
from topicsvc.cli.main import main
from topicsvc.cli.terminal import CommandFailed, exit_on_interrupt, print_error, print_line


class Stream(io.TextIOWrapper):
    """A stream of bytes, as a terminal or as a pipe."""

    def __init__(self, encoding: str = "utf-8", is_terminal: bool = False) -> None:
        super().__init__(io.BytesIO(), encoding=encoding, newline="")
        self.is_terminal = is_terminal

    def isatty(self) -> bool:
        return self.is_terminal

    def text(self) -> str:
        return self.buffer.getvalue().decode(self.encoding)


class Failing(Stream):
    """A stream whose every write fails."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    def flush(self) -> None:
        raise OSError(self.number, os.strerror(self.number))


class PrintLineTests(SynchronousTestCase):
    def print(self, out: Stream, line: str, is_raw: bool = False) -> str:
        self.patch(sys, "stdout", out)
        print_line(line, is_raw)
        return out.text()

    def test_text_of_the_network_does_not_drive_a_terminal(self) -> None:
        out = self.print(Stream(is_terminal=True), "\x9b2J \u202e \u2028 \x7f \u00fc")
        self.assertEqual(out, "\\u009b2J \\u202e \\u2028 \\u007f \u00fc\n")

    def test_a_pipe_gets_the_data_as_it_is(self) -> None:
        self.assertEqual(self.print(Stream(), "\x9b2J\u2028"), "\x9b2J\u2028\n")

    def test_raw_data_goes_to_a_terminal_as_it_is(self) -> None:
        out = self.print(Stream(is_terminal=True), "\x9b2J", is_raw=True)
        self.assertEqual(out, "\x9b2J\n")

    def test_a_character_that_a_terminal_lacks_is_escaped(self) -> None:
        out = self.print(Stream("ascii", is_terminal=True), "\u00fc\u30c6")
        self.assertEqual(out, "\\xfc\\u30c6\n")

    def failure(self, out: Stream | None, line: str = "x") -> str:
        self.patch(sys, "stdout", out)
        [text] = self.assertRaises(CommandFailed, print_line, line).lines
        return str(text)

    def test_an_encoding_without_the_character_is_named(self) -> None:
        self.assertEqual(
            self.failure(Stream("ascii"), "\u00fc"),
            "standard output: its encoding, ascii, has no U+00FC; set PYTHONIOENCODING=utf-8",
        )

    def test_a_full_disk_and_a_closed_pipe_are_named(self) -> None:
        discarded: list[object] = []
        self.patch(terminal, "_discard_output", discarded.append)
        for number, words in (
            (errno.ENOSPC, "No space left on device"),
            (errno.EPIPE, "Broken pipe"),
            (errno.EFBIG, "File too large"),
        ):
            self.assertEqual(self.failure(Failing(number)), f"standard output: {words}")
        self.assertEqual(len(discarded), 3)

    def test_closed_standard_output_is_named(self) -> None:
        self.assertEqual(self.failure(None), "standard output is closed")


class PrintErrorTests(SynchronousTestCase):
    def test_an_error_is_one_line_for_people(self) -> None:
        err = Stream()
        self.patch(sys, "stderr", err)
        print_error("404 a\nb\x9b\u202e")
        self.assertEqual(err.text(), "404 a\\u000ab\\u009b\\u202e\n")

    def test_nothing_goes_to_standard_output_if_standard_error_is_closed(self) -> None:
        out = Stream()
        self.patch(sys, "stdout", out)
        self.patch(sys, "stderr", None)
        print_error("x")
        self.assertEqual(self.exit_code("nonsense"), 1)
        self.assertEqual(out.text(), "")

    def test_the_exit_code_stays_if_standard_error_is_full(self) -> None:
        discarded: list[object] = []
        self.patch(terminal, "_discard_output", discarded.append)
        self.patch(sys, "stderr", Failing(errno.ENOSPC))
        self.assertEqual(self.exit_code("nonsense"), 1)
        self.assertEqual(len(discarded), 1)

    def exit_code(self, *arguments: str) -> object:
        return self.assertRaises(SystemExit, main, arguments).code


class CommandOutputTests(SynchronousTestCase):
    """Every command reports output that cannot be written."""

    def test_output_that_cannot_be_written_is_one_line_and_exit_code_1(self) -> None:
        self.patch(terminal, "_discard_output", lambda _: None)
        for arguments in (
            ["--help"],
            ["--version"],
            ["token", "--help"],
            ["completion", "bash"],
        ):
            err = Stream()
            self.patch(sys, "stderr", err)
            self.patch(sys, "stdout", Failing(errno.ENOSPC))
            self.assertEqual(main(arguments), 1, arguments)
            self.assertRegex(
                err.text(), r"\Atopicsvc[a-z ]*: standard output: No space left on device\n\Z"
            )


class InterruptTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.addCleanup(signal.signal, signal.SIGINT, signal.getsignal(signal.SIGINT))

    def test_an_interrupt_ends_the_process_at_once(self) -> None:
        codes: list[int] = []
        self.patch(os, "_exit", codes.append)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        exit_on_interrupt()
        os.kill(os.getpid(), signal.SIGINT)
        self.assertEqual(codes, [130])

    def test_an_ignored_interrupt_stays_ignored(self) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        exit_on_interrupt()
        self.assertIs(signal.getsignal(signal.SIGINT), signal.SIG_IGN)

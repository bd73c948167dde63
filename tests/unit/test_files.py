"""Files of every kind are read or refused, without waiting."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from topicsvc import files
from topicsvc.files import MAX_SIZE, explain_file_error, read_file, shown


class ReadFileTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.directory = Path(self.mktemp()).absolute()
        self.directory.mkdir()
        self.path = self.directory / "file"

    def problem(self, path: Path) -> str:
        """Read `path`, which fails; return the explanation."""
        error = self.assertRaises((OSError, ValueError), read_file, path)
        text = explain_file_error(path, error)
        self.assertTrue(text.startswith(f"{path}: "), text)
        self.assertNotIn("\n", text)
        return text.removeprefix(f"{path}: ")

    def test_a_file_and_a_link_to_it(self) -> None:
        self.path.write_bytes(b"x" * MAX_SIZE)
        link = self.directory / "link"
        link.symlink_to(self.path)
        for each in (self.path, link):
            self.assertEqual(len(read_file(each)), MAX_SIZE)

    def test_a_file_that_is_too_big(self) -> None:
        self.path.write_bytes(b"x" * (MAX_SIZE + 1))
        self.assertEqual(self.problem(self.path), "it has more than 1048576 bytes")

    def test_a_sparse_file_of_a_terabyte_is_not_read_to_its_end(self) -> None:
        with self.path.open("wb") as file:
            file.truncate(2**40)
        self.assertEqual(self.problem(self.path), "it has more than 1048576 bytes")

    def test_what_is_no_regular_file(self) -> None:
        """A FIFO without a writer would block, a device would have no end."""
        fifo = self.directory / "fifo"
        os.mkfifo(fifo)
        with socket.socket(socket.AF_UNIX) as listening:
            # A path of a socket is short.
            name = os.path.relpath(self.directory / "s")
            listening.bind(name)
            for path, kind in (
                (fifo, "a FIFO"),
                (self.directory, "a directory"),
                (self.directory / "s", "a socket"),
                (Path("/dev/zero"), "a device"),
                (Path("/dev/tty"), "a device"),
            ):
                self.assertEqual(self.problem(path), f"it is {kind}, not a regular file")

    def test_a_fifo_that_takes_the_place_of_a_file(self) -> None:
        """The kind is checked again after the file was opened."""
        self.path.write_bytes(b"x")
        fifo = self.directory / "fifo"
        os.mkfifo(fifo)
        before = os.stat(self.path)
        self.patch(files.os, "stat", lambda _: before)
        self.assertEqual(self.problem(fifo), "it is a FIFO, not a regular file")

    def test_links_that_lead_nowhere(self) -> None:
        self.path.symlink_to("away")
        self.assertEqual(
            self.problem(self.path),
            "No such file or directory: it is a link to away, which does not exist",
        )
        self.path.unlink()
        self.path.symlink_to(self.path)
        self.assertIn("it is a link to itself", self.problem(self.path))

    def test_a_missing_file(self) -> None:
        self.assertEqual(self.problem(self.path), "No such file or directory")
        self.path.write_bytes(b"")
        self.assertEqual(self.problem(self.path / "x"), "Not a directory")

    def test_a_file_that_this_user_may_not_read(self) -> None:
        self.path.write_bytes(b"x")

        def refuse(*_: Any) -> int:
            raise PermissionError(13, "Permission denied", str(self.path))

        self.patch(files.os, "open", refuse)
        self.assertEqual(
            self.problem(self.path), "Permission denied: let the user of the service read it"
        )

    def test_a_file_that_changes_while_it_is_read(self) -> None:
        self.path.write_bytes(b"old")
        read = os.read

        def write_more(descriptor: int, size: int) -> bytes:
            data = read(descriptor, size)
            with self.path.open("ab") as file:
                file.write(b"new" if data == b"old" else b"")
            return data

        self.patch(files.os, "read", write_more)
        self.assertIn("it changed while it was read", self.problem(self.path))

    def test_the_descriptor_is_closed(self) -> None:
        self.path.write_bytes(b"x")
        os.mkfifo(self.directory / "fifo")
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(10):
            read_file(self.path)
            self.assertRaises(ValueError, read_file, self.directory / "fifo")
        self.assertEqual(len(os.listdir("/proc/self/fd")), before)

    def test_names_are_shown_on_one_line(self) -> None:
        for name, expected in (
            ("/etc/ssl/a.pem", "/etc/ssl/a.pem"),
            ("/\u00e4", "/\u00e4"),
            ("/a\nb\x1b", r"/a\u000ab\u001b"),
            (os.fsdecode(b"/\xff"), r"/\udcff"),
        ):
            self.assertEqual(shown(name), expected)

"""The command line of a worker."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from topicsvc.workers.command import IGNORED, WorkerArguments


class WorkerArgumentsTests(SynchronousTestCase):
    def test_what_the_parent_writes_is_what_the_worker_reads(self) -> None:
        for arguments in (
            WorkerArguments(2, 3, 2, Path("/etc/a b"), "", "relay", ("--config=x", "--listen=y:1")),
            WorkerArguments(64, 64, 1, Path(), "twisted.internet.asyncioreactor", "json_lines", ()),
        ):
            program, *rest = arguments.command()
            self.assertEqual(program, sys.executable)
            self.assertEqual(WorkerArguments.parse(rest[3:]), arguments)

    def test_the_list_of_processes_shows_the_number_and_no_module_of_the_directory(self) -> None:
        command = WorkerArguments(2, 3, 1, Path("/"), "", "relay", ()).command()
        self.assertIn("worker-2-of-3", command)
        self.assertEqual(command[1], "-P")

    def test_signals_to_the_whole_group_are_ignored_before_the_first_import(self) -> None:
        """The imports take a second, in which SIGUSR2, for example, would end the worker."""
        for number in IGNORED:
            self.addCleanup(signal.signal, number, signal.getsignal(number))
        self.assertEqual(
            set(IGNORED), {signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2}
        )
        command = WorkerArguments(2, 3, 1, Path("/"), "", "relay", ()).command()
        first, _, rest = command[3].partition("; from ")
        exec(first, {})
        self.assertEqual({signal.getsignal(each) for each in IGNORED}, {signal.SIG_IGN})
        self.assertEqual(rest, "topicsvc.worker_process import main; main()")

    def test_the_sockets_follow_one_another(self) -> None:
        arguments = WorkerArguments(1, 2, 3, Path("/"), "", "relay", ())
        self.assertEqual(list(arguments.sockets), [5, 6, 7])

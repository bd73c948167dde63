"""``topicsvc doctor`` compares the number of workers with that of processors."""

from __future__ import annotations

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from topicsvc.cli.doctor.checks import Checks
from topicsvc.cli.doctor.report import CheckResult
from topicsvc.settings import Config, LimitSettings, LocalSettings
from topicsvc.topics import Unit


class WorkersTests(SynchronousTestCase):
    def results(self, workers: int, processors: int = 4, connections: int = 0) -> list[CheckResult]:
        results: list[CheckResult] = []
        settings = Config(
            ("tcp:0",),
            Unit("https://unit1.example/"),
            LocalSettings(b"key"),
            limits=LimitSettings(connections=connections),
            workers=workers,
        )
        checks = Checks(settings, Clock(), results.append)
        checks.workers(lambda: processors)
        checks._files()
        return results

    def test_one_worker_is_not_mentioned(self) -> None:
        self.assertEqual([each.subject for each in self.results(1)], ["files"])

    def test_at_most_one_for_each_processor_is_good(self) -> None:
        self.assertEqual(
            self.results(4)[0], CheckResult("ok", "workers", "4 workers for 4 processors")
        )

    def test_more_workers_than_processors_are_a_warning(self) -> None:
        [result, _] = self.results(2, 1)
        self.assertEqual((result.level, result.subject), ("warn", "workers"))
        self.assertIn("2 workers for 1 processor: ", result.text)
        self.assertIn('workers = "auto"', result.text)

    def test_a_share_of_few_connections_is_a_warning(self) -> None:
        """The kernel distributes clients by chance, so one worker may be full before the others."""
        [_, files, share] = self.results(64, 64, connections=10)
        self.assertTrue(files.text.endswith(": enough for 1 client"), files.text)
        self.assertEqual((share.level, share.subject), ("warn", "workers"))
        self.assertTrue(
            share.text.startswith("limits.connections = 10 is 1 for each of 64 workers: "), share
        )
        self.assertEqual(len(self.results(4, connections=40)), 2)
        self.assertEqual(len(self.results(1, connections=1)), 1)

    def test_each_worker_needs_files_for_its_share_of_the_connections(self) -> None:
        [_, result] = self.results(4, connections=4_000_000)
        self.assertEqual(result.level, "FAIL")
        self.assertIn("open files here for each worker", result.text)
        self.assertIn("needs 1000256", result.text)

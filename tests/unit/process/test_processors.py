"""The processors that a process may use."""

from __future__ import annotations

import os
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from topicsvc.process.processors import usable_processors


class ProcessorTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.patch(os, "sched_getaffinity", lambda _: set(range(8)))
        self.root = Path(self.mktemp()) / "fs"
        self.service = self.root / "system.slice/topicsvc.service"
        self.service.mkdir(parents=True)
        self.cgroup = self.root / "cgroup"
        self.cgroup.write_text("0::/system.slice/topicsvc.service\n")

    def count(self, **quotas: str) -> int:
        for name, text in quotas.items():
            directory = {"service": self.service, "slice": self.service.parent, "root": self.root}
            (directory[name] / "cpu.max").write_text(text)
        return usable_processors(self.cgroup, self.root)

    def test_the_affinity_limits_them(self) -> None:
        self.assertEqual(self.count(service="max 100000\n"), 8)
        self.patch(os, "sched_getaffinity", lambda _: {5})
        self.assertEqual(self.count(), 1)

    def test_the_quota_of_the_control_group_limits_them_rounded_up(self) -> None:
        self.assertEqual(self.count(service="200000 100000\n"), 2)
        self.assertEqual(self.count(service="250000 100000\n"), 3)
        self.assertEqual(self.count(service="1000 100000\n"), 1)

    def test_the_quota_of_a_group_above_limits_them_too(self) -> None:
        self.assertEqual(self.count(service="max 100000\n", slice="400000 100000\n"), 4)
        self.assertEqual(self.count(root="300000 100000\n"), 3)

    def test_a_quota_above_the_affinity_changes_nothing(self) -> None:
        self.assertEqual(self.count(service="6400000 100000\n"), 8)

    def test_without_a_control_group_only_the_affinity_counts(self) -> None:
        self.assertEqual(usable_processors(Path("/nonexistent"), self.root), 8)
        self.assertEqual(self.count(service="nonsense"), 8)
        self.assertEqual(self.count(service="1 0"), 8)

    def test_a_system_without_affinities_has_all_its_processors(self) -> None:
        self.patch(os, "cpu_count", lambda: 12)
        affinity = os.sched_getaffinity
        del os.sched_getaffinity
        self.addCleanup(setattr, os, "sched_getaffinity", affinity)
        self.assertEqual(self.count(service="100000 100000"), 12)

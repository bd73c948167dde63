"""Signs of other processes of the same service."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from types import SimpleNamespace

from twisted.trial.unittest import SynchronousTestCase

from topicsvc.process.instances import (
    SharedFile,
    count_locks,
    enabled_instances,
    running_instances,
    shares_port,
)


class FileTestCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.directory = Path(self.mktemp()).absolute()
        self.directory.mkdir()
        self.config = self.write("topicsvc.toml", "")

    def write(self, name: str, text: str) -> Path:
        path = self.directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path


class SharedFileTests(FileTestCase):
    """Locks of one process stand for those of several: each has its own open file."""

    def shared(self) -> SharedFile:
        shared = SharedFile()
        self.addCleanup(shared.leave)
        return shared

    def test_the_second_process_notices_the_first(self) -> None:
        first, second = self.shared(), self.shared()
        self.assertFalse(first.join(self.config))
        self.assertTrue(second.join(self.config))
        self.assertTrue(self.shared().join(self.config))

    def test_a_process_that_ends_is_forgotten(self) -> None:
        first, second = self.shared(), self.shared()
        first.join(self.config)
        first.leave()
        first.leave()
        self.assertFalse(second.join(self.config))

    def test_a_process_may_join_again(self) -> None:
        first = self.shared()
        self.assertFalse(first.join(self.config))
        self.assertFalse(first.join(self.config))
        replacement = self.write("new", "")
        replacement.rename(self.config)
        self.assertFalse(first.join(self.config))
        self.assertTrue(self.shared().join(self.config))

    def test_a_missing_file_is_an_error(self) -> None:
        shared = self.shared()
        self.assertRaises(OSError, shared.join, self.directory / "missing")
        shared.leave()

    def test_no_descriptor_is_left_open(self) -> None:
        before = len(os.listdir("/proc/self/fd"))
        shared = SharedFile()
        for _ in range(5):
            shared.join(self.config)
        shared.leave()
        self.assertEqual(len(os.listdir("/proc/self/fd")), before)


class CountLocksTests(FileTestCase):
    def test_it_counts_the_processes_that_use_a_file(self) -> None:
        other = self.write("other.toml", "")
        for path, count in ((self.config, 2), (other, 1)):
            for _ in range(count):
                shared = SharedFile()
                shared.join(path)
                self.addCleanup(shared.leave)
        self.assertEqual(count_locks(self.config), 2)
        self.assertEqual(count_locks(other), 1)

    def test_locks_of_another_kind_do_not_count(self) -> None:
        inode = self.config.stat().st_ino
        locks = self.write(
            "locks",
            f"1: FLOCK  ADVISORY  WRITE 8 fe:00:{inode} 0 EOF\n"
            f"2: POSIX  ADVISORY  READ 8 fe:00:{inode} 0 EOF\n"
            f"3: FLOCK  ADVISORY  READ 8 fe:00:1{inode} 0 EOF\n"
            f"4: -> FLOCK  ADVISORY  READ 8 fe:00:{inode} 0 EOF\n"
            f"5: FLOCK  ADVISORY  READ 8 fe:00:{inode} 0 EOF\n",
        )
        self.assertEqual(count_locks(self.config, locks), 1)

    def test_without_a_list_of_locks_nothing_is_known(self) -> None:
        self.assertEqual(count_locks(self.config, self.directory / "missing"), 0)
        self.assertEqual(count_locks(self.directory / "missing"), 0)


class RunningInstancesTests(FileTestCase):
    SLICE = "/system.slice/system-topicsvc.slice"

    def running(self, group: str, *others: str) -> tuple[str, int]:
        for name in others:
            (self.directory / f"root{self.SLICE}" / name).mkdir(parents=True)
        cgroup = self.write("cgroup", f"4:memory:/x\n0::{group}\n")
        return running_instances(cgroup, self.directory / "root")

    def test_the_active_instances_of_a_template_are_counted(self) -> None:
        found = self.running(
            f"{self.SLICE}/topicsvc@1.service",
            *("topicsvc@1.service", "topicsvc@2.service", "other@1.service", "topicsvc.service"),
        )
        self.assertEqual(found, ("topicsvc@.service", 2))

    def test_another_service_is_no_instance(self) -> None:
        for group in ("/", "/system.slice/topicsvc.service", "/user.slice/user@1000/x.scope"):
            self.assertEqual(self.running(group), ("", 0))
        self.assertEqual(running_instances(self.directory / "missing"), ("", 0))


class EnabledInstancesTests(FileTestCase):
    def enabled(self, command: str, *names: str) -> tuple[str, int]:
        self.write("units/topicsvc@.service", f"[Service]\nExecStart=twistd topicsvc {command}\n")
        for name in names:
            self.write(f"units/multi-user.target.wants/{name}", "")
        missing = self.directory / "missing"
        return enabled_instances(self.config, [missing, self.directory / "units"])

    def test_several_instances_with_the_same_file(self) -> None:
        found = self.enabled(
            f"--config {self.config} --admin tcp:909%i", "topicsvc@1.service", "topicsvc@2.service"
        )
        self.assertEqual(found, ("topicsvc@.service", 2))

    def test_several_instances_with_a_file_each(self) -> None:
        self.config = self.write("2.toml", "")
        found = self.enabled(
            f"--config={self.directory}/%i.toml", "topicsvc@1.service", "topicsvc@2.service"
        )
        self.assertEqual(found, ("topicsvc@.service", 2))

    def test_one_instance_and_another_file_are_no_sign(self) -> None:
        self.assertEqual(self.enabled(f"--config {self.config}", "topicsvc@1.service"), ("", 0))
        found = self.enabled("--config /etc/other.toml", "topicsvc@1.service", "topicsvc@2.service")
        self.assertEqual(found, ("", 0))


class SharesPortTests(SynchronousTestCase):
    def test_a_port_that_other_processes_may_open_too(self) -> None:
        for value in (0, 1):
            with socket.socket() as listening:
                listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, value)
                self.assertEqual(shares_port(SimpleNamespace(socket=listening)), bool(value))

    def test_ports_without_an_ip_socket(self) -> None:
        self.assertFalse(shares_port(None))
        with socket.socket(socket.AF_UNIX) as listening:
            self.assertFalse(shares_port(SimpleNamespace(socket=listening)))

"""A digest of settings is the same in all processes, and different for different settings."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from tests.unit.config.test_config import ConfigTestCase
from topicsvc.config.digest import digest
from topicsvc.settings import Login, RedisSettings

PROGRAM = """
import sys
from topicsvc import config
from topicsvc.config.digest import digest
print(digest(config.load(open(sys.argv[1]).read())))
"""

CHANGES = """
[limits]
allowed_origins = ["https://a.example", "https://b.example", "https://c.example"]
trusted_proxies = ["10.0.0.0/8"]
[session]
ping_interval = 7
"""


class DigestTests(ConfigTestCase):
    def test_processes_with_other_hash_seeds_have_the_same(self) -> None:
        file = Path(self.mktemp())
        top = 'topics = ["/cell1/*", "/cell2/box/*"]\nhosts = ["a.example", "b.example"]'
        file.write_text(self.text(CHANGES, top=top))
        digests = {
            subprocess.run(
                [sys.executable, "-c", PROGRAM, str(file)],
                env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONHASHSEED": seed},
                stdout=subprocess.PIPE,
                check=True,
                timeout=60,
            ).stdout
            for seed in ("1", "2")
        }
        self.assertEqual(len(digests), 1)

    def test_each_change_changes_it_passwords_included(self) -> None:
        settings = self.load()
        redis = RedisSettings("localhost", login=Login("", "one"))
        different = [
            settings,
            self.load(CHANGES),
            self.load(top='hosts = ["other.example"]'),
            self.load(top='topics = ["/cell1/*"]'),
            replace(settings, broker=redis),
            replace(settings, broker=replace(redis, login=Login("", "two"))),
            replace(settings, listen=("tcp:1", "tcp:2")),
        ]
        self.assertEqual(len({digest(each) for each in different}), len(different))
        self.assertEqual(digest(settings), digest(self.load()))

    def test_objects_of_libraries_are_left_out(self) -> None:
        one, other = (
            replace(self.load(), broker=RedisSettings("localhost", authorities=object()))
            for _ in range(2)
        )
        self.assertEqual(digest(one), digest(other))

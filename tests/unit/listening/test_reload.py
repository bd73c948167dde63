"""A reload with new certificates leaves nothing for the garbage collector."""

from __future__ import annotations

import gc
from pathlib import Path

from OpenSSL import SSL
from twisted.internet.testing import MemoryReactorClock
from twisted.trial.unittest import SynchronousTestCase

from tests.support.tls_files import self_signed
from topicsvc import config
from topicsvc.options import endpoint_problems
from topicsvc.service import TopicService
from topicsvc.settings import Config
from topicsvc.validators.local import make_key, write_key


def count_contexts() -> int:
    """The number of TLS contexts in the process."""
    return sum(isinstance(each, SSL.Context) for each in gc.get_objects())


class GarbageTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.directory = Path(self.mktemp()).absolute()
        (self.directory / "pems").mkdir(parents=True)
        self.renew()
        write_key(self.directory / "key", make_key())
        self.file = self.directory / "topicsvc.toml"
        pem = self.directory / "pems/a.pem"
        self.file.write_text(
            f"""
            listen = ["ssl:1:privateKey={pem}", "tls:{pem.parent}:port=2"]
            unit_url = "https://unit1.example/"
            [validator]
            kind = "local"
            key_file = "{self.directory / "key"}"
            """
        )

    def renew(self) -> None:
        content = self_signed("unit1.example") + self_signed("unit2.example")
        (self.directory / "pems/a.pem").write_bytes(content)

    def settings(self) -> Config:
        return config.read(self.file, extra_check=endpoint_problems)

    def test_200_reloads_leave_nothing_for_the_garbage_collector(self) -> None:
        """Full collections are rare, so garbage in cycles uses memory for hours."""
        service = TopicService(self.settings(), MemoryReactorClock())
        service.read_settings = self.settings
        service.reload()
        gc.collect()
        gc.disable()
        self.addCleanup(gc.enable)
        before = count_contexts()
        for _ in range(200):
            self.renew()
            service.reload()
        self.assertEqual(gc.collect(), 0, "objects in reference cycles")
        self.assertEqual(count_contexts(), before)

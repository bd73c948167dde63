"""Which Redis it is."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from topicsvc.brokers.redis.identity import Identity, parse_info
from topicsvc.brokers.redis.scripts import InvalidReply

INFO = (
    b"# Server\r\nrun_id:abc\r\n\r\n# Persistence\r\nloading:0\r\n# Replication\r\nrole:master\r\n"
)


class ParseTests(SynchronousTestCase):
    def test_process_and_replication_id(self) -> None:
        self.assertEqual(parse_info(INFO), Identity("abc"))
        self.assertEqual(parse_info(INFO + b"master_replid:def\r\n"), Identity("abc", "def"))

    def test_a_replica_and_a_server_that_loads_cannot_be_used(self) -> None:
        replica = parse_info(INFO.replace(b"role:master", b"role:slave"))
        self.assertEqual(replica.unusable, "it is a replica")
        loading = parse_info(INFO.replace(b"loading:0", b"loading:1"))
        self.assertEqual(loading.unusable, "it is loading its data")

    def test_other_values_are_refused(self) -> None:
        for value in (None, 1, [b"run_id:abc"], b"", b"run_id:", b"role:master"):
            self.assertRaises(InvalidReply, parse_info, value)


class EpochTests(SynchronousTestCase):
    def test_it_is_short_and_needs_no_escape(self) -> None:
        self.assertRegex(Identity("abc").epoch("name", 1), r"^[0-9a-f]{20}$")

    def test_it_differs_by_process_data_topic_and_generation(self) -> None:
        epochs = {
            Identity("abc", "def").epoch("name", 1),
            Identity("abd", "def").epoch("name", 1),
            Identity("abc", "deg").epoch("name", 1),
            Identity("abc", "def").epoch("other", 1),
            Identity("abc", "def").epoch("name", 2),
            Identity.unknown().epoch("name", 1),
            Identity.unknown().epoch("name", 1),
        }
        self.assertEqual(len(epochs), 7)

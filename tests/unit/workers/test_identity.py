"""What the parent tells each worker about the log."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from topicsvc.workers.identity import WorkerIdentity


class WorkerIdentityTests(SynchronousTestCase):
    def test_what_the_parent_writes_is_what_the_worker_reads_once(self) -> None:
        identity = WorkerIdentity(17, bytes(range(32)))
        environment = {"PATH": "/bin", **identity.environment()}
        self.assertEqual(WorkerIdentity.take(environment), identity)
        self.assertEqual(environment, {"PATH": "/bin"})

    def test_the_key_is_not_shown(self) -> None:
        self.assertNotIn("key", repr(WorkerIdentity(1, b"a key")))

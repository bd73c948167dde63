"""Closed sessions leave no objects, files or memory behind, in whichever way they end.

The service runs in this process, on real sockets, so that its objects can be counted. The
clients run in another process.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Generator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred, inlineCallbacks
from twisted.internet.task import LoopingCall, deferLater
from twisted.internet.threads import deferToThread
from twisted.trial import util
from twisted.trial.unittest import TestCase

from tests.integration.support.mixed_clients import ClientSettings
from tests.integration.support.validated_service import resident
from tests.support.certificates import Authority
from tests.support.processes import environment, until
from topicsvc import config
from topicsvc.interfaces import Message
from topicsvc.service import TopicService
from topicsvc.topics import TopicAddress
from topicsvc.validators.local import make_key, sign_token, write_key

Test = Generator[Deferred[Any], Any, None]

HOST = "cell1.unit1.example"
TOPIC = TopicAddress("cell1", "box1", ("col",), "name")
SESSIONS = 5120
"""Half of them reset the connection; within a half, each way of ending is equally frequent."""

WARM_UP = 400
LIFETIME = 3
"""Seconds until the short tokens of a round expire."""

PREFIXES = ("topicsvc.", "twisted.", "autobahn.", "OpenSSL.", "txaio.", "zope.")
"""Modules whose objects are counted."""

CACHED = {
    # The cache of parsed tokens, and its parts.
    "topicsvc.validators.local._Token": 50,
    "topicsvc.interfaces.Grant": 50,
    "topicsvc.topics.TopicPattern": 50,
    # Twisted keeps cancelled calls in a heap until they are more than 50.
    "twisted.internet.base.DelayedCall": 60,
}
"""Objects of bounded caches: less than so many may be new."""


@dataclass
class Count:
    """Objects and resources after all connections are closed."""

    connections: int
    http: int
    files: int
    delayed_calls: list[str]
    subscriptions: int
    readers: int
    objects: Counter[str]


class LeakTests(TestCase):
    timeout = 1500

    @inlineCallbacks
    def setUp(self) -> Test:
        self.directory = Path(self.mktemp()).absolute()
        self.directory.mkdir()
        self.key = make_key()
        write_key(self.directory / "key", self.key)
        self.ca_file = ""
        self.service = TopicService(
            config.load(
                f"""
                listen = ["{self.endpoint()}"]
                unit_url = "https://unit1.example/"
                [session]
                ping_interval = 5
                [validator]
                kind = "local"
                key_file = "{self.directory / "key"}"
                [stop]
                drain = 0
                [limits]  # all clients have one address
                unauthenticated_per_address = 0
                failed_tokens_per_minute = 0
                """
            ),
            reactor,
        )
        self.service.privilegedStartService()
        self.service.startService()
        self.addCleanup(self.service.stopService)
        self.published = LoopingCall(self.publish)
        yield

    def endpoint(self) -> str:
        return "tcp:0:interface=127.0.0.1:backlog=1000"

    def publish(self) -> None:
        self.service.broker.publish(Message(TOPIC, None, b'"to all sessions"'))

    def token(self, expires_at: float) -> str:
        return sign_token(self.key, "x", [TOPIC.path], ("receive", "send"), int(expires_at))

    @inlineCallbacks
    def run_sessions(self, count: int) -> Generator[Deferred[Any], Any, dict[str, int]]:
        """Run so many clients; fires with the number of clients for each way of ending."""
        [port] = self.service.ports
        now = int(reactor.seconds())
        settings = ClientSettings(
            port=port.getHost().port,
            ca_file=self.ca_file,
            host=HOST,
            websocket_path="/__topic/box1/col.topic.name",
            send_path="/box1/col/topic/name",
            token=self.token(now + 3600),
            short_token=self.token(now + LIFETIME),
            short_until=now + LIFETIME,
            count=count,
        )
        self.published.start(0.02)
        done = yield deferToThread(
            subprocess.run,
            [sys.executable, "-m", "tests.integration.support.mixed_clients"],
            input=json.dumps(asdict(settings)),
            capture_output=True,
            text=True,
            env=environment(),
            timeout=600,
        )
        self.published.stop()
        self.assertEqual(done.returncode, 0, done.stderr)
        return json.loads(done.stdout)

    @inlineCallbacks
    def settled(self) -> Generator[Deferred[Any], Any, Count]:
        """Wait until all connections are closed; fires with what is left."""
        yield until(
            lambda: (
                not (
                    self.readers()
                    or len(self.service.websocket_server)
                    or self.service._site.connections
                    or self.service._hub.topics
                )
            ),
            "all connections are closed",
            120,
        )
        yield deferLater(reactor, 0.2)
        return Count(
            connections=len(self.service.websocket_server),
            http=self.service._site.connections,
            files=len(os.listdir("/proc/self/fd")),
            delayed_calls=sorted(repr(call.func) for call in reactor.getDelayedCalls()),
            subscriptions=self.service._hub.topics,
            readers=self.readers(),
            objects=Counter(
                name
                for each in gc.get_objects()
                if (name := f"{type(each).__module__}.{type(each).__qualname__}").startswith(
                    PREFIXES
                )
            ),
        )

    def without_cached(self, objects: Counter[str]) -> Counter[str]:
        """Check the numbers of cached objects; return the others."""
        for name, limit in CACHED.items():
            self.assertLess(objects[name], limit, name)
        return Counter({name: count for name, count in objects.items() if name not in CACHED})

    def readers(self) -> int:
        """The client connections that the reactor reads."""
        return sum(type(each).__name__ == "Server" for each in reactor.getReaders())

    @inlineCallbacks
    def test_nothing_is_left_of_5120_sessions(self) -> Test:
        # In service, the garbage collector runs rarely, and hardly ever looks at old objects. So
        # most objects must be freed without it: here it does not run before the end.
        gc.collect()
        gc.disable()
        self.addCleanup(gc.enable)
        yield self.run_sessions(WARM_UP)  # the first sessions fill caches, which is no leak
        before = yield self.settled()
        memory = resident()
        counts = yield self.run_sessions(SESSIONS)
        after = yield self.settled()
        growth = resident() - memory
        self.assertEqual(sum(counts.values()), SESSIONS)
        resets = sum(count for way, count in counts.items() if way.startswith("reset"))
        self.assertEqual(resets, SESSIONS / 2)
        self.assertEqual((after.connections, after.http, after.subscriptions), (0, 0, 0))
        self.assertEqual(after.files, before.files)
        self.assertEqual(after.delayed_calls, before.delayed_calls)
        left = self.without_cached(after.objects - before.objects)
        self.assertLess(left.total(), SESSIONS / 100, left)
        gc.collect()
        collected = yield self.settled()
        leaked = self.without_cached(collected.objects - before.objects)
        self.assertEqual(str(leaked), str(Counter()), "leaked")
        if os.environ.get("TOPICSVC_FIGURES"):
            print(
                f"\n    {self.id()}: {counts}\n    {growth / 1e6:+.2f} MB, {after.files} files, "
                f"{len(after.delayed_calls)} delayed calls, {after.objects.total()} objects, "
                f"left to the garbage collector: {left.total()}"
            )


class LeaksOverTlsTests(LeakTests):
    """The same over TLS."""

    # Twisted itself makes a call that pyOpenSSL has deprecated.
    suppress = (util.suppress(message="Passing pyOpenSSL", category=DeprecationWarning),)

    def endpoint(self) -> str:
        authority = Authority(self.directory)
        key, certificate = authority.issue(HOST)
        self.ca_file = str(authority.ca_file)
        return f"ssl:0:privateKey={key}:certKey={certificate}:interface=127.0.0.1:backlog=1000"

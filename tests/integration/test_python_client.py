"""The Python clients with real services: each message once and in order, whatever happens.

Each test has two receivers: `Topic` in this process, and ``topicsvc subscribe``, which is built on
`topicsvc.client`. A sender numbers its messages.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import re
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from time import sleep, time
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from tests.integration.support.cuttable_proxy import CuttableProxy
from tests.integration.support.redis_server import Redis
from tests.support.processes import CELL_URL, TOPICSVC, TWISTD, Deployment, Process, TopicsvcServer
from tests.support.python_client import client
from topicsvc.validators.local import RIGHTS, sign_token

ROOT = Path(__file__).parents[2]
TOPIC = "/cell1/box1/col/topic/name"
WEBSOCKET_PATH = "/cell1/__topic/box1/col.topic.name"
MEMORY = 'kind = "memory"'
SEND_INTERVAL = 0.02
LONG = 60.0
"""Seconds in which a condition must be met."""


async def until(condition: Callable[[], object], what: str, seconds: float = LONG) -> None:
    async with asyncio.timeout(seconds):
        try:
            while not condition():
                await asyncio.sleep(0.05)
        except asyncio.CancelledError:
            raise AssertionError(f"not within {seconds} s: {what}") from None


class Sender:
    """Sends numbers.

    Attributes:
        accepted: the numbers that the service has accepted.
        unknown: the numbers of which this is not known.
    """

    def __init__(self, servers: list[TopicsvcServer], token: Callable[[], str]) -> None:
        self.accepted: list[int] = []
        self.unknown: set[int] = set()
        self._servers = servers
        self._token = token
        self._number = 0
        self.start()

    def start(self) -> None:
        self._running = asyncio.create_task(self._run())

    async def stop(self) -> None:
        self._running.cancel()
        await asyncio.gather(self._running, return_exceptions=True)

    async def more(self, count: int = 10) -> None:
        """Wait until the service has accepted `count` more messages."""
        wanted = len(self.accepted) + count
        await until(lambda: len(self.accepted) >= wanted, f"{count} messages are accepted")

    async def _run(self) -> None:
        while True:
            await self.send()
            await asyncio.sleep(SEND_INTERVAL)

    async def send(self) -> None:
        self._number += 1
        number = self._number
        for server in self._servers:
            url = f"http://127.0.0.1:{server.port}{TOPIC}"
            self.unknown.add(number)
            try:
                await client.send(url, number, lambda _: self._token())
            except client.SendFailed as error:
                if "refused" in str(error):
                    self.unknown.discard(number)
                    continue  # the next server
                return
            self.unknown.discard(number)
            self.accepted.append(number)
            return


class Receiver:
    """`Topic`, with what it has received."""

    def __init__(self, url: str, get_token: Callable[[str], Any]) -> None:
        self.numbers: list[int] = []
        self.gaps: list[Any] = []
        self.states: list[str] = []
        self.topic = client.Topic(
            url, get_token, on_gap=self.gaps.append, on_state=self.states.append
        )
        self._running = asyncio.create_task(self._run())

    async def _run(self) -> None:
        async with self.topic as messages:
            async for message in messages:
                self.numbers.append(message.body)

    async def stop(self) -> None:
        await self.topic.close()
        await self._running


class Command:
    """``topicsvc subscribe``, with what it has received."""

    def __init__(self, url: str, token_file: Path) -> None:
        arguments = ["--reconnect", "--json", "--token-file", str(token_file)]
        self._process = Process([*TOPICSVC, "subscribe", url, *arguments])

    @property
    def numbers(self) -> list[int]:
        # The numbers beside the errors.
        lines = [line for line in list(self._process.output) if line.startswith("{")]
        return [json.loads(line)["Body"] for line in lines]

    @property
    def text(self) -> str:
        return self._process.text

    @property
    def times_live(self) -> int:
        return self.text.count("subscribed for")

    def stop(self) -> None:
        self._process.stop()


class ClientTestCase(SynchronousTestCase):
    """Fixture: services, a proxy before them, a sender and both receivers.

    Attributes:
        lifetime: of tokens, in seconds.
    """

    servers = 1
    broker = MEMORY
    settings = ""
    lifetime = 3600.0

    def setUp(self) -> None:
        self.directory = Path(self.mktemp()).absolute()
        self.directory.mkdir()
        broker = self.start_broker()
        self.deployment = Deployment(self.directory, f"{broker}\n{self.settings}")
        self.services = [TopicsvcServer(self.deployment) for _ in range(self.servers)]
        for service in self.services:
            self.addCleanup(service.program.stop)
        self.is_away = False  # the authorization server
        self.token_calls: list[str] = []
        logger = logging.getLogger("topicsvc_client")  # its warnings are expected
        self.patch(logger, "propagate", False)
        self.patch(logger, "handlers", [logging.NullHandler()])

    def start_broker(self) -> str:
        return self.broker

    def token(self, lifetime: float = 3600.0) -> str:
        return sign_token(self.deployment.key, CELL_URL, [TOPIC], RIGHTS, int(time() + lifetime))

    async def get_token(self, reason: str) -> str:
        self.token_calls.append(reason)
        if self.is_away:
            raise ConnectionError("the authorization server is away")
        return self.token(self.lifetime)

    def run_scenario(self, scenario: Callable[[], Awaitable[None]]) -> None:
        asyncio.run(self._play(scenario))

    async def _play(self, scenario: Callable[[], Awaitable[None]]) -> None:
        for service in self.services:
            await self.start(service)
        async with CuttableProxy([each.port for each in self.services]) as self.proxy, self._all():
            await self.sender.more()
            await scenario()
            await self.sender.more()
            await self.sender.stop()
            last = self.sender.accepted[-1]
            await until(lambda: last in self.receiver.numbers, "Topic has the last message")
            await until(lambda: last in self.command.numbers, "subscribe has the last message")
            self.assert_complete("Topic", self.receiver.numbers)
            self.assert_complete("subscribe", self.command.numbers)
            self.assertEqual(self.receiver.gaps, [])
            self.assertNotIn("missed", self.command.text)

    @contextlib.asynccontextmanager
    async def _all(self) -> AsyncIterator[None]:
        url = f"ws://127.0.0.1:{self.proxy.port}{WEBSOCKET_PATH}"
        self.token_file = self.directory / "token"
        self.token_file.write_text(self.token(self.lifetime))
        writing = asyncio.create_task(self._write_tokens())
        self.receiver = Receiver(url, self.get_token)
        self.command = Command(url, self.token_file)
        try:
            await until(lambda: self.receiver.topic.state == "live", "Topic is live")
            await until(lambda: self.command.times_live, "subscribe is live")
            self.sender = Sender(self.services, self.token)
            yield
        finally:
            writing.cancel()
            await self.sender.stop()
            self.command.stop()
            await self.receiver.stop()

    async def _write_tokens(self) -> None:
        """Rotate the token of ``topicsvc subscribe``, as an agent beside it does."""
        while True:
            await asyncio.sleep(min(1.0, self.lifetime / 4))
            if not self.is_away:
                new = self.token_file.with_suffix(".new")
                new.write_text(self.token(self.lifetime))
                new.replace(self.token_file)

    async def start(self, service: TopicsvcServer) -> None:
        service.program.start()
        await until(lambda: service.parts.get("broker"), "topicsvc is ready")

    def assert_complete(self, name: str, numbers: list[int]) -> None:
        """Each accepted message once and in order; what is not known may be there."""
        known = [number for number in numbers if number not in self.sender.unknown]
        begun = self.sender.accepted.index(known[0])
        self.assertEqual(begun, 0, f"{name}: the first message")
        self.assertEqual(known, self.sender.accepted, name)
        self.assertEqual(numbers, sorted(set(numbers)), name)


class ExampleTests(ClientTestCase):
    """The first example of each page receives a message, with another URL."""

    def receive(self, page: str, *command: str) -> None:
        text = (ROOT / page).read_text("utf-8")
        [example, *_] = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
        [service] = self.services
        url = f"ws://127.0.0.1:{service.port}{WEBSOCKET_PATH}"
        program_text = re.sub('URL = ".*"', f'URL = "{url}"', example)
        (self.directory / "receiver.py").write_text(program_text)
        asyncio.run(self.start(service))
        self.patch(os, "environ", {**os.environ, "TOPICSVC_TOKEN": self.token()})
        program = Process([*command, str(self.directory / "receiver.py")])
        self.addCleanup(program.stop)
        send_url = f"http://127.0.0.1:{service.port}{TOPIC}"
        for _ in range(200):  # the program does not say when it is live
            asyncio.run(client.send(send_url, {"hello": "world"}, lambda _: self.token()))
            sleep(0.2)
            if "http://cell1.localhost/ {'hello': 'world'}" in program.text:
                return
            self.assertIsNone(program.child.poll(), program.text)
        self.fail(f"no message: {program.text}")

    def test_the_asyncio_example(self) -> None:
        self.receive("clients/python/README.md", sys.executable, "-u")

    def test_the_twisted_example(self) -> None:
        self.receive("docs/clients.md", *TWISTD, "-n", "--pidfile=", "--python")


class CutTests(ClientTestCase):
    cuts = 5

    def test_nothing_is_missed_after_a_cut(self) -> None:
        """The connections are cut while messages are sent."""

        async def scenario() -> None:
            for _ in range(self.cuts):
                live = self.receiver.states.count("live"), self.command.times_live
                self.proxy.cut()
                await self.sender.more(5)
                await until(lambda: self.receiver.states.count("live") > live[0], "Topic is back")  # noqa: B023
                await until(lambda: self.command.times_live > live[1], "subscribe is back")  # noqa: B023

        self.run_scenario(scenario)
        self.assertEqual(self.token_calls, ["first"])  # the token is used again


class RotationTests(ClientTestCase):
    lifetime = 16.0  # a renewal begins 4.5 s before the expiry, or earlier
    renewals = 2

    def test_short_tokens_are_renewed_on_the_same_connection(self) -> None:
        async def scenario() -> None:
            await until(
                lambda: self.token_calls.count("expiring") >= self.renewals,
                "the token is renewed",
                self.lifetime * self.renewals + LONG,
            )

        self.run_scenario(scenario)
        self.assertEqual(self.proxy.connections, 2)


class AwayTests(ClientTestCase):
    lifetime = 10.0
    away = 0.0

    def test_an_authorization_server_that_is_away_around_a_renewal(self) -> None:
        """Away for longer than a token lives: the messages of the meantime follow."""
        waiting = "waiting for another token in"

        async def scenario() -> None:
            pauses, asked = self.receiver.states.count("waiting"), len(self.token_calls)
            waits, lives = self.command.text.count(waiting), self.command.times_live
            self.is_away = True
            await asyncio.sleep(self.away)
            await until(
                lambda: self.receiver.states.count("waiting") > pauses, "the token of Topic expires"
            )
            # The client or the service is the first to notice the expiry: their texts differ.
            await until(lambda: self.command.text.count(waiting) > waits, "that of subscribe")
            await until(
                lambda: self.token_calls[asked:].count("expiring") > 1, "Topic asks again and again"
            )
            await self.sender.more()
            self.is_away = False
            await until(lambda: self.receiver.topic.state == "live", "Topic is live")
            await until(lambda: self.command.times_live > lives, "subscribe is live")

        self.run_scenario(scenario)
        self.assertGreater(self.token_calls.count("expiring"), 2)


class StopTests(ClientTestCase):
    settings = "[session]\nping_interval = 1"
    frozen = 0.0

    def test_a_frozen_service_is_noticed_and_nothing_is_missed(self) -> None:
        """SIGSTOP: connections stay, and nothing arrives for longer than 16 s."""

        async def scenario() -> None:
            await self.sender.stop()
            [service] = self.services
            service.program.pause()
            await asyncio.sleep(self.frozen)
            await until(lambda: "waiting" in self.receiver.states, "Topic notices it")
            await until(lambda: "is dead" in self.command.text, "subscribe notices it")
            service.program.resume()
            await until(lambda: self.receiver.topic.state == "live", "Topic is back")
            await until(lambda: self.command.times_live > 1, "subscribe is back")
            self.sender.start()

        self.run_scenario(scenario)


class RollingRestartTests(ClientTestCase):
    servers = 2
    restarts = 1

    def start_broker(self) -> str:
        self.redis = Redis()
        self.addCleanup(self.redis.remove)
        return self.redis.settings

    async def _play(self, scenario: Callable[[], Awaitable[None]]) -> None:
        self.redis.program.start()
        await until(self.redis._listens, "Redis listens")
        await super()._play(scenario)

    def test_a_rolling_restart_over_redis(self) -> None:
        """The clients go from one process to the other, and back."""

        async def scenario() -> None:
            for _ in range(self.restarts):
                for service in self.services:
                    await asyncio.to_thread(service.program.stop)
                    await self.sender.more()
                    await self.start(service)
                    await self.sender.more()

        self.run_scenario(scenario)
        self.assertGreater(self.proxy.connections, 2)

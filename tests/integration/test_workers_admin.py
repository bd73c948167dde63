"""The admin endpoint of two real workers behind one parent, with Redis."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families
from websockets.exceptions import ConnectionClosed

from tests.integration.support.redis_server import Redis
from tests.support.processes import TOPICSVC, environment, free_port, listens
from tests.support.twistd_case import (
    SEND_PATH,
    SUBJECT,
    TOPIC,
    WEBSOCKET_PATH,
    TwistdTestCase,
)
from tests.support.websocket_client import WebSocketClient
from topicsvc.workers import admin_pages

HOST = "cell1.unit1.example"
TOKEN = "a-token-of-an-operator"
WAIT = 120.0
"""Seconds for a condition, whatever the speed of the machine."""

MAX_DELAY = 15.0
"""Seconds by which a busy machine may exceed the time limit of an answer."""

MAX_CONNECTIONS = 64
"""Connections after which both workers have some, but for once in 2 ** 60 times."""


def endpoint(port: int) -> str:
    return f"tcp:{port}:interface=127.0.0.1"


def samples(text: str) -> dict[str, float]:
    """All samples by name: ``name`` or ``name label=value ...``."""
    return {
        " ".join([each.name, *(f"{key}={value}" for key, value in each.labels.items())]): each.value
        for family in text_string_to_metric_families(text)
        for each in family.samples
    }


class WorkersTestCase(TwistdTestCase):
    """Fixture: a parent with two workers."""

    def setUp(self) -> None:
        super().setUp()
        redis = Redis()
        self.addCleanup(redis.remove)
        redis.program.start()
        self.until(lambda: listens(redis.port), "Redis listens")
        token_file = self.directory / "admin-token"
        token_file.write_text(f"{TOKEN}\n")
        self.port, self.admin = free_port(), free_port()
        more = (
            f'[admin]\nlisten = "{endpoint(self.admin)}"\ninspect = true\n'
            f'token_file = "{token_file}"\n'
            f"[broker]\n{redis.settings}\n"
        )
        file = self.configure(endpoint(self.port), more=more)
        self.service = self.start("--config", str(file), "--workers", "2")
        self.until(lambda: self.status("/health/ready") == 200, "all workers are ready")
        self.clients: list[WebSocketClient] = []

    def until(self, condition: Callable[[], object], description: str) -> None:
        end = time.monotonic() + WAIT
        while not condition():
            self.assertLess(time.monotonic(), end, f"{description}\n{self.log()}")
            time.sleep(0.05)

    def log(self) -> str:
        return self.service.text if hasattr(self, "service") else ""

    def worker(self, place: int) -> int:
        """The process of the worker with this number; 0: there is none."""
        parent = self.service.child.pid
        for child in Path(f"/proc/{parent}/task/{parent}/children").read_text().split():
            try:
                command = Path(f"/proc/{child}/cmdline").read_bytes()
            except OSError:
                continue
            if b"\0worker-%d-of-2\0" % place in command:
                return int(child)
        return 0

    def signal(self, place: int, number: signal.Signals) -> None:
        os.kill(self.worker(place), number)

    # Requests.

    def request(self, path: str, body: object = None, token: str = TOKEN) -> tuple[int, Any]:
        """Return the status, and the JSON or the text."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.admin}{path}",
            None if body is None else json.dumps(body).encode(),
            {"Authorization": f"Bearer {token}"},
        )
        try:
            response = urllib.request.urlopen(request, timeout=WAIT)
        except urllib.error.HTTPError as error:
            response = error
        with response:
            text = response.read().decode()
            is_json = response.headers["Content-Type"] == "application/json"
            return response.status, json.loads(text) if is_json else text

    def status(self, path: str) -> int:
        return self.request(path)[0]

    def get(self, path: str) -> Any:
        status, found = self.request(path)
        self.assertEqual(status, 200, found)
        return found

    def scrape(self) -> dict[str, float]:
        return samples(self.get("/metrics"))

    # Clients.

    def join(self) -> WebSocketClient:
        client = self.connect(self.port, HOST, WEBSOCKET_PATH)
        self.present(client, self.token())
        self.clients.append(client)
        return client

    def places(self) -> list[int]:
        """The last three digits of the number of each session: they stand for its process."""
        return [each["id"] % 1000 for each in self.get("/sessions?limit=1000")["sessions"]]

    def join_both(self, least: int = 2) -> None:
        """Start sessions until each worker has some."""
        while len(self.clients) < MAX_CONNECTIONS:
            self.join()
            places = self.places()
            if min(places.count(place) for place in (1, 2)) >= least:
                return
        self.fail(f"the kernel prefers a worker: {self.places()}")


class MergeTests(WorkersTestCase):
    def test_the_sums_of_two_workers_are_exact(self) -> None:
        self.join_both()
        sessions, messages = len(self.clients), 7
        for number in range(messages):
            self.assertEqual(self.send(self.port, HOST, SEND_PATH, b"%d" % number), 200)
        size = 0
        for client in self.clients:
            for number in range(messages):
                text = client.recv()
                self.assertEqual(json.loads(text)["Body"], number)
                size += len(text) + 2  # the head of a short frame
        found = self.scrape()
        self.assertEqual(
            {name: found[f"topicsvc_{name}"] for name in (
                "workers", "workers_ready", "websockets_opened_total", "sessions_started_total",
                "sessions state=active", "deliveries_total", "delivered_bytes_total",
                "sends_total status=200", "token_checks_total outcome=granted", "messages_total",
                "topics", "broker_up",
            )},
            {
                "workers": 2,
                "workers_ready": 2,
                "websockets_opened_total": sessions,
                "sessions_started_total": sessions,
                "sessions state=active": sessions,
                "deliveries_total": sessions * messages,
                "delivered_bytes_total": size,
                "sends_total status=200": messages,
                "token_checks_total outcome=granted": sessions + messages,
                "messages_total": 2 * messages,
                "topics": 2,
                "broker_up": 1,
            },
        )  # fmt: skip
        for worker in ("1", "2", "parent"):
            self.assertGreater(found[f"process_resident_memory_bytes worker={worker}"], 10**6)
        self.assertIn("topicsvc_reactor_lag_seconds_count worker=2", found)

        # The lists.
        [topic] = self.get("/topics")["topics"]
        self.assertEqual(topic, self.get(f"/topics{TOPIC}"))
        self.assertEqual((topic["sessions"], topic["messages_per_minute"]), (sessions, messages))
        listed = self.get("/sessions")
        self.assertEqual((listed["total"], len(listed["sessions"])), (sessions, sessions))
        self.assertEqual(len({each["id"] for each in listed["sessions"]}), sessions)
        # All have the same token, and all workers identify it in the same way.
        self.assertEqual(len({each["token"] for each in listed["sessions"]}), 1)
        ages = [each["age"] for each in listed["sessions"]]
        self.assertEqual(ages, sorted(ages, reverse=True))
        [sender] = self.get("/senders")["senders"]
        self.assertEqual((sender["subject"], sender["sends_per_minute"]), (SUBJECT, messages))
        self.assertEqual(self.status("/topics?sort=age"), 400)
        self.assertIn(f"{sessions} sessions on {TOPIC}\n", self.top("--topic", TOPIC))
        self.assertEqual(self.top("sessions").count(TOPIC), sessions)

        # The connection that ended last is the first one, whichever worker had it.
        ids = []
        for each in listed["sessions"][:4]:
            body = {"id": each["id"], "reason": "x"}
            self.assertEqual(self.request("/sessions/end", body), (200, {"ended": 1}))
            ids.insert(0, each["id"])
        ended = self.get("/sessions/ended")
        self.assertEqual([each["id"] for each in ended["sessions"]], ids)
        self.assertEqual(ended["total"], 4)

    def top(self, *arguments: str) -> str:
        return subprocess.run(
            [*TOPICSVC, "top", "--admin", f"http://127.0.0.1:{self.admin}", *arguments],
            check=True,
            capture_output=True,
            env=environment(),
            timeout=WAIT,
        ).stdout.decode()

    def test_ending_sessions_reaches_all_workers(self) -> None:
        self.join_both(1)
        body = {"topic": TOPIC, "reason": "ticket 17"}
        self.assertEqual(self.request("/sessions/end", body, "wrong")[0], 401)
        self.assertEqual(self.request("/sessions/end", {"reason": "x"})[0], 400)
        self.assertEqual(len(self.places()), len(self.clients))
        self.assertEqual(self.request("/sessions/end", body), (200, {"ended": len(self.clients)}))
        for client in self.clients:
            closed = self.assertRaises(ConnectionClosed, client.recv)
            self.assertEqual((closed.rcvd.code, closed.rcvd.reason), (1008, "Ended by operator"))
        line = rf"\d+ sessions? of topic {TOPIC} ended by the operator at 127\.0\.0\.1: ticket 17"
        self.until(lambda: len(re.findall(line, self.log())) == 2, "each worker logs its sessions")
        self.assertNotIn(TOKEN, self.log())


class FaultTests(WorkersTestCase):
    def test_a_frozen_worker_is_left_out_and_counted_and_answers_come_in_time(self) -> None:
        self.join_both(1)
        before = self.scrape()
        frozen = self.places().count(2)
        self.signal(2, signal.SIGSTOP)
        self.addCleanup(self.signal, 2, signal.SIGCONT)
        paths = ("/metrics", "/health/ready", "/health/live", "/sessions")
        since = time.monotonic()
        with ThreadPoolExecutor() as threads:
            answers = dict(zip(paths, threads.map(self.request, paths), strict=True))
        limit = max(admin_pages.TIMEOUT, admin_pages.LIST_TIMEOUT)
        self.assertLess(time.monotonic() - since, limit + MAX_DELAY)

        self.assertEqual(answers["/metrics"][0], 200)
        found = samples(answers["/metrics"][1])
        self.assertEqual(found["topicsvc_workers_ready"], 1)
        self.assertGreaterEqual(found["topicsvc_workers_unanswered_total worker=2"], 1)
        self.assertEqual(found["topicsvc_workers_unanswered_total worker=1"], 0)
        self.assertEqual(
            found["topicsvc_sessions state=active"],
            before["topicsvc_sessions state=active"] - frozen,
        )
        name = "topicsvc_sessions_started_total"  # a counter does not fall
        self.assertEqual(found[name], before[name])
        self.assertNotIn("process_open_fds worker=2", found)

        status, health = answers["/health/ready"]
        self.assertEqual((status, health["ready"], health["parts"]["workers"]), (503, False, False))
        self.assertEqual([each["ready"] for each in health["workers"]], [True, False])
        self.assertEqual(health["workers"][1]["parts"], {"answering": False})
        self.assertEqual(answers["/health/live"], (503, "no answer of worker 2\n"))
        status, listed = answers["/sessions"]
        self.assertEqual((status, listed["unanswered"]), (200, [2]))
        self.assertEqual(listed["total"], len(self.clients) - frozen)
        self.service.wait_for("worker 2 is left out of a response of the admin endpoint: no answer")

        self.signal(2, signal.SIGCONT)
        self.until(lambda: self.status("/health/ready") == 200, "it is ready again")
        self.assertEqual(self.get("/sessions")["total"], len(self.clients))
        self.assertEqual(self.scrape()[name], before[name])

    def test_counters_do_not_fall_when_workers_are_replaced(self) -> None:
        self.join_both(1)
        name = "topicsvc_sessions_started_total"
        before = self.scrape()[name]
        self.assertEqual(before, len(self.clients))
        others = self.places().count(2)
        killed = self.worker(1)
        self.signal(1, signal.SIGKILL)
        self.until(lambda: self.worker(1) not in (0, killed), "a new worker runs")
        self.until(lambda: self.status("/health/ready") == 200, "it is ready")
        found = self.scrape()
        self.assertEqual(found[name], before)
        self.assertEqual(found["topicsvc_worker_restarts_total worker=1"], 1)
        self.assertEqual(found["topicsvc_worker_restarts_total worker=2"], 0)

        # A rolling restart: no counter falls meanwhile, and the service stays ready.
        old = [self.worker(place) for place in (1, 2)]
        self.service.child.send_signal(signal.SIGUSR2)
        end = time.monotonic() + WAIT
        while "rolling restart: all workers are new" not in self.log():
            self.assertLess(time.monotonic(), end, self.log())
            self.assertGreaterEqual(self.scrape()[name], before)
            _, health = self.request("/health/ready")
            for each in health["workers"]:  # on a slow machine an answer may be late
                self.assertTrue(each["ready"] or each["parts"] == {"answering": False}, health)
        self.assertEqual(set(old) & {self.worker(place) for place in (1, 2)}, set())
        found = self.scrape()
        self.assertEqual(found[name], before)
        self.assertEqual(found["topicsvc_worker_restarts_total worker=2"], 0)
        # The sessions of the worker that was killed are lost; the other one has told their end.
        ended = sum(value for name, value in found.items() if "sessions_ended_total" in name)
        self.assertEqual(ended, others)

        # Sessions of new workers have numbers that no session had.
        self.clients.clear()
        self.join()
        self.assertNotIn(self.places()[0], (1, 2))
        self.assertEqual(self.scrape()[name], before + 1)

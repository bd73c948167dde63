"""Several workers under one parent: distribution, crashes, reloads, rolling restarts, stops."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred, DeferredSemaphore, gatherResults, inlineCallbacks
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol
from twisted.internet.error import ConnectError
from twisted.internet.task import LoopingCall
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

from tests.integration.support.redis_server import Redis, need_redis
from tests.integration.support.requirements import need, need_files
from tests.integration.support.workers import (
    WorkersServer,
    is_alive,
    open_files,
    resident_memory,
)
from tests.support.certificates import Authority
from tests.support.processes import (
    TOPICSVC,
    TWISTD,
    Deployment,
    Shared,
    environment,
    free_port,
    until,
)
from tests.support.subscriber import Subscriber
from topicsvc.client import TopicClient
from topicsvc.client.rules.session import Policy
from topicsvc.topics import TopicAddress

TOPIC = TopicAddress("cell1", "box1", ("workers",), "name")
PATH = TOPIC.websocket_path

ROLL_CLIENTS = int(os.environ.get("TOPICSVC_ROLL_CLIENTS", "200"))
"""Clients of the rolling restart: see tests/README.md."""

shared = Shared(Redis)


class WorkersTestCase(TestCase):
    timeout = 600

    @inlineCallbacks
    def setUp(self) -> Any:
        need_redis()
        redis = yield shared.get()
        self.directory = Path(tempfile.mkdtemp(prefix="topicsvc-workers-"))
        self.addCleanup(shutil.rmtree, self.directory, ignore_errors=True)
        self.deployment = Deployment(self.directory, redis.settings)
        self.clients: list[Subscriber] = []
        self.addCleanup(self.leave)

    def leave(self) -> Deferred[Any]:
        """Close all clients."""
        for client in self.clients:
            if client.transport is not None:
                client.transport.abortConnection()
        return gatherResults([client.gone for client in self.clients])

    @inlineCallbacks
    def serve(self, **options: Any) -> Any:
        server = WorkersServer(self.deployment, **options)
        self.addCleanup(server.stop)
        yield server.start()
        return server

    @inlineCallbacks
    def join(self, server: WorkersServer, count: int, at_once: int = 50) -> Any:
        """Start sessions; fires with their clients."""
        permits = DeferredSemaphore(at_once)
        joined = yield gatherResults(
            [permits.run(server.join, PATH) for _ in range(count)], consumeErrors=True
        )
        self.clients += joined
        return joined

    def send(self, server: WorkersServer, body: bytes) -> Deferred[int]:
        """Send a message over HTTP; fires with the status."""
        return deferToThread(self.send_now, server.port, body)

    def send_now(self, port: int, body: bytes) -> int:
        head = (
            f"POST {TOPIC.send_path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n"
            f"Authorization: Bearer {self.deployment.token()}\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        with socket.create_connection(("127.0.0.1", port), timeout=60) as client:
            client.sendall(head.encode() + body)
            with client.makefile("rb") as response:
                return int(response.readline().split()[1])


class DistributionTests(WorkersTestCase):
    @inlineCallbacks
    def test_no_worker_has_more_than_35_percent_of_2000_connections(self) -> Any:
        need_files(5000)
        server = yield self.serve(workers=4)
        before = {pid: open_files(pid) for pid in server.pids}
        self.assertEqual(len(before), 4)
        yield self.join(server, 2000)
        counts = [open_files(pid) - before[pid] for pid in before]
        self.assertGreaterEqual(sum(counts), 2000)
        self.assertLess(max(counts), 0.35 * 2000, counts)
        self.assertEqual((yield self.send(server, b"1")), 200)
        yield until(lambda: all(client.messages for client in self.clients), "all have it", 60)


class CrashTests(WorkersTestCase):
    @inlineCallbacks
    def test_clients_with_positions_come_back_to_other_workers_and_miss_nothing(self) -> Any:
        server = yield self.serve()
        numbers: list[list[int]] = []
        gaps: list[object] = []
        clients = []
        for _ in range(40):
            received: list[int] = []
            numbers.append(received)
            clients.append(
                TopicClient(
                    reactor,
                    f"ws://127.0.0.1:{server.port}{PATH}",
                    lambda _: self.deployment.token(),
                    lambda message, received=received: received.append(message.body),
                    on_gap=gaps.append,
                    policy=Policy(min_delay=0.2, max_delay=1),
                )
            )
            clients[-1].startService()
        self.addCleanup(lambda: gatherResults([client.stopService() for client in clients]))
        yield until(lambda: all(client.state == "live" for client in clients), "all are live", 60)
        gaps.clear()
        sent: list[int] = []

        @inlineCallbacks
        def send_one() -> Any:
            number = len(sent) + 1
            with contextlib.suppress(OSError, IndexError):  # by the worker that is killed
                if (yield self.send(server, b"%d" % number)) == 200:
                    sent.append(number)

        sending = LoopingCall(send_one)
        done = sending.start(0.02)
        yield until(lambda: len(sent) >= 20, "messages are sent")
        [victim, survivor] = server.pids
        os.kill(victim, signal.SIGKILL)
        yield until(lambda: any(client.state != "live" for client in clients), "some are lost")
        taken = yield until(
            lambda: all(client.state == "live" for client in clients), "all are back", 60
        )
        before = len(sent)
        yield until(lambda: len(sent) >= before + 20, "messages are sent")
        sending.stop()
        yield done
        last = sent[-1]
        yield until(lambda: all(each[-1] == last for each in numbers), "the last message", 60)
        yield server.wait_for("has ended: signal 9; the next one starts in 0.1 s")
        yield until(lambda: len(server.pids) == 2, "there is another worker", 60)
        self.assertIn(survivor, server.pids)
        self.assertNotIn(victim, server.pids)
        self.assertEqual(gaps, [])
        for each in numbers:
            self.assertEqual(sorted(set(each)), list(range(1, last + 1)))
        # On an idle machine it is less than 5 s: docs/performance.md.
        self.assertLess(taken, 30)

    @inlineCallbacks
    def test_one_that_cannot_start_again_leaves_all_connections_to_the_other(self) -> Any:
        server = yield self.serve()
        key = self.deployment.key_file.read_bytes()
        self.deployment.key_file.write_bytes(b"garbage")
        self.addCleanup(self.deployment.key_file.write_bytes, key)
        [victim, survivor] = server.pids
        os.kill(victim, signal.SIGKILL)
        yield server.wait_for("has ended: .*validator.key_file: .*not a key")
        yield server.wait_for("cannot start: until it can, new connections go to the other workers")
        for _ in range(30):
            self.assertEqual((yield self.send(server, b"1")), 200)
        self.assertIn(survivor, server.pids)
        self.deployment.key_file.write_bytes(key)
        yield until(lambda: all(server.parts().values()), "both are ready", 60)
        [new] = set(server.pids) - {survivor}
        before = open_files(new)
        yield self.join(server, 40)
        self.assertGreater(open_files(new), before)

    @inlineCallbacks
    def test_workers_end_soon_after_their_parent_and_leave_no_orphan(self) -> Any:
        server = yield self.serve(workers=3, drain=30)
        yield self.join(server, 20)
        pids = server.pids
        self.assertEqual(len(pids), 3)
        server.program.kill()
        taken = yield until(lambda: not any(map(is_alive, pids)), "all workers have ended", 30)
        # The workers have a timer of 1.5 s; a slow machine may need longer to schedule them.
        self.assertLess(taken, 10)
        yield until(lambda: all(client.gone.called for client in self.clients), "clients know")
        self.assertEqual({client.close_code for client in self.clients}, {1001})

    @inlineCallbacks
    def test_a_worker_that_cannot_read_its_files_ends_the_start_in_one_line(self) -> Any:
        """The parent can, as it is root until it has opened the sockets."""
        need(os.geteuid() == 0, "root")
        key, certificate = Authority(self.directory).issue("127.0.0.1")
        both = self.directory / "both.pem"
        both.write_bytes(key.read_bytes() + certificate.read_bytes())
        both.chmod(0o600)
        self.directory.chmod(0o755)
        port = free_port()
        server = WorkersServer(
            self.deployment,
            listen=f"ssl:{port}:privateKey={both}:interface=127.0.0.1",
            twistd=["--uid", "nobody", "--gid", "nogroup"],
        )
        self.deployment.key_file.chmod(0o644)
        server.program.start()
        yield until(lambda: not server.program.runs, "it ends", 60)
        # On some machines this user cannot run Python either.
        problems = re.findall(r"topicsvc: worker [12]: .*Permission denied", server.program.log)
        self.assertEqual(len(problems), 1, server.program.log)
        assert server.program._process is not None
        self.assertEqual(server.program._process.returncode, 1)
        self.assertNotIn("Traceback", server.program.log)


class SignalTests(WorkersTestCase):
    @inlineCallbacks
    def test_a_reload_changes_all_workers_or_none(self) -> Any:
        server = yield self.serve(workers=3)
        good = server.file.read_text()
        server.file.write_text(good + "[session]\nping_limit = 0\n")
        server.signal(signal.SIGHUP)
        yield server.wait_for("not reloaded, the old settings stay in effect: .*ping_limit")
        server.file.write_text(good + "[send]\nenabled = false\n")
        server.signal(signal.SIGHUP)
        yield server.wait_for(r"reloaded: \[send\]")
        statuses = set()
        for _ in range(20):
            statuses.add((yield self.send(server, b"1")))
        self.assertEqual(statuses & {200}, set())

    @inlineCallbacks
    def test_another_number_of_workers_needs_a_restart(self) -> Any:
        server = yield self.serve(workers=3)
        text = server.file.read_text()
        self.assertIn("workers = 3", text)
        server.file.write_text(text.replace("workers = 3", "workers = 2"))
        server.signal(signal.SIGHUP)
        yield server.wait_for("reloaded: nothing changes without a restart")
        line = "workers: needs a restart; the old value stays in effect"
        self.assertEqual(server.log.count(line), 1)
        server.signal(signal.SIGUSR2)
        yield server.wait_for("rolling restart: 3 workers")

    @inlineCallbacks
    def test_200_reloads_leave_no_files_and_no_memory(self) -> Any:
        server = yield self.serve()
        yield self.join(server, 20)
        texts = server.file.read_text(), server.file.read_text() + "[session]\nping_limit = 9\n"

        @inlineCallbacks
        def reload(count: int) -> Any:
            for number in range(count):
                server.file.write_text(texts[number % 2])
                done = len(re.findall(" reloaded: ", server.log))
                server.signal(signal.SIGHUP)
                yield server.wait_for(" reloaded: ", done + 1)

        yield reload(20)
        pids = [server.pid, *server.pids]
        before = [(open_files(pid), resident_memory(pid)) for pid in pids]
        yield reload(200)
        for pid, (files, memory) in zip(pids, before, strict=True):
            self.assertLessEqual(open_files(pid), files)
            # It levels off: see docs/performance.md, "Workers".
            self.assertLess(resident_memory(pid) - memory, 6000, "KiB")
        self.assertEqual(pids, [server.pid, *server.pids])
        self.assertFalse(any(client.gone.called for client in self.clients))

    @inlineCallbacks
    def test_a_rolling_restart_refuses_and_resets_no_new_connection(self) -> Any:
        need_files(ROLL_CLIENTS + 3000)
        server = yield self.serve(drain=2)
        yield self.join(server, ROLL_CLIENTS)
        old = server.pids
        failures: list[str] = []
        opened: list[Subscriber] = []
        attempts: list[Deferred[Any]] = []

        @inlineCallbacks
        def connect() -> Any:
            subscriber = Subscriber()
            subscriber.path, subscriber.token = PATH, self.deployment.token()
            try:
                yield connectProtocol(
                    TCP4ClientEndpoint(reactor, "127.0.0.1", server.port, timeout=60), subscriber
                )
            except ConnectError as error:
                failures.append(f"refused: {error}")
                return
            opened.append(subscriber)
            status = yield subscriber.handshake_done
            if status != 101:
                failures.append(f"status {status} (0: reset before the handshake)")

        connecting = LoopingCall(lambda: attempts.append(connect()))
        done = connecting.start(0.01)
        server.signal(signal.SIGUSR2)
        yield server.wait_for("rolling restart: all workers are new", seconds=300)
        connecting.stop()
        yield done
        yield gatherResults(attempts)  # with those that were under way
        self.clients += opened
        self.assertEqual(failures, [])
        self.assertGreater(len(opened), 100)
        self.assertEqual(len(server.pids), 2)
        self.assertEqual(set(server.pids) & set(old), set())

    @inlineCallbacks
    def test_a_stop_drains_all_workers_together(self) -> Any:
        server = yield self.serve(drain=1)
        yield self.join(server, 40)
        pids = server.pids
        server.signal(signal.SIGTERM)
        yield until(lambda: not server.program.runs, "it ends", 60)
        self.assertFalse(any(map(is_alive, pids)))
        assert server.program._process is not None
        self.assertEqual(server.program._process.returncode, -signal.SIGTERM)
        yield gatherResults([client.gone for client in self.clients])
        self.assertEqual({client.close_code for client in self.clients}, {1001})

    @inlineCallbacks
    def test_during_a_long_drain_new_connections_are_refused_and_do_not_wait(self) -> Any:
        path = self.directory / "socket"
        server = WorkersServer(self.deployment, drain=120)
        server.file.write_text(
            server.file.read_text().replace('listen = ["', f'listen = ["unix:{path}", "')
        )
        self.addCleanup(server.stop)
        server.program.start()
        yield server.wait_for("serves 3 ports with")
        yield until(lambda: all(server.parts().values()), "the broker is up", 60)
        yield self.join(server, 20)
        pids = server.pids
        server.signal(signal.SIGTERM)

        def is_refused() -> bool:
            try:
                socket.create_connection(("127.0.0.1", server.port), timeout=60).close()
            except ConnectionRefusedError:
                return not path.exists()
            except ConnectionResetError:
                pass
            return False

        yield until(is_refused, "both sockets are closed", 60)
        self.assertTrue(server.program.runs)
        self.assertEqual(server.pids, pids)
        self.assertFalse(all(client.gone.called for client in self.clients))
        server.signal(signal.SIGTERM)
        yield until(lambda: not server.program.runs, "it ends", 60)
        self.assertNotIn("Traceback", server.program.log)

    @inlineCallbacks
    def test_a_stopped_worker_delays_no_second_signal_and_is_no_orphan(self) -> Any:
        """It cannot end by itself. The drain is longer than the test waits."""
        for signals in (2, 3):
            server = yield self.serve(drain=600)
            yield self.join(server, 8)
            pids = server.pids
            os.kill(pids[0], signal.SIGSTOP)
            server.signal(signal.SIGTERM)
            yield server.wait_for("stopping: 2 workers")
            server.signal(signal.SIGTERM)
            yield until(
                lambda server=server: "stopping at once: a second signal" in server.program.log,
                "the second signal",
            )
            if signals == 3:
                server.program.signal(signal.SIGTERM)
            yield until(lambda server=server: not server.program.runs, "it ends", 120)
            self.assertFalse(any(map(is_alive, pids)))
            number = r"worker [12] has not ended within 2 s after the second signal: it is killed"
            killed = number if signals == 2 else "a third signal: the workers are killed"
            self.assertRegex(server.program.log, killed)
            yield self.leave()
            self.clients.clear()

    @inlineCallbacks
    def test_a_stopped_worker_keeps_no_other_one_from_starting_during_a_reload(self) -> Any:
        server = yield self.serve()
        stopped, victim = server.pids
        os.kill(stopped, signal.SIGSTOP)
        self.addCleanup(lambda: is_alive(stopped) and os.kill(stopped, signal.SIGCONT))
        server.signal(signal.SIGHUP)
        os.kill(victim, signal.SIGKILL)
        yield server.wait_for("has ended: signal 9; the next one starts in 0.1 s")
        # Not after the 60 s in which workers must check.
        yield server.wait_for("has not answered yet, and another one must start", seconds=30)
        yield until(lambda: len(server.pids) == 2, "another worker starts", 30)

    @inlineCallbacks
    def test_signals_to_a_whole_process_group_stop_it_in_order(self) -> Any:
        """A terminal sends Ctrl-C to all processes, and systemd sends SIGTERM to all."""
        server = yield self.serve(drain=1)
        yield self.join(server, 20)
        for pid in server.pids:
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR2):
                os.kill(pid, number)
        server.signal(signal.SIGINT)
        yield until(lambda: not server.program.runs, "it ends", 60)
        self.assertNotIn("has ended", server.program.log)
        yield gatherResults([client.gone for client in self.clients])
        self.assertEqual({client.close_code for client in self.clients}, {1001})


class EndpointTests(WorkersTestCase):
    def options(self, client: socket.socket, prefix: bytes = b"") -> bytes:
        """The status line of the response to OPTIONS."""
        with client:
            client.settimeout(60)
            client.sendall(
                prefix + b"OPTIONS * HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"
            )
            with client.makefile("rb") as response:
                return response.readline().split()[1]

    @inlineCallbacks
    def test_tls_behind_a_proxy_that_sends_the_proxy_protocol(self) -> Any:
        authority = Authority(self.directory)
        key, certificate = authority.issue("127.0.0.1")
        port = free_port()
        server = yield self.serve(
            listen=f"haproxy:ssl:{port}:privateKey={key}:certKey={certificate}:interface=127.0.0.1"
        )

        def request() -> bytes:
            plain = socket.create_connection(("127.0.0.1", port), timeout=60)
            plain.sendall(b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n")
            context = authority.client_context()
            tls = context.wrap_socket(plain, server_hostname="127.0.0.1")
            return self.options(tls)

        for _ in range(10):
            self.assertEqual((yield deferToThread(request)), b"200")
        before = certificate.read_bytes()
        self.assertIsNotNone(ssl.PEM_cert_to_DER_cert(before.decode()))
        authority.issue("127.0.0.1")
        server.signal(signal.SIGHUP)
        yield server.wait_for("reloaded: the certificate of ")
        for _ in range(10):
            self.assertEqual((yield deferToThread(request)), b"200")

    @inlineCallbacks
    def test_a_unix_socket_is_shared_and_removed_at_the_end(self) -> Any:
        path = self.directory / "socket"
        server = yield self.serve(listen=f"unix:{path}:mode=600", workers=3)

        def request() -> bytes:
            client = socket.socket(socket.AF_UNIX)
            client.settimeout(60)
            client.connect(str(path))
            return self.options(client)

        self.assertEqual(path.stat().st_mode & 0o777, 0o600)
        for _ in range(10):
            self.assertEqual((yield deferToThread(request)), b"200")
        os.kill(server.pids[0], signal.SIGKILL)
        self.assertEqual((yield deferToThread(request)), b"200")
        server.stop()
        self.assertFalse(path.exists())

    @inlineCallbacks
    def test_a_socket_of_systemd_is_shared(self) -> Any:
        need(shutil.which("systemd-socket-activate"), "systemd (tests/integration/install.sh)")
        server = WorkersServer(self.deployment, listen="systemd:domain=INET:index=0")
        self.addCleanup(server.stop)
        kept = [f"--setenv={name}" for name in environment()]
        server.program.command = [
            *("systemd-socket-activate", "--fdname=topicsvc"),
            *(f"--listen=127.0.0.1:{server.port}", *kept),
            *server.program.command,
        ]
        server.program.start()
        yield until(lambda: "Listening on" in server.program.log, "systemd listens")

        def request() -> bytes:
            return self.options(socket.create_connection(("127.0.0.1", server.port), timeout=60))

        self.assertEqual((yield deferToThread(request)), b"200")
        yield server.wait_for("serves 2 ports with 2 workers")
        for _ in range(10):
            self.assertEqual((yield deferToThread(request)), b"200")

    @inlineCallbacks
    def test_two_services_do_not_share_a_port_by_mistake(self) -> Any:
        server = yield self.serve()
        second = WorkersServer(self.deployment, listen=f"tcp:{server.port}:interface=127.0.0.1")
        second.program.start()
        yield until(lambda: not second.program.runs, "it ends", 60)
        self.assertRegex(second.program.log, r"topicsvc: listen: .*Address already in use")


class ProcessTests(WorkersTestCase):
    @inlineCallbacks
    def test_a_daemon_has_one_log_and_one_pid_file(self) -> Any:
        server = WorkersServer(self.deployment)
        pid_file, log = self.directory / "pid", self.directory / "log"
        command = [
            *(*TWISTD, "--pidfile", str(pid_file), "--logfile", str(log)),
            *("topicsvc", "--config", str(server.file)),
        ]
        daemon = yield deferToThread(
            subprocess.run, command, env=environment(), cwd=self.directory, timeout=60, check=False
        )
        self.assertEqual(daemon.returncode, 0, log.read_text() if log.exists() else "")
        parent = int(pid_file.read_text())
        self.addCleanup(lambda: is_alive(parent) and os.kill(parent, signal.SIGKILL))

        def text() -> str:
            return "".join(each.read_text() for each in self.directory.glob("log*"))

        yield until(lambda: "with 2 workers" in text(), "it serves", 60)
        self.assertRegex(text(), r"\[worker 1, topicsvc\.\S+#info\] ")
        self.assertEqual((yield deferToThread(self.send_now, server.port, b"1")), 200)
        os.kill(parent, signal.SIGUSR1)
        yield until((self.directory / "log.1").exists, "the log is rotated", 60)
        yield self.join(server, 8)
        yield until(
            lambda: log.read_text().count(" begins") == 8, "workers write into the new file", 60
        )
        os.kill(parent, signal.SIGTERM)
        yield until(lambda: not is_alive(parent), "it ends", 60)
        self.assertFalse(pid_file.exists())
        self.assertNotIn("Traceback", text())

    @inlineCallbacks
    def test_json_lines_have_the_number_of_the_worker(self) -> Any:
        server = yield self.serve(twistd=["--logger", "topicsvc.logs.json_lines"])
        yield self.join(server, 8)
        yield server.wait_for(r" begins.*\n", 8)
        lines = [line for line in server.log.splitlines() if " begins" in line]
        self.assertEqual(len(lines), 8)
        self.assertTrue(all(re.search('"worker":[12]', line) for line in lines))

    @inlineCallbacks
    def test_systemd_learns_of_the_start_and_its_watchdog_is_fed_while_all_answer(self) -> Any:
        path = str(self.directory / "notify")
        systemd = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.addCleanup(systemd.close)
        systemd.bind(path)
        systemd.setblocking(False)
        server = WorkersServer(self.deployment)
        self.addCleanup(server.stop)
        assert server.program.environment is not None
        server.program.environment = {
            **server.program.environment,
            "NOTIFY_SOCKET": path,
            "WATCHDOG_USEC": "1000000",
        }
        yield server.start()

        fed_at = reactor.seconds()

        def received() -> list[str]:
            nonlocal fed_at
            datagrams = []
            with contextlib.suppress(BlockingIOError):
                while True:
                    datagrams.append(systemd.recv(1000).decode())
                    fed_at = reactor.seconds()
            return datagrams

        def is_fed_no_longer() -> bool:
            return not received() and reactor.seconds() - fed_at > 3

        self.assertEqual(received().count("READY=1"), 1)
        yield until(lambda: "WATCHDOG=1" in received(), "it is fed")
        [stopped, _] = server.pids
        os.kill(stopped, signal.SIGSTOP)
        # It was fed every 0.5 s. Answers may have been under way.
        yield until(is_fed_no_longer, "it is fed no longer")
        os.kill(stopped, signal.SIGCONT)
        yield until(lambda: "WATCHDOG=1" in received(), "it is fed again")

    def run_command(self, *arguments: str) -> Deferred[Any]:
        return deferToThread(
            subprocess.run,
            [*TOPICSVC, *arguments],
            capture_output=True,
            text=True,
            env=environment(),
            timeout=60,
            check=False,
        )

    @inlineCallbacks
    def test_a_memory_broker_is_refused_in_one_line(self) -> Any:
        self.deployment.broker = 'kind = "memory"'
        file = str(WorkersServer(self.deployment).file)
        commands: Iterable[list[str]] = (
            ["serve", "--config", file],
            ["check", "--config", file],
        )
        for command in commands:
            result = yield self.run_command(*command)
            self.assertEqual(result.returncode, 1)
            lines = [line for line in result.stderr.splitlines() if "workers: " in line]
            self.assertEqual(len(lines), 1, result.stderr)
            self.assertIn("apt-get install redis-server", lines[0])
        result = yield self.run_command("serve", "--demo", "--workers", "2")
        self.assertEqual(result.returncode, 1)
        self.assertEqual(
            result.stderr, "topicsvc serve: a demo is one process: leave --workers out\n"
        )

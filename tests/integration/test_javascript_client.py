"""The JavaScript client in each runtime, with scripted servers and with the real service."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from twisted.internet import reactor
from twisted.internet.defer import Deferred, inlineCallbacks
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import SynchronousTestCase, TestCase
from twisted.web.resource import Resource

from tests.integration.support.browsers import Browser, Call, Chromium, Firefox, Reports, WebPort
from tests.integration.support.redis_server import Redis
from tests.integration.support.requirements import need
from tests.support.processes import (
    Deployment,
    Process,
    TopicsvcServer,
    free_port,
    listens,
    until,
)
from tests.support.twistd_case import SEND_PATH, WEBSOCKET_PATH

Test = Generator[Deferred[Any], Any, None]

ROOT = Path(__file__).parents[2]
CLIENT = ROOT / "clients/javascript"
SUITE = Path(__file__).parent / "javascript"
MODULES = SUITE / "node_modules"

RUNTIMES = {
    "node22": (["node22-x64/bin/node", "node22-arm64/bin/node"], []),
    "node24": (["node24-x64/bin/node", "node24-arm64/bin/node"], []),
    "bun": (["@oven/bun-linux-x64/bin/bun", "@oven/bun-linux-aarch64/bin/bun"], ["run"]),
    "deno": (["@deno/linux-x64-glibc/deno", "@deno/linux-arm64-glibc/deno"], ["run", "-A"]),
}
"""The program of each runtime, as npm's packages have it, and its arguments."""

MAX_GZIPPED = 3584
"""Bytes: 3.5 KiB."""

BROWSER_START = 120.0
"""Seconds."""

SEND_PAUSE = 0.05
"""Seconds between two messages of a sender."""


def scripted_cases() -> int:
    """Return how many cases a client can have that sees no HTTP status."""
    table = json.loads((ROOT / "clients/scripted_servers.json").read_text("utf-8"))
    return sum("status" not in case.get("needs", ()) for case in table["cases"])


def runtime(name: str) -> list[str]:
    """Return the beginning of a command line that runs a script."""
    programs, arguments = RUNTIMES[name]
    found = [str(MODULES / each) for each in programs if (MODULES / each).exists()]
    need(found, f"{name} (tests/integration/install.sh)")
    return [found[0], *arguments]


def run(command: list[str], **options: Any) -> str:
    """Run a program; returns its output.

    Raises:
        AssertionError: the program failed, with its output.
    """
    done = subprocess.run(
        command, capture_output=True, check=False, text=True, timeout=120, **options
    )
    if done.returncode:
        raise AssertionError(f"{command}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


class ScriptedServerTests(SynchronousTestCase):
    """Each runtime runs all cases that a client without HTTP status can have."""

    def check(self, name: str) -> None:
        result = json.loads(run([*runtime(name), str(SUITE / "run_scripted.js")]))
        self.assertEqual(result, {"ran": scripted_cases(), "failures": []})

    def test_node_22(self) -> None:
        self.check("node22")

    def test_node_24(self) -> None:
        self.check("node24")

    def test_bun(self) -> None:
        self.check("bun")

    def test_deno(self) -> None:
        self.check("deno")

    def test_a_client_that_breaks_the_policy_fails(self) -> None:
        """The runner fails if the client gives up after 1001."""
        directory = Path(self.mktemp()).absolute()
        for path in (
            CLIENT / "topicsvc-client.js",
            CLIENT / "package.json",
            CLIENT.parent / "scripted_servers.json",
            SUITE / "run_scripted.js",
            SUITE / "scripted.js",
        ):
            copy = directory / path.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_text(path.read_text("utf-8"), "utf-8")
        client = directory / "clients/javascript/topicsvc-client.js"
        client.write_text(client.read_text("utf-8").replace("/^100[2379]$/", "/^100[1379]$/"))
        script = directory / "tests/integration/javascript/run_scripted.js"
        script.with_name("package.json").write_text('{"type": "module"}')
        with self.assertRaises(AssertionError) as caught:
            run([*runtime("node22"), str(script)])
        self.assertIn("close 1001 Going away while live", str(caught.exception))


class CaseTests(SynchronousTestCase):
    """Cases that the table of scripted servers does not have, in virtual time."""

    def check(self, name: str) -> None:
        script = SUITE / f"{name}_cases.js"
        cases = script.read_text("utf-8").count('\n  async "')
        for each in RUNTIMES:
            self.assertEqual(int(run([*runtime(each), str(script)])), cases)

    def test_send(self) -> None:
        """Refused tokens, pauses after 429, errors, and the signal."""
        self.check("send")

    def test_loops_listeners_and_options(self) -> None:
        """What `for await` reads, and listeners that close the topic."""
        self.check("loop")


class PackageTests(SynchronousTestCase):
    def test_the_types_are_valid_and_fit_an_example(self) -> None:
        """Each use in the example has its type, and each mistake in it is found."""
        need((MODULES / ".bin/tsc").exists(), "typescript (tests/integration/install.sh)")
        run([*runtime("node22"), str(MODULES / "typescript/bin/tsc"), "-p", str(SUITE)])

    def test_the_client_is_small_and_the_readme_has_all_sizes(self) -> None:
        """At most 3.5 KiB, minified and gzipped; the other clients are measured beside it."""
        need((MODULES / "esbuild").exists(), "esbuild (tests/integration/install.sh)")
        sizes = json.loads(run([*runtime("node22"), str(SUITE / "sizes.js")]))
        self.assertLessEqual(sizes["topicsvc-client"]["gzipped"], MAX_GZIPPED)
        rows = re.findall(
            r"^\| ([\w.-]+) \| ([\d.]+) \| (\d+) \| (\d+) \|$",
            (CLIENT / "README.md").read_text("utf-8"),
            re.MULTILINE,
        )
        self.assertEqual(
            {
                name: {"version": version, "minified": int(minified), "gzipped": int(gzipped)}
                for name, version, minified, gzipped in rows
            },
            sizes,
        )

    def test_the_published_package_has_what_a_user_needs(self) -> None:
        """`npm pack` takes the client, its types, the guide and the license, and nothing else."""
        [packed] = json.loads(run(["npm", "pack", "--dry-run", "--json"], cwd=CLIENT))
        self.assertEqual(
            {file["path"] for file in packed["files"]},
            {"LICENSE", "README.md", "package.json", "topicsvc-client.d.ts", "topicsvc-client.js"},
        )
        self.assertEqual((CLIENT / "LICENSE").read_text(), (ROOT / "LICENSE").read_text())


class BrowserScriptedServerTests(TestCase):
    """Each browser runs the same cases."""

    timeout = 300

    @inlineCallbacks
    def check(self, make: Callable[[Path], Browser]) -> Test:
        root = Reports()
        site = WebPort(root)
        yield site.start()
        self.addCleanup(site.stop)
        browser = make(Path(self.mktemp()).absolute())
        browser.start(f"{site.url}/tests/integration/javascript/scripted.html")
        self.addCleanup(browser.stop)
        yield until(lambda: root.reports, "the result", BROWSER_START)
        self.assertEqual(root.reports, [{"ran": scripted_cases(), "failures": []}])

    def test_chromium(self) -> Any:
        return self.check(Chromium)

    def test_firefox(self) -> Any:
        return self.check(Firefox)


class Reporter:
    """What a client with the real service reported."""

    def __init__(self, read: Callable[[], Sequence[Any]]) -> None:
        self._read = read

    def of(self, kind: str) -> list[Any]:
        """Return the values of one kind, in order."""
        return [value for each, value in self._read() if each == kind]

    @property
    def states(self) -> list[str]:
        return self.of("state")

    @property
    def numbers(self) -> list[int]:
        return [int(text) for text in self.of("message")]

    def until(self, kind: str, count: int, seconds: float = 60) -> Deferred[float]:
        """Wait until there are `count` values of a kind."""
        return until(
            lambda: len(self.of(kind)) >= count, f"{count} of {kind}: {self._read()}", seconds
        )


class Sender:
    """Sends the numbers from 0 on, one after the other, until it is stopped.

    Args:
        send: sends one body and returns the HTTP status; called in a thread.
    """

    def __init__(self, send: Callable[[bytes], int]) -> None:
        self.send = send
        self.accepted = 0
        self._stopping = False
        self._done = self._run()

    @inlineCallbacks
    def _run(self) -> Test:
        while not self._stopping:
            status = yield deferToThread(self.send, b"%d" % self.accepted)
            assert status == 200, status
            self.accepted += 1
            yield deferLater(reactor, SEND_PAUSE)

    def stop(self) -> Deferred[None]:
        self._stopping = True
        return self._done


class ServiceTestCase(TestCase):
    """Fixture: the service, and an authorization server.

    Attributes:
        lifetime: seconds that each new token lives; 0: tokens are not valid.
    """

    timeout = 300
    broker = 'kind = "memory"'
    lifetime = 3600

    @inlineCallbacks
    def setUp(self) -> Test:
        self.directory = Path(self.mktemp()).absolute()
        self.directory.mkdir()
        self.deployment = Deployment(self.directory, self.broker)
        root = Resource()
        root.putChild(b"token", Call(self._token))
        self.tokens = WebPort(root)
        yield self.tokens.start()
        self.addCleanup(self.tokens.stop)

    def _token(self, reason: bytes) -> bytes:
        return (self.deployment.token(self.lifetime) if self.lifetime else "nonsense").encode()

    @inlineCallbacks
    def start_service(self) -> Generator[Deferred[Any], Any, TopicsvcServer]:
        service = TopicsvcServer(self.deployment)
        self.addCleanup(service.program.stop)
        yield service.start()
        return service

    def setup(self, port: int, sends: int | None = None, path: str = "", **options: Any) -> str:
        """Return the argument of a receiver, which sends a number whenever it is live.

        `path` is added to that of the topic.
        """
        setup = {
            "url": f"ws://127.0.0.1:{port}/cell1{WEBSOCKET_PATH}{path}",
            "tokens": f"{self.tokens.url}/token",
            "options": options,
        }
        if sends is not None:
            url = f"http://127.0.0.1:{port}/cell1{SEND_PATH}"
            setup["sends"] = {"url": url, "value": sends}
        return json.dumps(setup)

    def receive(self, name: str, port: int, **options: Any) -> Reporter:
        """Start to receive in a runtime."""
        script = str(SUITE / "run_receiver.js")
        process = Process([*runtime(name), script, self.setup(port, **options)])
        self.addCleanup(process.stop)
        return Reporter(lambda: [json.loads(line) for line in process.output])

    def send_to(self, service: TopicsvcServer) -> Callable[[bytes], int]:
        return lambda body: service.send(f"/cell1{SEND_PATH}", body)

    def check_all(self, client: Reporter, sender: Sender) -> Deferred[Any]:
        """Check that the client has each message once, in the order of sending."""
        wanted = list(range(sender.accepted))
        waited = until(lambda: len(client.numbers) >= len(wanted), "all messages")
        return waited.addBoth(lambda _: self.assertEqual(client.numbers, wanted))


class RuntimeTests(ServiceTestCase):
    """The runtimes' own WebSocket classes."""

    @inlineCallbacks
    def test_each_runtime_comes_back_after_a_restart_and_fails_after_a_refusal(self) -> Test:
        """They see the code and the reason of the close frame, and a port that is closed."""
        service = yield self.start_service()
        clients = {
            name: self.receive(name, service.port, recover=False, maxDelay=1000)
            for name in RUNTIMES
        }
        for client in clients.values():
            yield client.until("state", 2)
        yield deferToThread(self.send_to(service), b"1")
        for client in clients.values():
            yield client.until("message", 1)
        service.program.stop()
        for client in clients.values():
            # The first connection after the stop is refused.
            yield until(lambda each=client: each.states.count("waiting") > 1, "a second pause")
        yield service.start()
        for name, client in clients.items():
            yield until(lambda each=client: each.states[-1] == "live", f"{name} is back")
            self.assertEqual(client.of("getToken"), ["first"])
        yield deferToThread(self.send_to(service), b"2")
        self.lifetime = 0
        for client in clients.values():
            yield client.until("message", 2)
        service.program.stop()
        self.deployment.key_file.write_text(Deployment(self.other(), "").key_file.read_text())
        yield service.start()
        for name, client in clients.items():
            yield client.until("error", 1)
            self.assertEqual(client.states[-1], "failed", name)
            self.assertEqual(client.of("getToken"), ["first", "refused"], name)
            self.assertEqual(client.of("error"), ["refused"], name)
            self.assertEqual(client.numbers, [1, 2], name)

    @inlineCallbacks
    def test_a_refused_handshake_ends_at_once(self) -> Test:
        """A closed port and HTTP 404; Node.js 22 has the event `error` then, but no `close`."""
        service = yield self.start_service()
        # connectTimeout is longer than the test may last.
        options = {"connectTimeout": 600_000, "minDelay": 50, "maxDelay": 50}
        ports = {"closed port": (free_port(), ""), "404": (service.port, "/x/y")}
        clients = {
            (name, why): self.receive(name, port, path=path, **options)
            for name in RUNTIMES
            for why, (port, path) in ports.items()
        }
        for key, client in clients.items():
            yield client.until("code", 3)
            self.assertEqual(set(client.of("code")), {1006}, key)
            states = client.states[:5]
            wanted = ["connecting", "waiting", "connecting", "waiting", "connecting"]
            self.assertEqual(states, wanted, key)

    def other(self) -> Path:
        other = self.directory / "other"
        other.mkdir()
        return other

    @inlineCallbacks
    def test_the_token_is_rotated_while_messages_arrive(self) -> Test:
        """Tokens of some seconds: one connection, and no message is missed or doubled."""
        self.lifetime = 12  # a renewal begins 3.3 s before the expiry, or earlier
        service = yield self.start_service()
        client = self.receive("node24", service.port, recover=False)
        yield client.until("state", 2)
        sender = Sender(self.send_to(service))
        yield client.until("getToken", 5, 120)
        yield sender.stop()
        yield self.check_all(client, sender)
        self.assertEqual(client.states, ["connecting", "live"])
        self.assertEqual(client.of("error"), [])

    @inlineCallbacks
    def test_the_authorization_server_is_away_when_the_token_should_be_renewed(self) -> Test:
        """It is back before the token expires: the connection stays."""
        self.lifetime = 20  # the first renewal begins 5.7 s before the expiry, or earlier
        service = yield self.start_service()
        client = self.receive("node22", service.port, recover=False)
        yield client.until("state", 2)
        expiry = time.monotonic() + self.lifetime
        yield self.tokens.stop()
        sender = Sender(self.send_to(service))
        yield until(lambda: "getToken" in client.of("error"), "a renewal fails")
        yield self.tokens.start()
        yield until(lambda: time.monotonic() > expiry, "the first token has expired")
        yield sender.stop()
        yield self.check_all(client, sender)
        self.assertEqual(client.states, ["connecting", "live"])


class BrowserTests(ServiceTestCase):
    @inlineCallbacks
    def show(self, browser: Browser, port: int, **options: Any) -> Any:
        """Start to receive in a page; fires with its reports."""
        root = Reports()
        site = WebPort(root)
        yield site.start()
        self.addCleanup(site.stop)
        page = f"{site.url}/tests/integration/javascript/receiver.html"
        browser.start(f"{page}#{quote(self.setup(port, **options))}")
        self.addCleanup(browser.stop)
        client = Reporter(lambda: root.reports)
        yield client.until("state", 2, BROWSER_START)
        return client

    @inlineCallbacks
    def test_firefox_sends_receives_and_comes_back_after_a_restart(self) -> Test:
        """The page is from another origin, so the browser asks before it sends."""
        service = yield self.start_service()
        browser = Firefox(self.directory / "firefox")
        client = yield self.show(browser, service.port, recover=False, sends=1)
        # The message may arrive before the response to its sender.
        yield client.until("message", 1)
        yield client.until("sent", 1)
        service.program.stop()
        yield client.until("state", 3)
        yield service.start()
        yield until(lambda: client.states[-1] == "live", "it is back")
        yield client.until("message", 2)
        yield client.until("sent", 2)
        self.assertEqual(client.numbers, [1, 1])
        self.assertEqual(client.of("sent"), [1, 1])

    @inlineCallbacks
    def test_a_hidden_page_renews_its_token_in_time(self) -> Test:
        """Chromium throttles its timers; messages make the client look at the clock."""
        self.lifetime = 14  # a renewal is due 3.9 s before the expiry, or earlier
        service = yield self.start_service()
        browser = Chromium(
            self.directory / "chromium",
            "--enable-features=IntensiveWakeUpThrottling:grace_period_seconds/1",
        )
        client = yield self.show(browser, service.port)
        page = browser.page()
        browser.control("Target.createTarget", url="about:blank")
        yield until(lambda: client.of("page") == ["hidden"], "the page is hidden")
        ticks, began = len(client.of("tick")), time.monotonic()
        sender = Sender(self.send_to(service))
        yield client.until("getToken", 4, 120)
        per_second = (len(client.of("tick")) - ticks) / (time.monotonic() - began)
        self.assertLess(per_second, 2, "timers are throttled")
        browser.control("Target.activateTarget", targetId=page)
        yield until(lambda: client.of("page") == ["hidden", "visible"], "the page is visible")
        yield sender.stop()
        yield self.check_all(client, sender)
        self.assertEqual(client.states, ["connecting", "live"])


class Nginx:
    """nginx before several services; a stopped one gets no connections.

    Args:
        directory: where it may write.
        services: ports of the services.
    """

    def __init__(self, directory: Path, services: Sequence[int]) -> None:
        need(shutil.which("nginx"), "nginx (tests/integration/install.sh)")
        self.port = free_port()
        file = directory / "nginx.conf"
        upstream = " ".join(f"server 127.0.0.1:{port} fail_timeout=1s;" for port in services)
        file.write_text(
            f"""
            daemon off; worker_processes 1; pid {directory}/nginx.pid;
            error_log stderr warn;
            worker_shutdown_timeout 1s;
            events {{ worker_connections 200; }}
            http {{
                access_log off;
                client_body_temp_path {directory}/body; proxy_temp_path {directory}/proxy;
                fastcgi_temp_path {directory}/fastcgi; uwsgi_temp_path {directory}/uwsgi;
                scgi_temp_path {directory}/scgi;
                upstream topicsvc {{ {upstream} }}
                server {{
                    listen 127.0.0.1:{self.port};
                    location / {{
                        proxy_pass http://topicsvc;
                        proxy_http_version 1.1;
                        proxy_set_header Host $http_host;
                        proxy_set_header Upgrade $http_upgrade;
                        proxy_set_header Connection upgrade;
                        proxy_buffering off;
                    }}
                }}
            }}
            """
        )
        self._command = ["nginx", "-c", str(file), "-p", str(directory)]
        self._process = Process(self._command)
        self.stop = self._process.stop

    def started(self) -> Deferred[float]:
        return until(lambda: listens(self.port), "nginx listens")

    def reload(self) -> None:
        """Start new worker processes; the old ones close their connections after 1 s."""
        run([*self._command, "-s", "reload"])


class PositionTests(ServiceTestCase):
    """Nothing is missed and nothing is doubled, or the client is told."""

    broker = 'kind = "memory"\n[session]\nping_interval = 1'

    def check_complete(self, client: Reporter, sender: Sender, pauses: int = 1) -> Any:
        """Check that the client has everything although it lost its connection."""
        self.assertGreaterEqual(client.states.count("waiting"), pauses)
        self.assertEqual(client.of("gap"), [])
        return self.check_all(client, sender)

    @inlineCallbacks
    def test_the_service_is_paused(self) -> Test:
        """A silent connection is given up; the service goes on later (SIGSTOP, SIGCONT)."""
        service = yield self.start_service()
        client = self.receive("node24", service.port, connectTimeout=1500, maxDelay=1000)
        yield client.until("state", 2)
        sender = Sender(self.send_to(service))
        yield client.until("message", 10)
        service.program.pause()
        # Heartbeat and 15 s of silence, then handshakes without a response.
        yield until(lambda: client.states.count("waiting") > 1, "two pauses", 60)
        service.program.resume()
        yield until(lambda: client.states[-1] == "live", "it is back")
        yield sender.stop()
        yield self.check_complete(client, sender, pauses=2)

    @inlineCallbacks
    def test_the_token_expires_while_the_authorization_server_is_away(self) -> Test:
        """Messages that were sent without a valid token follow under the next one."""
        self.lifetime = 6
        service = yield self.start_service()
        client = self.receive("node22", service.port, maxDelay=1000)
        yield client.until("state", 2)
        yield self.tokens.stop()
        sender = Sender(self.send_to(service))
        yield until(lambda: client.states.count("waiting") > 1, "the token has expired")
        missed = sender.accepted
        yield until(lambda: sender.accepted > missed + 5, "messages are missed")
        yield self.tokens.start()
        yield until(lambda: client.states[-1] == "live", "it is back")
        yield sender.stop()
        yield self.check_complete(client, sender)

    @inlineCallbacks
    def test_nginx_is_reloaded(self) -> Test:
        """Its old worker process drops the connections."""
        service = yield self.start_service()
        nginx = Nginx(self.directory, [service.port])
        self.addCleanup(nginx.stop)
        yield nginx.started()
        clients = [self.receive(name, nginx.port) for name in ("node22", "bun")]
        for client in clients:
            yield client.until("state", 2)
        sender = Sender(self.send_to(service))
        for reload in (1, 2):
            nginx.reload()
            for client in clients:
                yield until(
                    lambda each=client, times=reload: each.states.count("live") > times,
                    "it is back",
                )
        yield sender.stop()
        for client in clients:
            yield self.check_complete(client, sender, pauses=2)

    @inlineCallbacks
    def test_a_gap_is_told_and_the_state_is_loaded_anew(self) -> Test:
        """A service that keeps messages in memory was restarted: nothing can be proved."""
        service = yield self.start_service()
        client = self.receive("deno", service.port)
        yield client.until("state", 2)
        yield deferToThread(self.send_to(service), b"1")
        yield client.until("message", 1)
        service.program.kill()
        yield service.start()
        yield client.until("gap", 1)
        yield deferToThread(self.send_to(service), b"2")
        yield client.until("message", 2)
        self.assertEqual(client.of("onGap"), client.of("gap"))
        self.assertEqual(client.numbers, [1, 2])


class RollingRestartTests(ServiceTestCase):
    """Two processes with one Redis."""

    @inlineCallbacks
    def setUp(self) -> Test:
        self.redis = Redis()
        self.addCleanup(self.redis.program.stop)
        yield self.redis.start()
        self.broker = self.redis.settings
        yield super().setUp()

    @inlineCallbacks
    def test_both_processes_are_restarted_one_after_the_other(self) -> Test:
        """Each client misses nothing and gets nothing twice, in every runtime."""
        services = []
        for _ in range(2):
            services.append((yield self.start_service()))
        nginx = Nginx(self.directory, [service.port for service in services])
        self.addCleanup(nginx.stop)
        yield nginx.started()
        clients = {name: self.receive(name, nginx.port) for name in RUNTIMES}
        for client in clients.values():
            yield client.until("state", 2)
        sender = Sender(self.send_to(services[1]))
        for service, other in (services, services[::-1]):
            sender.send = self.send_to(other)
            # The send that is under way may still be at this service.
            accepted = sender.accepted
            yield until(lambda least=accepted + 2: sender.accepted >= least, "the other accepts")
            yield deferToThread(service.program.stop)
            yield service.start()
            for client in clients.values():
                yield until(lambda each=client: each.states[-1] == "live", "it is back")
        yield sender.stop()
        for name, client in clients.items():
            # "live" may have been the state from before a restart: the report may be late.
            yield until(lambda each=client: "waiting" in each.states, f"{name} was away")
            self.assertEqual(client.of("gap"), [])
            yield self.check_all(client, sender)

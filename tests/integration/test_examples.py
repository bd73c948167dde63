"""The example clients, unchanged: the page in a real browser, and the Python programs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Generator
from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred, inlineCallbacks
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import SynchronousTestCase, TestCase
from twisted.web.resource import Resource

from tests.integration.support.browsers import Call, Chromium, WebPort
from tests.support.processes import Process, TwistdProcess, environment, until
from tests.support.python_client import SOURCE
from tests.support.twistd_case import SEND_PATH, TOPIC, WEBSOCKET_PATH
from topicsvc.validators.local import make_key, sign_token, write_key

Test = Generator[Deferred[Any], Any, None]

EXAMPLES = Path(__file__).parent.parent.parent / "examples"
CLIENTS = Path(__file__).parent.parent.parent / "clients"
CELL_URL = "http://cell1.localhost/"
PING_INTERVAL = 1
PING_LIMIT = 5
BROWSER_START = 120.0
LONGEST_BODY = '"' + "x" * (2**20 - 2) + '"'
"""As long as `send.max_body` allows by default."""
GREATEST = "[send]\nmax_body = 1048576"

DRIVER = b"""
"use strict";
// Fills in the form for each task, and reports what the page shows. Reports are sent one after
// the other, so that they arrive in order.
let reported = Promise.resolve();
const report = (what, text) => {
  const send = () => fetch("/report", { method: "POST", body: JSON.stringify([what, text]) });
  reported = reported.then(send);
};
new MutationObserver(() => report("state", state.textContent))
  .observe(state, { childList: true });
new MutationObserver((changes) => {
  for (const change of changes) {
    for (const item of change.addedNodes) report("message", item.textContent);
  }
}).observe(messages, { childList: true });
(async () => {
  for (;;) {
    const task = await (await fetch("/task", { cache: "no-store" })).json();
    if (task !== null) {
      document.getElementById("url").value = task.url;
      document.getElementById("token").value = task.token;
      form.requestSubmit();
    }
    await new Promise((done) => setTimeout(done, 100));
  }
})();
"""


class _File(Resource):
    """A static file."""

    isLeaf = True

    def __init__(self, content: bytes, kind: str) -> None:
        super().__init__()
        self._content = content
        self._kind = kind

    def render_GET(self, request: Any) -> bytes:
        request.setHeader("content-type", self._kind)
        return self._content


class Page(Resource):
    """Serves the example page with a script that controls it, and collects its reports.

    Attributes:
        reports: pairs of ``state`` or ``message`` and the text, in order.
        tasks: values for the form.
    """

    def __init__(self) -> None:
        super().__init__()
        example = (EXAMPLES / "browser.html").read_bytes()
        driven = example.replace(
            b"</body>", b'<script type="module" src="/driver.js"></script></body>'
        )
        assert driven != example
        self.reports: list[tuple[str, str]] = []
        self.tasks: list[dict[str, str]] = []
        self.putChild(b"", _File(driven, "text/html; charset=utf-8"))
        client = (CLIENTS / "javascript/topicsvc-client.js").read_bytes()
        self.putChild(b"driver.js", _File(DRIVER, "text/javascript"))
        self.putChild(b"topicsvc-client.js", _File(client, "text/javascript"))
        self.putChild(b"task", Call(self._task))
        self.putChild(b"report", Call(self._report))

    def getChild(self, path: bytes, request: Any) -> Resource:
        """An empty response for other requests of the browser, such as the icon."""
        return _File(b"", "text/plain")

    def _task(self, _: bytes) -> bytes:
        return json.dumps(self.tasks.pop(0) if self.tasks else None).encode()

    def _report(self, body: bytes) -> bytes:
        what, text = json.loads(body)
        self.reports.append((what, text))
        return b""

    def seen(self, what: str) -> list[str]:
        return [text for kind, text in self.reports if kind == what]

    def last(self, what: str) -> str:
        return (self.seen(what) or [""])[-1]


class ExampleTestCase(TestCase):
    """Fixture: a service, tokens and messages."""

    timeout = 300

    def start(self, more: str = "") -> None:
        self.directory = Path(self.mktemp()).absolute()
        self.directory.mkdir()
        self.key = make_key()
        write_key(self.directory / "key", self.key)
        file = self.directory / "topicsvc.toml"
        file.write_text(
            f"""
            listen = ["tcp:0:interface=127.0.0.1"]
            unit_url = "http://localhost/"
            hosts = ["127.0.0.1"]
            [session]
            ping_interval = {PING_INTERVAL}
            ping_limit = {PING_LIMIT}
            [validator]
            kind = "local"
            key_file = "{self.directory / "key"}"
            [stop]
            drain = 0
            {more}
            """
        )
        self.service = TwistdProcess("--config", str(file), directory=self.directory)
        self.addCleanup(self.service.stop)
        [self.port] = self.service.ports

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}/cell1{WEBSOCKET_PATH}"

    def token(self, lifetime: int = 3600) -> str:
        expiry = int(reactor.seconds()) + lifetime
        return sign_token(self.key, CELL_URL, [TOPIC], ("receive", "send"), expiry)

    def send(self, body: str) -> Deferred[Any]:
        """Send one message with ``topicsvc send``; fires when it is accepted."""
        return deferToThread(
            subprocess.run,
            [
                *(sys.executable, "-c", "import sys; from topicsvc.cli.main import main; main()"),
                *("send", f"http://127.0.0.1:{self.port}/cell1{SEND_PATH}", body),
            ],
            env={**environment(), "TOPICSVC_TOKEN": self.token()},
            check=True,
            timeout=120,
        )

    def send_longest(self) -> Deferred[Any]:
        """Send a body as long as `send.max_body` allows; fires when it is accepted."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/cell1{SEND_PATH}",
            LONGEST_BODY.encode(),
            {"Authorization": f"Bearer {self.token()}"},
        )
        return deferToThread(lambda: urllib.request.urlopen(request, timeout=60).close())


class BrowserTests(ExampleTestCase):
    @inlineCallbacks
    def serve(self) -> Generator[Deferred[Any], Any, tuple[Page, str]]:
        """Serve the page; fires with the page and its origin."""
        page = Page()
        site = WebPort(page)
        yield site.start()
        self.addCleanup(site.stop)
        return page, site.url

    def browse(self, url: str, name: str = "browser", *options: str) -> None:
        """Start a browser with a profile of its own that shows the page."""
        browser = Chromium(self.directory / name, *options)
        browser.start(url)
        self.addCleanup(browser.stop)

    @inlineCallbacks
    def test_the_page_receives_and_renews_its_token(self) -> Test:
        self.start()
        page, origin = yield self.serve()
        page.tasks.append({"url": self.url, "token": self.token(1000)})
        self.browse(origin + "/")
        yield until(lambda: page.last("state") == "live", "a grant", BROWSER_START)
        yield self.send('{"hoge": 1.0}')
        golden = f'{CELL_URL}: {{"hoge": 1.0}}'
        yield until(lambda: page.last("message") == golden, "a message")
        began = page.seen("state")

        # The service would have closed the session of a browser that does not reply to pings.
        yield deferLater(reactor, PING_INTERVAL * (PING_LIMIT + 3))
        self.assertEqual(page.seen("state"), began, page.reports)

        page.tasks.append({"url": self.url, "token": self.token(5000)})
        yield self.send('"again"')
        yield until(lambda: page.last("message") == f'{CELL_URL}: "again"', "a second message")
        self.assertEqual(page.seen("state"), began, "one connection")

        page.tasks.append({"url": self.url, "token": "nonsense"})
        yield until(lambda: "refused" in page.last("state"), "the token is refused for good")

    @inlineCallbacks
    def test_a_page_of_a_forbidden_origin_is_refused(self) -> Test:
        allowed, origin = yield self.serve()
        forbidden, other_origin = yield self.serve()
        self.start(f'[limits]\nallowed_origins = ["{origin}"]')
        for page in (allowed, forbidden):
            page.tasks.append({"url": self.url, "token": self.token()})
        self.browse(origin + "/", "allowed")
        self.browse(other_origin + "/", "forbidden")
        yield until(lambda: allowed.last("state") == "live", "a grant", BROWSER_START)
        yield until(
            lambda: forbidden.seen("state").count("waiting") > 1, "two refusals", BROWSER_START
        )
        # A browser does not tell a page why a handshake was refused.
        self.assertEqual(set(forbidden.seen("state")), {"connecting", "waiting"})

    @inlineCallbacks
    def test_the_page_receives_a_message_of_the_greatest_length(self) -> Test:
        """A body of exactly `send.max_body` bytes; the data message is longer than that."""
        self.start(GREATEST)
        page, origin = yield self.serve()
        page.tasks.append({"url": self.url, "token": self.token()})
        self.browse(origin + "/")
        yield until(lambda: page.last("state") == "live", "a grant", BROWSER_START)
        yield self.send_longest()
        golden = f"{CELL_URL}: {LONGEST_BODY}"
        yield until(lambda: page.last("message") == golden, "the message")
        self.assertEqual(page.last("state"), "live")

    @inlineCallbacks
    def test_a_page_in_a_local_file_connects_if_its_origin_is_allowed(self) -> Test:
        """Its origin is ``file://``, as in Electron; that of a sandboxed frame is ``null``."""
        self.start('[limits]\nallowed_origins = ["file://"]')
        page = self.directory / "page.html"
        token = json.dumps(json.dumps({"AccessToken": self.token()}))
        script = (
            f"<script>const s = new WebSocket({json.dumps(self.url)});"
            f"s.onopen = () => s.send({token});</script>"
        )
        frame = script.replace('"', "&quot;")
        page.write_text(f'{script}<iframe sandbox="allow-scripts" srcdoc="{frame}"></iframe>')
        self.browse(page.as_uri(), "browser", "--allow-file-access-from-files")
        log = self.service
        yield until(lambda: "begins" in log.text, "a session", BROWSER_START)
        yield until(lambda: "limits.allowed_origins is reached" in log.text, "a refusal")
        self.assertEqual(log.text.count("begins"), 1)


class ProgramCases:
    """Tests of a Python program. Mix into an `ExampleTestCase`.

    Attributes:
        program: its file.
    """

    program = ""

    def receive(self, token: str) -> Process:
        paths = os.pathsep.join([environment()["PYTHONPATH"], str(SOURCE)])
        for name, value in (("TOPICSVC_TOKEN", token), ("PYTHONPATH", paths)):
            self.patch_environment(name, value)
        program = Process([sys.executable, str(EXAMPLES / self.program), self.url])
        self.addCleanup(program.stop)
        return program

    def patch_environment(self, name: str, value: str) -> None:
        before = os.environ.get(name)
        os.environ[name] = value
        self.addCleanup(
            lambda: os.environ.pop(name) if before is None else os.environ.update({name: before})
        )

    @inlineCallbacks
    def test_the_program_receives_and_comes_back(self) -> Test:
        self.start()
        program = self.receive(self.token(4000))
        program.wait_for("live\n")
        yield self.send('{"hoge":1}')
        program.wait_for(r'\{"hoge":1\} from http://cell1.localhost/\n')
        yield deferLater(reactor, PING_INTERVAL * (PING_LIMIT + 2))
        self.assertNotIn("waiting", program.text)
        self.service.stop()
        program.wait_for(r"(?s)waiting.*connecting")
        program.wait_for("not connected: .+; trying again")

    def test_the_program_says_why_a_server_does_not_answer(self) -> None:
        """The reason, not only the states."""
        self.start()
        self.service.stop()
        program = self.receive(self.token())
        program.wait_for("not connected: .*(refused|Connect call failed).*; trying again")

    @inlineCallbacks
    def test_the_program_receives_a_message_of_the_greatest_length(self) -> Test:
        """A body of exactly `send.max_body` bytes; the data message is longer than that."""
        self.start(GREATEST)
        program = self.receive(self.token())
        program.wait_for("live\n")
        yield self.send_longest()
        program.wait_for(LONGEST_BODY + " from http://cell1.localhost/\n")
        self.assertNotIn("waiting", program.text)

    def test_the_program_ends_with_an_error_when_its_token_is_refused(self) -> None:
        self.start()
        program = self.receive("nonsense")
        program.wait_for("Token inactive")
        self.assertEqual(program.wait(), 1)
        self.assertNotIn("Traceback", program.text)

    def test_an_interrupt_closes_the_session_without_a_traceback(self) -> None:
        self.start()
        program = self.receive(self.token())
        program.wait_for("live\n")
        program.child.send_signal(signal.SIGINT)
        program.wait()
        self.assertNotIn("Traceback", program.text)
        self.service.wait_for("Client closed")

    def test_without_a_url_the_program_says_how_it_is_used(self) -> None:
        program = Process([sys.executable, str(EXAMPLES / self.program)])
        self.addCleanup(program.stop)
        self.assertEqual(program.wait(), 1)
        self.assertIn("usage: TOPICSVC_TOKEN=... python", program.text)
        self.assertNotIn("Traceback", program.text)


class AsyncioTests(ProgramCases, ExampleTestCase):
    program = "receive.py"


class TwistedTests(ProgramCases, ExampleTestCase):
    program = "receive_twisted.py"


class LengthTests(SynchronousTestCase):
    def test_each_program_is_short(self) -> None:
        for name in ("receive.py", "receive_twisted.py"):
            lines = (EXAMPLES / name).read_text("utf-8").splitlines()
            self.assertLess(len([line for line in lines if line.strip()]), 27, name)

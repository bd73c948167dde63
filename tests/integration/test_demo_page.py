"""The page of the demo in a real browser."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Generator
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred, inlineCallbacks
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

from tests.integration.support.browsers import Chromium
from tests.integration.support.requirements import need
from tests.support.processes import TOPICSVC, TwistdProcess, environment, until

Test = Generator[Deferred[Any], Any, None]

AXE = Path(__file__).parent / "javascript/node_modules/axe-core/axe.min.js"
LOOPBACK = "tcp:0:interface=127.0.0.1"
BROWSER_START = 120.0
"""Seconds."""


SUMMARY = """
axe.run().then(({ passes, violations }) => ({
  passes: passes.length,
  violations: violations.map(({ id, nodes }) => [id, nodes.map(({ html }) => html)]),
  width: document.documentElement.scrollWidth,
}))
"""


KEEP_STATES = """
globalThis.states = [];
new MutationObserver(() => {
  states.push(document.getElementById("state").textContent);
}).observe(document.getElementById("state"), { childList: true });
"""

CUT_AGAIN = """
globalThis.states = [];
new MutationObserver(() => {
  states.push(document.getElementById("state").textContent);
  if (states.length === 2) document.getElementById("cut").click();
}).observe(document.getElementById("state"), { childList: true });
"""
"""Keeps the states, and cuts again during the first attempt to connect."""

FAIL_ONCE = """
const real = fetch;
globalThis.fetch = async () => {
  globalThis.fetch = real;
  throw new TypeError("unreachable");
};
"""


class DemoPageTests(TestCase):
    timeout = 300

    @inlineCallbacks
    def setUp(self) -> Test:
        self.directory = Path(self.mktemp()).absolute()
        self.directory.mkdir()
        self.service = TwistdProcess("--demo", "--listen", LOOPBACK, directory=self.directory)
        self.addCleanup(self.service.stop)
        self.text = self.service.demo_text()
        [url, *_] = re.findall(r"http://\S+", self.text)
        self.browser = Chromium(self.directory / "chromium", "--window-size=1200,900")
        self.browser.start(url)
        self.addCleanup(self.browser.stop)
        yield until(lambda: self.state == "live", "the page is live", BROWSER_START)

    @property
    def state(self) -> str:
        try:
            return self.value('document.getElementById("state")?.textContent')
        except (OSError, LookupError):  # the browser starts, or opens the page
            return ""

    def value(self, script: str) -> Any:
        return self.browser.evaluate(script)

    @property
    def messages(self) -> list[str]:
        return self.value(
            '[...document.querySelectorAll("#messages p")].map((each) => each.textContent)'
        )

    def click(self, selector: str) -> None:
        self.value(f"document.querySelector({json.dumps(selector)}).click()")

    def send(self, value: object) -> None:
        """Send by the form of the page."""
        self.value(f'document.getElementById("body").value = {json.dumps(json.dumps(value))}')
        self.click("#sending button")

    @inlineCallbacks
    def send_until_accepted(self, value: object) -> Test:
        """Send by the form; fires when the page shows that this message is accepted."""
        self.value('document.getElementById("result").textContent = ""')
        self.send(value)
        yield until(
            lambda: "accepted" in self.value('document.getElementById("result").textContent'),
            "the message is accepted",
        )

    @inlineCallbacks
    def test_a_message_of_the_form_and_one_of_the_terminal_arrive(self) -> Test:
        self.send({"number": 1})
        yield until(lambda: len(self.messages) == 1, "the message of the form")
        self.assertRegex(
            self.messages[0], r'^\{"number":1\} from http://cell1\.localhost/ [0-9a-f]+\.1$'
        )
        [send_url] = re.findall(r"topicsvc send (\S+) ", self.text)
        [token] = re.findall(r"export TOPICSVC_TOKEN=(\S+)\n", self.text)
        yield deferToThread(
            subprocess.run,
            [*TOPICSVC, "send", send_url, "2"],
            env={**environment(), "TOPICSVC_TOKEN": token},
            check=True,
            timeout=120,
        )
        yield until(lambda: len(self.messages) == 2, "the message of the terminal")
        self.assertIn("2 from", self.messages[1])

    @inlineCallbacks
    def test_nothing_is_missed_while_the_connection_is_cut(self) -> Test:
        yield self.send_until_accepted(1)
        yield until(lambda: len(self.messages) == 1, "the first message")
        self.value(KEEP_STATES)
        self.click("#cut")
        yield until(lambda: "waiting" in self.value("states"), "the connection is cut")
        for number in (2, 3):
            yield self.send_until_accepted(number)
        yield until(lambda: self.state == "live", "the client is back")
        yield until(lambda: len(self.messages) == 3, "the messages of the meantime")
        self.assertEqual([each.split()[0] for each in self.messages], ["1", "2", "3"])
        self.assertEqual(self.value('document.querySelectorAll("#messages .gap").length'), 0)

    @inlineCallbacks
    def test_a_second_cut_only_makes_the_first_longer(self) -> Test:
        """The client opens its next connection after the cut, without another attempt."""
        self.value(CUT_AGAIN)
        self.click("#cut")
        yield until(lambda: self.value("states.at(-1)") == "live", "the client is back")
        self.assertEqual(self.value("states"), ["waiting", "connecting", "live"])

    @inlineCallbacks
    def test_a_page_that_was_loaded_while_the_demo_did_not_answer_gets_a_token_later(self) -> Test:
        """Connect and Send get the URLs and a token then."""
        url = self.value('document.getElementById("url").value')
        note = 'document.getElementById("note").textContent'
        self.browser.reload(FAIL_ONCE)
        yield until(lambda: "does not answer" in str(self.value(note)), "the failure is told")
        self.assertEqual(self.state, "idle")
        self.value(f'document.getElementById("url").value = {json.dumps(url)}')
        self.click("#connection button")
        yield until(lambda: self.state == "live", "the page is live")
        self.send(1)
        yield until(lambda: len(self.messages) == 1, "the message")

    @inlineCallbacks
    def test_errors_are_told(self) -> Test:
        self.value('document.getElementById("body").value = "{"')
        self.click("#sending button")
        yield until(
            lambda: self.value('document.getElementById("result").textContent').startswith(
                "Not JSON"
            ),
            "the wrong value is told",
        )
        self.value('document.getElementById("token").value = "nonsense"')
        self.click("#connection button")
        yield until(lambda: self.state == "failed", "the wrong token is refused")
        self.assertNotEqual(self.value('document.getElementById("note").textContent'), "")

    @inlineCallbacks
    def test_the_page_is_accessible(self) -> Test:
        """axe-core finds no violation, in light and dark, on a screen and on a phone."""
        need(AXE.exists(), "axe-core (tests/integration/install.sh)")
        self.send({"text": "x" * 300})
        yield until(lambda: len(self.messages) == 1, "a message")
        for scheme in ("light", "dark"):
            for size in ((1200, 900), (360, 740)):
                with self.subTest(scheme=scheme, size=size):
                    script = f"{AXE.read_text('utf-8')}; {SUMMARY}"
                    found = self.browser.evaluate(script, scheme, size)
                    self.assertEqual(found["violations"], [])
                    self.assertGreater(found["passes"], 20)
                    self.assertLessEqual(found["width"], size[0])

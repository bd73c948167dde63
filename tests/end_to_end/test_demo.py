"""``twistd topicsvc --demo``: the printed commands work as printed."""

from __future__ import annotations

import json
import re
import subprocess
import urllib.error
import urllib.request

from tests.support.processes import TOPICSVC, Process, environment
from tests.support.twistd_case import LOOPBACK, TwistdTestCase


class DemoTests(TwistdTestCase):
    """The ``curl`` command of the output is run in tests.integration.test_commands."""

    def test_the_printed_commands_work(self) -> None:
        text = self.start("--demo", "--listen", LOOPBACK).demo_text()
        token = re.search(r"export TOPICSVC_TOKEN=(\S+)\n", text)[1]
        subscribe = re.search(r"topicsvc subscribe (\S+)\n", text)[1]
        send, body = re.search(r"topicsvc send (\S+) '(.*)'\n", text).groups()
        subscriber = Process([*TOPICSVC, "subscribe", subscribe, "--count", "1", "--token", token])
        self.addCleanup(subscriber.stop)
        subscriber.wait_for("subscribed for 3[56][0-9][0-9] seconds")
        variables = {**environment(), "TOPICSVC_TOKEN": token}
        subprocess.run([*TOPICSVC, "send", send, body], env=variables, check=True, timeout=20)
        self.assertEqual(subscriber.wait(), 0)
        received = [json.loads(line) for line in subscriber.output if line.startswith('{"From"')]
        self.assertEqual(received, [{"From": "http://cell1.localhost/", "Body": json.loads(body)}])

    def test_a_token_is_required(self) -> None:
        text = self.start("--demo", "--listen", LOOPBACK).demo_text()
        url = re.search(r"topicsvc send (\S+) ", text)[1]
        refused = self.assertRaises(
            urllib.error.HTTPError, urllib.request.urlopen, url, b"1", timeout=10
        )
        self.addCleanup(refused.close)
        self.assertEqual(refused.code, 401)

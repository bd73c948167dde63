"""The commands ``topicsvc subscribe`` and ``topicsvc send`` with a running service."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import signal
import socket
import subprocess
import urllib.request
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.integration.support.requirements import need
from tests.support.certificates import Authority
from tests.support.processes import TOPICSVC, TWISTD, Process, TwistdProcess, environment

LOOPBACK = "tcp:0:interface=127.0.0.1"


class CommandTests(SynchronousTestCase):
    def setUp(self) -> None:
        directory = Path(self.mktemp()).absolute()
        directory.mkdir()
        self.service = TwistdProcess("--demo", "--listen", LOOPBACK, directory=directory)
        self.addCleanup(self.service.stop)
        text = self.service.demo_text()
        self.token = re.search(r"one hour:\n +(\S+)\n", text)[1]
        self.subscribe_url = re.search(r"topicsvc subscribe (\S+)\n", text)[1]
        self.send_url = re.search(r"topicsvc send (\S+) ", text)[1]
        self.curl = re.search(r"curl .*\n", text)[0]

    def command(self, *arguments: str, stdin: bytes = b"") -> tuple[int, str, str]:
        done = subprocess.run(
            [*TOPICSVC, *arguments],
            check=False,
            input=stdin,
            capture_output=True,
            env={**environment(), "TOPICSVC_TOKEN": self.token},
            timeout=30,
        )
        return done.returncode, done.stdout.decode(), done.stderr.decode()

    def test_each_line_of_standard_input_is_a_message_in_order(self) -> None:
        subscriber = Process(
            [*TOPICSVC, "subscribe", self.subscribe_url, "--count", "50", "--token", self.token]
        )
        self.addCleanup(subscriber.stop)
        subscriber.wait_for("subscribed for")
        lines = [b'{"number":\t%d}' % number for number in range(50)]
        self.assertEqual(
            self.command("send", self.send_url, "-", stdin=b"\n".join([*lines, b"", b""])),
            (0, "", ""),
        )
        self.assertEqual(subscriber.wait(), 0)
        received = [json.loads(line) for line in subscriber.output if line.startswith("{")]
        self.assertEqual([each["Body"]["number"] for each in received], list(range(50)))

    def test_subscribe_receives_a_message_of_the_greatest_length(self) -> None:
        """A body of exactly `send.max_body` bytes; the data message is longer than that."""
        subscriber = Process(
            [*TOPICSVC, "subscribe", self.subscribe_url, "--count", "1", "--token", self.token]
        )
        self.addCleanup(subscriber.stop)
        subscriber.wait_for("subscribed for")
        body = b'"' + b"x" * (2**20 - 2) + b'"'
        request = urllib.request.Request(
            self.send_url, body, {"Authorization": f"Bearer {self.token}"}
        )
        urllib.request.urlopen(request, timeout=30).close()
        self.assertEqual(subscriber.wait(), 0)
        self.assertEqual(json.loads(subscriber.output[-1])["Body"], json.loads(body))

    def test_the_curl_command_that_the_demo_prints_sends_a_message(self) -> None:
        need(shutil.which("curl"), "curl (tests/integration/install.sh)")
        subscriber = Process(
            [*TOPICSVC, "subscribe", self.subscribe_url, "--count", "1", "--token", self.token]
        )
        self.addCleanup(subscriber.stop)
        subscriber.wait_for("subscribed for")
        subprocess.run(
            self.curl.replace("curl", "curl -sS", 1),
            shell=True,
            env={**environment(), "TOPICSVC_TOKEN": self.token},
            check=True,
            timeout=20,
        )
        self.assertEqual(subscriber.wait(), 0)
        self.assertEqual(
            json.loads(subscriber.output[-1]),
            {"From": "http://cell1.localhost/", "Body": {"hoge": "testmessage"}},
        )

    def test_a_body_with_line_breaks_is_printed_on_one_line(self) -> None:
        subscriber = Process(
            [*TOPICSVC, "subscribe", self.subscribe_url, "--count", "1", "--token", self.token]
        )
        self.addCleanup(subscriber.stop)
        subscriber.wait_for("subscribed for")
        self.assertEqual(self.command("send", self.send_url, '{\n"a":\r\n1}')[0], 0)
        subscriber.wait()
        self.assertEqual(json.loads(subscriber.output[-1])["Body"], {"a": 1})

    def test_a_long_body_is_printed_and_not_more_messages_than_count(self) -> None:
        subscriber = Process(
            [*TOPICSVC, "subscribe", self.subscribe_url, "--count", "1", "--token", self.token]
        )
        self.addCleanup(subscriber.stop)
        subscriber.wait_for("subscribed for")
        body = b"[" + b"9" * 5000 + b"]"
        host, port = re.search(r"//([^/:]+):(\d+)", self.send_url).groups()
        path = self.send_url.partition(port)[2]
        request = (
            f"POST {path} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {self.token}\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        ).encode() + body
        with socket.create_connection((host, int(port)), timeout=10) as raw:
            raw.sendall(request * 5)
            self.assertEqual(subscriber.wait(), 0)
        lines = [line for line in subscriber.output if line.startswith("{")]
        self.assertEqual(len(lines), 1, subscriber.text[:200])
        self.assertIn(body.decode(), lines[0])

    def test_a_closed_standard_output_ends_a_subscriber_without_a_traceback(self) -> None:
        reader = Process(
            [
                "sh",
                "-c",
                f"{shlex.join([*TOPICSVC, 'subscribe', self.subscribe_url])} "
                f"--token {self.token} | head -1",
            ]
        )
        self.addCleanup(reader.stop)
        reader.wait_for("subscribed for")
        for _ in range(3):
            self.command("send", self.send_url, "1")
        reader.wait()
        self.assertNotIn("Traceback", reader.text)
        self.assertEqual(reader.text.count('"Body":1'), 1)

    def test_a_subscriber_prints_why_it_was_refused(self) -> None:
        code, out, err = self.command("subscribe", self.subscribe_url, "--token", "nonsense")
        self.assertEqual((code, out), (1, ""))
        self.assertEqual(err, "topicsvc subscribe: closed: Token inactive (1008)\n")
        code, _, err = self.command("subscribe", self.subscribe_url + "/x")
        self.assertEqual((code, err.count("\n")), (1, 1), err)
        self.assertIn(f"404 Resource not found. [http{self.subscribe_url[2:]}/x].", err)

    def test_an_interrupted_subscriber_prints_no_error(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            subscriber = Process(
                [*TOPICSVC, "subscribe", self.subscribe_url, "--token", self.token]
            )
            self.addCleanup(subscriber.stop)
            subscriber.wait_for("subscribed for")
            subscriber.child.send_signal(number)
            self.assertEqual(subscriber.wait(), 130, subscriber.text)
            self.assertRegex(subscriber.text, r"\Asubscribed for \d+ seconds\n\Z")

    def test_names_in_other_scripts(self) -> None:
        for command, url in (("subscribe", self.subscribe_url), ("send", self.send_url)):
            code, _, err = self.command(
                command, url.replace("collection1", "\u00fcbung"), stdin=b"1"
            )
            # The request is valid, but the token is for another topic.
            self.assertEqual((code, err.count("\n")), (1, 1), err)
            self.assertRegex(err, "Token inactive|403 Necessary privilege")

    def test_untrusted_certificates(self) -> None:
        directory = Path(self.mktemp()).absolute()
        directory.mkdir()
        key, cert = Authority(directory).issue("localhost")
        endpoint = f"ssl:0:privateKey={key}:certKey={cert}:interface=127.0.0.1"
        service = TwistdProcess("--demo", "--listen", endpoint, directory=directory)
        self.addCleanup(service.stop)
        port = service.ports[0]
        for command, url in (("subscribe", "wss"), ("send", "https")):
            code, _, err = self.command(command, f"{url}://127.0.0.1:{port}/", stdin=b"1")
            self.assertEqual((code, err.count("\n")), (1, 1), err)
            self.assertIn("its certificate is for another name\n", err)
            code, _, err = self.command(command, f"{url}://localhost:{port}/", stdin=b"1")
            self.assertEqual((code, err.count("\n")), (1, 1), err)
            self.assertIn("certificate verify failed; $SSL_CERT_FILE names", err)

    def test_a_sender_prints_why_it_was_refused(self) -> None:
        for arguments, words in (
            (("1", "--token", "nonsense"), "message 1: 401 Token parse error."),
            (("nonsense",), "message 1: not one JSON value"),
        ):
            code, out, err = self.command("send", self.send_url, *arguments)
            self.assertEqual((code, out, err.count("\n")), (1, "", 1), err)
            self.assertIn(words, err)
        code, _, err = self.command("send", self.send_url, stdin=b"1\n2\nnonsense\n4\n")
        self.assertEqual(code, 1)
        self.assertIn("message 3: not one JSON value", err)

    def test_a_failed_sender_ends_while_standard_input_is_open(self) -> None:
        sender = subprocess.Popen(
            [*TOPICSVC, "send", self.send_url, "-", "--token", self.token],
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment(),
        )
        self.addCleanup(sender.communicate)
        self.addCleanup(sender.kill)
        sender.stdin.write(b"nonsense\n")
        sender.stdin.flush()
        self.assertEqual(sender.wait(timeout=30), 1)
        self.assertEqual(
            sender.stderr.read(), b"topicsvc send: message 1: not one JSON value in UTF-8\n"
        )

    def test_no_service(self) -> None:
        self.service.stop()
        for command, url in (("send", self.send_url), ("subscribe", self.subscribe_url)):
            code, out, err = self.command(command, url, stdin=b"1")
            self.assertEqual((code, out, err.count("\n")), (1, "", 1), err)
            self.assertIn("refused", err)


class StartTests(SynchronousTestCase):
    def test_a_wrong_option_gives_one_line_and_exit_code_1(self) -> None:
        for arguments, words in (
            ([], "nothing to run"),
            (["--nonsense"], "option --nonsense not recognized"),
            (["--config", "nowhere.toml"], "nowhere.toml: No such file"),
            (["--demo", "--listen", "nonsense:1"], "listen: 'nonsense:1'"),
        ):
            with self.subTest(arguments=arguments):
                process = Process([*TWISTD, "--nodaemon", "--pidfile=", "topicsvc", *arguments])
                self.assertEqual(process.wait(), 1)
                self.assertEqual(process.text.count("\n"), 1, process.text)
                self.assertIn(words, process.text)

    def test_a_port_in_use_is_reported_by_a_daemon_too(self) -> None:
        directory = Path(self.mktemp()).absolute()
        directory.mkdir()
        first = TwistdProcess("--demo", "--listen", LOOPBACK, directory=directory)
        self.addCleanup(first.stop)
        endpoint = f"tcp:{first.ports[0]}:interface=127.0.0.1"
        pid_file = directory / "daemon.pid"
        second = Process(
            [*TWISTD, "--pidfile", str(pid_file), "--logfile", str(directory / "daemon.log"),
             "topicsvc", "--demo", "--listen", endpoint]
        )  # fmt: skip
        self.assertEqual(second.wait(), 1)
        self.assertRegex(second.text, f"topicsvc: listen: {endpoint}: .* in use")
        self.assertFalse(pid_file.exists())

    def test_a_port_in_use_gives_one_message_and_exit_code_1(self) -> None:
        directory = Path(self.mktemp()).absolute()
        directory.mkdir()
        first = TwistdProcess("--demo", "--listen", LOOPBACK, directory=directory)
        self.addCleanup(first.stop)
        endpoint = f"tcp:{first.ports[0]}:interface=127.0.0.1"
        second = Process([*TWISTD, "-n", "--pidfile=", "topicsvc", "--demo", "--listen", endpoint])
        self.assertEqual(second.wait(), 1)
        self.assertRegex(second.output[-1], f" topicsvc: listen: {endpoint}: .* in use; .*ss -ltnp")
        self.assertNotIn("Traceback", second.text)

"""The commands ``topicsvc subscribe`` and ``topicsvc send`` with a running service."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.integration.support.requirements import need
from tests.integration.support.run_delay import run_delay
from tests.support.certificates import Authority
from tests.support.processes import (
    TOPICSVC,
    TWISTD,
    Process,
    TwistdProcess,
    environment,
)
from topicsvc.cli.send import CONNECTION_IDLE_TIME
from topicsvc.settings import SendSettings

LOOPBACK = "tcp:0:interface=127.0.0.1"
LONG = 120
"""Seconds after which a command hangs."""

AT_ONCE = 1.5
"""Seconds. To close a WebSocket, a command would wait 2 s for the server, and longer otherwise."""


def wait_until(condition: Callable[[], object], what: str) -> None:
    """Wait for a condition.

    Raises:
        AssertionError: it is still false after `LONG` seconds.
    """
    end = time.monotonic() + LONG
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.01)


class CommandTests(SynchronousTestCase):
    def setUp(self) -> None:
        directory = Path(self.mktemp()).absolute()
        directory.mkdir()
        self.service = TwistdProcess("--demo", "--listen", LOOPBACK, directory=directory)
        self.addCleanup(self.service.stop)
        text = self.service.demo_text()
        self.token = re.search(r"export TOPICSVC_TOKEN=(\S+)\n", text)[1]
        self.subscribe_url = re.search(r"topicsvc subscribe (\S+)\n", text)[1]
        self.send_url = re.search(r"topicsvc send (\S+) ", text)[1]
        self.curl = re.search(r"curl .*\n.*\n", text)[0]

    def command(self, *arguments: str, stdin: bytes = b"") -> tuple[int, str, str]:
        done = subprocess.run(
            [*TOPICSVC, *arguments],
            check=False,
            input=stdin,
            capture_output=True,
            env={**environment(), "TOPICSVC_TOKEN": self.token},
            timeout=LONG,
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
        urllib.request.urlopen(request, timeout=LONG).close()
        self.assertEqual(subscriber.wait(), 0)
        self.assertEqual(json.loads(subscriber.output[-1])["Body"], json.loads(body))

    def test_subscribe_goes_on_behind_a_position(self) -> None:
        """Messages from a time without a listener are printed once; a gap is reported."""
        arguments = [*TOPICSVC, "subscribe", self.subscribe_url, "--token", self.token, "--since"]
        first = Process([*arguments, "now", "--json", "--count", "1"])
        self.addCleanup(first.stop)
        first.wait_for("subscribed for")
        self.assertEqual(self.command("send", self.send_url, "1"), (0, "", ""))
        self.assertEqual(first.wait(), 0)
        position = json.loads(first.output[-1])["Position"]
        self.command("send", self.send_url, "-", stdin=b"2\n3\n")
        code, out, err = self.command(
            "subscribe", self.subscribe_url, "--since", position, "--json", "--count", "2"
        )
        self.assertEqual(code, 0, err)
        self.assertEqual([json.loads(line)["Body"] for line in out.splitlines()], [2, 3])
        self.assertNotIn("missed", err)
        lost = Process([*arguments, "nonsense"])
        self.addCleanup(lost.stop)
        lost.wait_for("messages may have been missed after nonsense; they go on after ")

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
            timeout=LONG,
        )
        self.assertEqual(subscriber.wait(), 0)
        self.assertEqual(
            json.loads(subscriber.output[-1]),
            {"From": "http://cell1.localhost/", "Body": {"hello": "world"}},
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
        for _ in range(20):  # the output is closed soon after the first message
            self.command("send", self.send_url, "1")
            if reader.child.poll() is not None:
                break
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
        self.assertEqual(sender.wait(timeout=LONG), 1)
        self.assertEqual(
            sender.stderr.read(), b"topicsvc send: message 1: not one JSON value in UTF-8\n"
        )

    def test_no_service(self) -> None:
        self.service.stop()
        for command, url in (("send", self.send_url), ("subscribe", self.subscribe_url)):
            code, out, err = self.command(command, url, stdin=b"1")
            self.assertEqual((code, out, err.count("\n")), (1, "", 1), err)
            self.assertIn("refused", err)


class FaultTests(SynchronousTestCase):
    """Servers, URLs, files and outputs that are wrong: one line each, and never a traceback."""

    def setUp(self) -> None:
        self.directory = Path(self.mktemp()).absolute()
        self.directory.mkdir()

    def assert_line(
        self, words: str, *arguments: str, stdin: bytes = b"", program: str = ""
    ) -> None:
        """Assert one line on standard error, no output, exit code 1."""
        begin = [sys.executable, "-c", program] if program else TOPICSVC
        done = subprocess.run(
            [*begin, *arguments],
            check=False,
            input=stdin,
            capture_output=True,
            env={**environment(), "TOPICSVC_TOKEN": "token"},
            timeout=LONG,
        )
        err = done.stderr.decode()
        self.assertEqual((done.returncode, done.stdout, err.count("\n")), (1, b"", 1), err)
        self.assertTrue(err.startswith(f"topicsvc {arguments[0]}: "), err)
        self.assertIn(words, err)

    def serve(self, answer: bytes, closes: bool = True) -> int:
        """Answer each connection with these bytes; return the port."""
        server = socket.create_server(("127.0.0.1", 0))
        connections: list[socket.socket] = []

        def run() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    connections.append(connection)
                    if not answer.startswith(b"SSH"):
                        connection.recv(65536)
                    connection.sendall(answer)
                    if closes:
                        connection.close()

        threading.Thread(target=run, daemon=True).start()
        self.addCleanup(lambda: [each.close() for each in (server, *connections)])
        return server.getsockname()[1]

    def test_servers_that_do_not_speak_the_protocol(self) -> None:
        ssh = b"SSH-2.0-OpenSSH_9.2\r\n"
        page = b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 8\r\n\r\n<p>\xe4\xff\r\n\x1b"
        for answer, words in (
            (ssh, "the answer is not HTTP; if the server has TLS at this port, write "),
            (page, ": 502 <p>\ufffd\ufffd \\u001b\n"),
            (b"", "the connection was lost; if the server has TLS at this port, write "),
        ):
            port = self.serve(answer)
            self.assert_line(words, "send", f"http://127.0.0.1:{port}/box1/c/topic/n", "1")
            self.assert_line(words, "subscribe", f"ws://127.0.0.1:{port}/__topic/x")

    def test_a_silent_server_is_left_after_10_seconds(self) -> None:
        port = self.serve(b"", closes=False)
        for command, scheme in (("send", "http"), ("subscribe", "ws"), ("send", "https")):
            url = f"{scheme}://127.0.0.1:{port}/x"
            more = ("1",) if command == "send" else ()
            self.assert_line(f"{url}: no response within 10 s", command, url, *more)

    def test_a_lookup_that_hangs_does_not_hold_the_exit(self) -> None:
        program = (
            "import socket, sys, time; socket.getaddrinfo = lambda *_, **__: time.sleep(300); "
            "from topicsvc.cli.main import main; sys.exit(main())"
        )
        for command, url in (("send", "http://x.example/"), ("subscribe", "ws://x.example/")):
            more = ("1",) if command == "send" else ()
            self.assert_line(url, command, url, *more, program=program)

    def test_output_that_cannot_be_written(self) -> None:
        key = shlex.quote(str(self.directory / "key"))
        subprocess.run([*TOPICSVC, "token", "--key-file", self.directory / "key", "--new-key"],
                       check=True, capture_output=True, env=environment())  # fmt: skip
        file = self.directory / "topicsvc.toml"
        file.write_text(
            'listen = ["tcp:0"]\nunit_url = "https://unit1.example/"\n'
            f'[validator]\nkind = "local"\nkey_file = "{self.directory / "key"}"\n'
        )
        for command in (
            "--help",
            "--version",
            "completion bash",
            f"token --key-file {key} --topic '/c/*'",
            f"check --config {file}",
            f"doctor --config {file}",
        ):
            for redirection, words in (
                (">/dev/full", "standard output: No space left on device"),
                (">&-", "standard output is closed"),
            ):
                with self.subTest(command=command, redirection=redirection):
                    code, out, err = self.shell(f"{shlex.join(TOPICSVC)} {command} {redirection}")
                    self.assertEqual((code, out, err.count("\n")), (1, "", 1), err)
                    self.assertIn(words, err)

    def test_standard_error_that_is_closed_or_full(self) -> None:
        for redirection in ("2>&-", "2>/dev/full"):
            code, out, _ = self.shell(f"{shlex.join(TOPICSVC)} send x 1 --token x {redirection}")
            self.assertEqual((code, out), (1, ""))

    def test_closed_standard_input(self) -> None:
        code, out, err = self.shell(
            f"{shlex.join(TOPICSVC)} send http://127.0.0.1:1/x --token x <&-"
        )
        self.assertEqual((code, out, err.count("\n")), (1, "", 1), err)
        self.assertIn("standard input is closed", err)

    def test_nothing_is_left_of_a_new_key_if_the_disk_is_full(self) -> None:
        key = self.directory / "key"
        code, _, err = self.shell(
            f"ulimit -f 0; {shlex.join(TOPICSVC)} token --key-file {key} --new-key"
        )
        self.assertEqual((code, err), (1, f"topicsvc token: {key}: File too large\n"))
        self.assertFalse(key.exists())

    def shell(self, command: str) -> tuple[int, str, str]:
        done = subprocess.run(
            ["bash", "-c", command],
            check=False,
            capture_output=True,
            env={name: each for name, each in environment().items() if name != "TOPICSVC_TOKEN"},
            timeout=LONG,
        )
        return done.returncode, done.stdout.decode(), done.stderr.decode()

    def test_an_interrupt_ends_a_command_at_once(self) -> None:
        silent = self.serve(b"", closes=False)
        for arguments in (
            ["send", f"http://127.0.0.1:{silent}/x"],  # waits for its input
            ["send", f"http://127.0.0.1:{silent}/x", "1"],
            ["subscribe", f"ws://127.0.0.1:{silent}/x"],
            ["check", "--config", "/dev/null"],
        ):
            for delay in (0.15, 0.3, 0.6, 1.2):
                with self.subTest(arguments=arguments, delay=delay):
                    child = subprocess.Popen(
                        [*TOPICSVC, *arguments],
                        stdin=subprocess.PIPE,
                        stdout=subprocess.PIPE,
                        stderr=subprocess.STDOUT,
                        env={**environment(), "TOPICSVC_TOKEN": "x"},
                    )
                    is_interrupted = False
                    try:
                        child.wait(delay)
                    except subprocess.TimeoutExpired:
                        is_interrupted = self.interrupt(child)
                    out, _ = child.communicate()
                    has_begun = re.search(rb'cli/main\.py", line \d+, in main\n', out)
                    if not has_begun and (
                        child.returncode == -signal.SIGINT or b"Fatal Python error: init_" in out
                    ):
                        continue  # Python itself, or its first imports, had not ended yet
                    self.assertNotIn(b"Traceback", out)
                    if is_interrupted and not out.startswith(b"topicsvc check: /dev/null: "):
                        self.assertEqual(child.returncode, 130)

    def interrupt(self, child: subprocess.Popen[bytes]) -> bool:
        """Send SIGINT, after which the process must end at once.

        The time in which it or this process was ready to run, and had no processor, is left out.

        Returns:
            Whether the process had not ended before.
        """
        before, began = run_delay(), time.monotonic()
        if child.poll() is None:
            before += run_delay(child.pid)
        child.send_signal(signal.SIGINT)
        if child.returncode is not None:
            return False
        how = os.WEXITED | os.WNOHANG | os.WNOWAIT
        wait_until(lambda: os.waitid(os.P_PID, child.pid, how), "it has ended")
        took = time.monotonic() - began
        waited = run_delay() + run_delay(child.pid) - before
        child.wait()
        self.assertLess(took - waited, AT_ONCE)
        return True

    def test_a_terminal_gets_no_control_characters(self) -> None:
        service = TwistdProcess("--demo", "--listen", LOOPBACK, directory=self.directory)
        self.addCleanup(service.stop)
        text = service.demo_text()
        token = re.search(r"export TOPICSVC_TOKEN=(\S+)\n", text)[1]
        url = re.search(r"topicsvc subscribe (\S+)\n", text)[1]
        send = re.search(r"topicsvc send (\S+) ", text)[1]
        body = '"\u009b2J \u202e \u2028 \u007f \u00fc"'
        for more, shown in (
            ((), '"\\u009b2J \\u202e \\u2028 \\u007f \u00fc"'),
            (("--json",), body),
        ):
            main, side = pty.openpty()
            child = subprocess.Popen(
                [*TOPICSVC, "subscribe", url, "--count", "1", *more],
                stdout=side,
                stderr=subprocess.PIPE,
                env={**environment(), "TOPICSVC_TOKEN": token, "PYTHONIOENCODING": "utf-8"},
            )
            os.close(side)
            self.assertIn(b"subscribed", child.stderr.readline())
            subprocess.run(
                [*TOPICSVC, "send", send, "-", "--token", token],
                check=True, input=body.encode(), env=environment(), timeout=LONG,
            )  # fmt: skip
            self.assertEqual(child.wait(LONG), 0)
            child.stderr.close()
            with os.fdopen(main, "rb", buffering=0) as terminal:
                self.assertIn(shown, terminal.read(4096).decode())

    def test_send_on_a_terminal_says_that_it_reads_lines(self) -> None:
        main, side = pty.openpty()
        self.addCleanup(os.close, main)
        child = subprocess.Popen(
            [*TOPICSVC, "send", "http://127.0.0.1:1/x", "--token", "x"],
            stdin=side,
            stderr=subprocess.PIPE,
            env=environment(),
        )
        os.close(side)
        self.assertEqual(
            child.stderr.readline(),
            b"reading messages from standard input, one JSON value on each line; Ctrl-D ends\n",
        )
        child.send_signal(signal.SIGINT)
        self.assertEqual(child.wait(LONG), 130)
        child.stderr.close()

    def test_check_warns_about_files_that_the_user_of_the_service_cannot_read(self) -> None:
        need(os.geteuid() == 0, "root")
        with tempfile.TemporaryDirectory() as name:
            directory = Path(name)
            directory.chmod(0o755)
            key, file = directory / "key", directory / "topicsvc.toml"
            subprocess.run([*TOPICSVC, "token", "--key-file", key, "--new-key"],
                           check=True, capture_output=True, env=environment())  # fmt: skip
            file.write_text(
                'listen = ["tcp:0"]\nunit_url = "https://unit1.example/"\n'
                f'[validator]\nkind = "local"\nkey_file = "{key}"\n'
            )
            check = f"{shlex.join(TOPICSVC)} check --config {file} --user nobody"
            code, out, err = self.shell(check)
            self.assertEqual((code, out, err.count("\n")), (0, f"{file}: good\n", 1), err)
            self.assertTrue(
                err.startswith(
                    f"topicsvc check: warning: as user nobody: {file}: validator.key_file: {key}: "
                    "Permission denied"
                ),
                err,
            )
            shutil.chown(key, "nobody")
            self.assertEqual(self.shell(check), (0, f"{file}: good\n", ""))

    def test_a_message_of_exactly_the_maximum_is_sent_and_received(self) -> None:
        service = TwistdProcess("--demo", "--listen", LOOPBACK, directory=self.directory)
        self.addCleanup(service.stop)
        text = service.demo_text()
        token = re.search(r"export TOPICSVC_TOKEN=(\S+)\n", text)[1]
        url = re.search(r"topicsvc subscribe (\S+)\n", text)[1]
        send = re.search(r"topicsvc send (\S+) ", text)[1]
        subscriber = Process([*TOPICSVC, "subscribe", url, "--count", "1", "--token", token])
        self.addCleanup(subscriber.stop)
        subscriber.wait_for("subscribed for")
        body = b'"' + b"x" * (SendSettings().max_body - 2) + b'"'
        subprocess.run([*TOPICSVC, "send", send, "--token", token],
                       input=body + b"\n", check=True, env=environment(), timeout=LONG)  # fmt: skip
        self.assertEqual(subscriber.wait(), 0)
        self.assertEqual(len(json.loads(subscriber.output[-1])["Body"]), len(body) - 2)

    def test_lines_may_be_further_apart_than_a_server_keeps_a_connection(self) -> None:
        service = TwistdProcess("--demo", "--listen", LOOPBACK, directory=self.directory)
        self.addCleanup(service.stop)
        text = service.demo_text()
        token = re.search(r"export TOPICSVC_TOKEN=(\S+)\n", text)[1]
        send = re.search(r"topicsvc send (\S+) ", text)[1]
        child = subprocess.Popen(
            [*TOPICSVC, "send", send, "--token", token],
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment(),
        )
        for pause in (CONNECTION_IDLE_TIME + 1, 62):  # the service keeps one for 60 s
            child.stdin.write(b"1\n")
            child.stdin.flush()
            time.sleep(pause)
        child.stdin.write(b"1\n")
        _, err = child.communicate(timeout=LONG)
        self.assertEqual((child.returncode, err), (0, b""))


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
        # The daemon reports the error, on which the command ends, before it removes the file.
        wait_until(lambda: not pid_file.exists(), "the file is removed")

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

"""``topicsvc serve`` runs what ``twistd -n --pidfile= topicsvc`` runs."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from uuid import uuid4

from tests.support.processes import TOPICSVC, Process, environment
from tests.support.twistd_case import LOOPBACK, SEND_PATH, WEBSOCKET_PATH, TwistdTestCase
from topicsvc import __version__

LINE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d{4} (?:info |warn |error|critical) .*\n")


class ServeTests(TwistdTestCase):
    def serve(self, *arguments: str, **options: object) -> Process:
        process = Process([*TOPICSVC, "serve", *arguments], cwd=str(self.directory), **options)
        self.addCleanup(process.stop)
        return process

    def port(self, process: Process) -> int:
        process.wait_for(r"topicsvc \S+ serves \d+ ports?\b")
        return int(re.search(r"TopicSite (?:\(TLS\) )?starting on (\d+)", process.text)[1])

    def assert_refused(self, words: str, *arguments: str) -> None:
        """Assert one line on standard error, no traceback, and exit code 1."""
        done = subprocess.run(
            [*TOPICSVC, "serve", *arguments],
            check=False,
            capture_output=True,
            cwd=self.directory,
            env=environment(),
            timeout=30,
        )
        err = done.stderr.decode()
        self.assertEqual((done.returncode, err.count("\n")), (1, 1), err)
        self.assertNotIn(b"Traceback", done.stdout)
        self.assertTrue(err.startswith("topicsvc serve: "), err)
        self.assertIn(words, err)

    def test_the_log_has_time_level_and_text_and_twistd_is_not_seen(self) -> None:
        process = self.serve("--demo", "--listen", LOOPBACK)
        process.wait_for(r"curl .*\n.*\n\n")
        before_the_demo = process.text.partition("\nThis is a demo")[0].splitlines(True)
        self.assertGreaterEqual(len(before_the_demo), 2)
        for line in before_the_demo:
            self.assertRegex(line, LINE)
        self.assertIn(f" info  topicsvc {__version__} serves 1 port\n", process.text)
        for words in ("twistd", "reactor class", "Starting factory"):
            self.assertNotIn(words, process.text)

    def test_no_file_is_written(self) -> None:
        process = self.serve("--demo", "--listen", LOOPBACK)
        self.port(process)
        process.stop()
        self.assertEqual(os.listdir(self.directory), ["key"])

    def test_sessions_reload_and_stop_as_under_twistd(self) -> None:
        process = self.serve("--config", str(self.configure(LOOPBACK)))
        client = self.connect(self.port(process), "cell1.unit1.example", WEBSOCKET_PATH)
        self.present(client, self.token())
        process.child.send_signal(signal.SIGHUP)
        process.wait_for("reloaded: nothing has changed")
        process.child.send_signal(signal.SIGTERM)
        self.assertEqual(process.wait(), -signal.SIGTERM)
        self.assertIn("stopping: 1 session is closed", process.text)

    def test_an_interrupt_stops_the_service(self) -> None:
        process = self.serve("--config", str(self.configure(LOOPBACK)))
        client = self.connect(self.port(process), "cell1.unit1.example", WEBSOCKET_PATH)
        self.present(client, self.token())
        process.child.send_signal(signal.SIGINT)
        self.assertEqual(process.wait(), -signal.SIGINT)
        self.assertIn("stopping: 1 session is closed", process.text)
        self.assertNotIn("Traceback", process.text)

    def test_systemd_is_notified(self) -> None:
        # A path in the directory of the test may be too long for a socket.
        name = f"topicsvc-test-{uuid4()}"
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
            notify.bind("\0" + name)
            notify.settimeout(20)
            program = (
                f"import os, sys; os.environ['NOTIFY_SOCKET'] = {'@' + name!r}; "
                "from topicsvc.cli.main import main; sys.exit(main())"
            )
            process = Process(
                [sys.executable, "-c", program, "serve", "--demo", "--listen", LOOPBACK]
            )
            self.addCleanup(process.stop)
            self.assertIn(b"READY=1", notify.recv(1000))

    def test_options_override_the_file(self) -> None:
        file = self.configure("tcp:1:interface=127.0.0.1")
        process = self.serve(
            "--config", str(file), "--listen", LOOPBACK, "-l", LOOPBACK, "--admin", LOOPBACK
        )
        process.wait_for("serves 3 ports")

    def test_a_start_that_fails_is_one_line_with_what_to_type(self) -> None:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = taken.getsockname()[1]
            endpoint = f"tcp:{port}:interface=127.0.0.1"
            self.assert_refused(
                f"listen: {endpoint}: Address already in use; to find the process: "
                f"ss -ltnp 'sport = :{port}'; to listen elsewhere: --listen tcp:PORT",
                "--demo",
                "--listen",
                endpoint,
            )
        self.assert_refused("nothing to run: give --config FILE, or try --demo")
        self.assert_refused("--nonsense", "--nonsense")
        self.assert_refused("exclude each other", "--demo", "--config", "x")
        self.assert_refused("option --config is empty", "--config=")
        self.assert_refused("nowhere.toml: No such file", "--config", "nowhere.toml")
        self.assert_refused("'nonsense:1'", "--demo", "--listen", "nonsense:1")
        self.assert_refused(
            "No such file or directory; make the directory first",
            "--config", str(self.configure("tcp:0")), "--listen", "unix:nowhere/socket",
        )  # fmt: skip

    def test_a_demo_whose_text_cannot_be_written_is_one_line(self) -> None:
        for redirection, words in (
            (">/dev/full", "No space left on device"),
            (">&-", "standard output is closed"),
        ):
            command = f"{shlex.join(TOPICSVC)} serve --demo --listen {LOOPBACK} {redirection}"
            done = subprocess.run(
                ["bash", "-c", command],
                check=False, capture_output=True, env=environment(), timeout=30,
            )  # fmt: skip
            err = done.stderr.decode()
            self.assertEqual((done.returncode, err.count("\n")), (1, 1), err)
            self.assertIn(words, err)

    def test_a_missing_client_of_a_broker_is_one_line(self) -> None:
        file = self.configure(LOOPBACK)
        file.write_text(file.read_text() + '[broker]\nkind = "kafka"\nbootstrap = "x:1"\n')
        program = (
            "import sys; sys.modules['confluent_kafka'] = None\n"
            "import importlib.util as u; find = u.find_spec\n"
            "u.find_spec = lambda name: None if name == 'confluent_kafka' else find(name)\n"
            "from topicsvc.cli.main import main; sys.exit(main())"
        )
        process = Process([sys.executable, "-c", program, "serve", "--config", str(file)])
        self.assertEqual(process.wait(), 1)
        self.assertEqual(process.text.count("\n"), 1, process.text)
        self.assertIn("pip install 'topicsvc[kafka]'", process.text)

    def test_python_m_topicsvc(self) -> None:
        done = subprocess.run(
            [sys.executable, "-m", "topicsvc", "--version"],
            check=True,
            capture_output=True,
            env=environment(),
            timeout=30,
        )
        self.assertEqual(done.stdout.decode(), f"topicsvc {__version__}\n")

    def test_messages_arrive(self) -> None:
        process = self.serve("--config", str(self.configure(LOOPBACK)))
        port = self.port(process)
        client = self.connect(port, "cell1.unit1.example", WEBSOCKET_PATH)
        self.present(client, self.token())
        self.send(port, "cell1.unit1.example", SEND_PATH, b"1")
        self.assertEqual(json.loads(client.recv())["Body"], 1)

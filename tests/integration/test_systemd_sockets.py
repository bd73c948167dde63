"""A service on sockets that systemd's own program opens, as the socket units of examples/ do."""

from __future__ import annotations

import shutil
import socket
import tempfile
from pathlib import Path

from tests.integration.support.requirements import need
from tests.support.processes import TIMEOUT, TWISTD, Process, environment, free_port
from tests.support.twistd_case import WEBSOCKET_PATH, TwistdTestCase

HOST = "cell1.unit1.example"


class SystemdSocketTests(TwistdTestCase):
    def setUp(self) -> None:
        need(shutil.which("systemd-socket-activate"), "systemd (tests/integration/install.sh)")
        super().setUp()

    def activate(self, listen: str, endpoint: str, *options: str, more: str = "") -> Process:
        """Let systemd's program listen; it starts the service at the first connection."""
        file = self.configure(endpoint, more=more)
        kept = [f"--setenv={name}" for name in environment()]
        command = ["systemd-socket-activate", "--fdname=topicsvc", f"--listen={listen}", *options]
        topicsvc = [*TWISTD, "--nodaemon", "--pidfile=", "topicsvc", "--config", str(file)]
        service = Process([*command, *kept, *topicsvc])
        self.addCleanup(service.stop)
        service.wait_for("Listening on")
        return service

    def test_clients_of_a_dual_stack_socket_have_their_addresses(self) -> None:
        """``ListenStream=8081`` makes an IPv6 socket, whatever ``domain=`` says."""
        port = free_port()
        limits = '[limits]\nper_address = 2\ntrusted_proxies = ["127.0.0.1"]'
        service = self.activate(str(port), "systemd:domain=INET:index=0", more=limits)
        first = self.connect(port, HOST, WEBSOCKET_PATH)
        self.present(first, self.token())
        service.wait_for(r" 127\.0\.0\.1:\d+ |::ffff:127\.0\.0\.1:\d+")
        # As a trusted proxy, this host names its clients.
        for number in range(4):
            with socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT) as client:
                client.sendall(
                    f"OPTIONS * HTTP/1.1\r\nHost: {HOST}\r\nX-Forwarded-For: 192.0.2.{number}\r\n"
                    "Connection: close\r\n\r\n".encode()
                )
                with client.makefile("rb") as response:
                    self.assertEqual(response.readline().split()[1], b"200")

    def test_a_unix_socket_keeps_its_file_and_its_mode(self) -> None:
        directory = Path(tempfile.mkdtemp())  # the path of a socket is short
        self.addCleanup(shutil.rmtree, directory)
        path = directory / "socket"
        service = self.activate(str(path), "systemd:domain=UNIX:index=0")
        path.chmod(0o620)
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(TIMEOUT)
            client.connect(str(path))
            client.sendall(b"OPTIONS * HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            with client.makefile("rb") as response:
                self.assertEqual(response.readline().split()[1], b"200")
        self.assertEqual(path.stat().st_mode & 0o777, 0o620)
        service.stop()
        self.assertTrue(path.is_socket())
        self.assertNotIn("Traceback", service.text)

    def test_a_datagram_socket_is_refused_on_one_line(self) -> None:
        port = free_port()
        service = self.activate(str(port), "systemd:domain=INET:index=0", "--datagram")
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as client:
            client.sendto(b"x", ("::1", port))
        service.wait_for("needs ListenStream=, and no Accept=yes")
        self.assertEqual(service.wait(), 1)
        self.assertNotIn("Traceback", service.text)

"""The table of HTTP requests in docs/protocol.md agrees with nginx."""

from __future__ import annotations

import contextlib
import re
import shutil
import socket
import time
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.docs.test_http_requests import GET, REQUESTS, answer, rows
from tests.integration.support.requirements import need
from tests.support.processes import Process, free_port, listens

TIMEOUT = 60.0


class NginxTests(SynchronousTestCase):
    def setUp(self) -> None:
        need(shutil.which("nginx"), "nginx (tests/integration/install.sh)")
        directory = Path(self.mktemp()).absolute()
        directory.mkdir()
        self.port, behind = free_port(), free_port()
        (directory / "nginx.conf").write_text(
            f"""
            daemon off; worker_processes 1; pid {directory}/nginx.pid;
            error_log stderr crit;
            events {{ worker_connections 200; }}
            http {{
                access_log off;
                client_body_temp_path {directory}/body;
                proxy_temp_path {directory}/proxy;
                fastcgi_temp_path {directory}/fastcgi;
                uwsgi_temp_path {directory}/uwsgi;
                scgi_temp_path {directory}/scgi;
                # A proxy reads the whole body first.
                server {{
                    listen 127.0.0.1:{self.port};
                    location / {{ proxy_pass http://127.0.0.1:{behind}; }}
                }}
                server {{ listen 127.0.0.1:{behind}; location / {{ return 404; }} }}
            }}
            """
        )
        nginx = Process(("nginx", "-c", f"{directory}/nginx.conf", "-p", str(directory)))
        self.addCleanup(nginx.stop)
        deadline = time.monotonic() + TIMEOUT
        while not listens(self.port) or not listens(behind):
            self.assertIsNone(nginx.child.poll(), nginx.text)
            self.assertLess(time.monotonic(), deadline, nginx.text)
            time.sleep(0.05)

    def statuses(self, data: bytes) -> list[bytes]:
        """Send a request and one behind it; return the statuses of the responses."""
        received = b""
        with socket.create_connection(("127.0.0.1", self.port), TIMEOUT) as client:
            client.sendall(data + GET + b"Connection: close\r\n\r\n")
            # nginx resets the connection if it has not read the second request.
            with contextlib.suppress(ConnectionResetError):
                while data := client.recv(65536):
                    received += data
        return re.findall(rb"^HTTP/1\.1 (\d+)", received, re.MULTILINE)

    def test_each_row(self) -> None:
        for request, _, _, expected, _ in rows():
            found = []
            for data in REQUESTS[request]:
                statuses = self.statuses(data)
                # Both requests reach the server behind nginx, or none does.
                self.assertIn(statuses, ([b"404", b"404"], [b"400"], [b"501"]), request)
                found.append(statuses[0] == b"404")
            with self.subTest(request=request):
                self.assertEqual(answer(found), expected)

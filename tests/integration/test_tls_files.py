"""Files of TLS that an operator gets wrong: at the check, at the start and at SIGHUP.

Nothing hangs or asks, the line names the path, and the service goes on with the old certificates.
"""

from __future__ import annotations

import fcntl
import os
import pty
import shutil
import signal
import socket
import ssl
import subprocess
import tempfile
import termios
import time
from pathlib import Path

from cryptography.hazmat.primitives.serialization import Encoding, PrivateFormat

from tests.support.processes import TOPICSVC, TWISTD, TwistdProcess, environment, free_port
from tests.support.tls_files import PASSPHRASE, Party, certificate_pem, key_pem
from tests.support.twistd_case import TwistdTestCase

TIMEOUT = 60
EC_PARAMETERS = b"-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n"


class TlsFileTests(TwistdTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.root, self.server = Party.new("root"), Party.new("unit1.example")
        self.root_pem = certificate_pem(self.root.certify(self.root, is_ca=True))
        self.leaf = self.root.certify(self.server, ["unit1.example", "*.unit1.example"])
        self.good = key_pem(self.server.key) + certificate_pem(self.leaf)
        self.pems = self.directory / "pems"
        self.pems.mkdir()
        self.path = self.pems / "a.pem"
        self.put(self.good)
        self.file = self.configure(
            f"ssl:0:privateKey={self.path}:interface=127.0.0.1",
            f"tls:{self.pems}:port=0:interface=127.0.0.1",
        )

    def put(self, content: bytes | str) -> None:
        """Make the file: its content; a link to a target; or a FIFO or a directory."""
        if self.path.is_dir() and not self.path.is_symlink():
            self.path.rmdir()
        self.path.unlink(missing_ok=True)
        if content == "fifo":
            os.mkfifo(self.path)
        elif content == "directory":
            self.path.mkdir()
        elif isinstance(content, str):
            self.path.symlink_to(content)
        else:
            self.path.write_bytes(content)

    def unusable(self) -> dict[str, tuple[bytes | str, str]]:
        """Contents of the file, and words of the problem."""
        leaf, key = certificate_pem(self.leaf), key_pem(self.server.key)
        pkcs8 = key_pem(self.server.key, passphrase=PASSPHRASE)
        traditional = key_pem(self.server.key, PrivateFormat.TraditionalOpenSSL, PASSPHRASE)
        other = Party.new("other")
        common_name = certificate_pem(self.root.certify(self.server))
        return {
            "an encrypted key": (pkcs8 + leaf, "private key is encrypted"),
            "an encrypted key of the old format": (traditional + leaf, "private key is encrypted"),
            "the key of another certificate": (key_pem(other.key) + leaf, ""),
            "no key": (leaf, ""),
            "no certificate": (key, ""),
            "an empty file": (b"", "it is empty"),
            "DER": (self.leaf.public_bytes(Encoding.DER), "DER, not PEM"),
            "a byte order mark": (b"\xef\xbb\xbf" + self.good, "byte order mark"),
            "an incomplete file": (self.good[:-40], "has no end"),
            "only a common name": (key + common_name, "subjectAltName"),
            "a dangling link": ("nowhere", "which does not exist"),
            "a FIFO": ("fifo", "it is a FIFO"),
            "a directory": ("directory", "it is a directory"),
            "a device": ("/dev/zero", "it is a device"),
            "a terminal": ("/dev/tty", "it is a device"),
            "a huge file": (self.good + b"\n" * 2**20, "more than 1048576 bytes"),
        }

    def run_on_terminal(self, command: list[str]) -> tuple[int, str]:
        """Run a command with a controlling terminal, where OpenSSL would ask."""
        ours, theirs = pty.openpty()

        def take_terminal() -> None:
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)

        child = subprocess.Popen(
            command,
            stdin=theirs,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment(),
            start_new_session=True,
            preexec_fn=take_terminal,  # noqa: PLW1509 - no threads run yet
        )
        try:
            output, _ = child.communicate(timeout=TIMEOUT)
        finally:
            if child.poll() is None:
                child.kill()
                child.wait()
            os.close(ours)
            os.close(theirs)
        return child.returncode, output

    def serial(self, port: int) -> int:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(cadata=self.root_pem.decode())
        with (
            socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT) as raw,
            context.wrap_socket(raw, server_hostname="cell1.UNIT1.example") as stream,
        ):
            return int(stream.getpeercert()["serialNumber"], 16)

    def test_the_check_and_the_start_refuse_unusable_files_on_one_line_each(self) -> None:
        check = [*TOPICSVC, "check", "--config", str(self.file)]
        start = [
            *(*TWISTD, "--nodaemon", "--pidfile=", "topicsvc"),
            *("--config", str(self.file)),
        ]
        for name, (content, words) in self.unusable().items():
            with self.subTest(name):
                self.put(content)
                for command in (check, start) if "key" in name or "FIFO" in name else (check,):
                    code, output = self.run_on_terminal(command)
                    self.assertEqual(code, 1, output)
                    lines = output.splitlines()
                    self.assertEqual(len(lines), 2, "one line for each endpoint\n" + output)
                    for line in lines:
                        self.assertIn(str(self.pems), line)
                        self.assertIn(words, line)
        for content in (
            self.good + self.root_pem,
            EC_PARAMETERS + self.good,
            self.good.replace(b"\n", b"\r\n"),
        ):
            self.put(content)
            self.assertEqual(self.run_on_terminal(check), (0, f"{self.file}: good\n"))

    def test_sighup_with_unusable_files_changes_nothing_and_does_not_hang(self) -> None:
        self.put(self.good + self.root_pem)
        service = self.start("--config", str(self.file))
        before = [self.serial(port) for port in service.ports]
        for name, (content, words) in self.unusable().items():
            with self.subTest(name):
                self.put(content)
                count = len(service.output)
                service.child.send_signal(signal.SIGHUP)
                service.wait_for(r"(?:.*not reloaded.*\n){2}", after=count)
                lines = service.output[count:]
                self.assertEqual(len(lines), 2, lines)
                for line in lines:
                    self.assertIn(str(self.pems), line)
                    self.assertIn(words, line)
                self.assertEqual([self.serial(port) for port in service.ports], before)
        renewed = self.root.certify(self.server, ["*.UNIT1.Example"])
        self.put(key_pem(self.server.key) + certificate_pem(renewed) + self.root_pem)
        count = len(service.output)
        service.child.send_signal(signal.SIGHUP)
        service.wait_for("reloaded: ", after=count)
        self.assertEqual(len(service.output), count + 1, "a valid reload is one line")
        for port in service.ports:
            self.assertEqual(self.serial(port), renewed.serial_number)
        self.assertNotIn("Traceback", service.text)
        self.assertNotIn("PRIVATE", service.text)
        service.stop()

    def test_untrusted_handshakes_write_no_line(self) -> None:
        """Unknown, missing and non-ASCII names, and protocols that are not served."""
        service = self.start("--config", str(self.file))
        count = len(service.output)
        for port in service.ports:
            for name, protocols in (
                *((name, None) for name in ("nowhere.example", None, "x" * 60)),
                ("unit1.example", ["h2"]),
                (None, ["h2", "h3"]),
            ):
                context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
                context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
                if protocols:
                    context.set_alpn_protocols(protocols)
                with socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT) as raw:
                    try:
                        context.wrap_socket(raw, server_hostname=name).close()
                    except ssl.SSLError:
                        self.assertTrue(protocols, name)
                    else:
                        self.assertIsNone(protocols)
        service.child.send_signal(signal.SIGHUP)
        service.wait_for("reloaded: ", after=count)
        self.assertEqual(len(service.output), count + 1, service.output[count:])

    def test_a_directory_that_is_written_while_it_is_read(self) -> None:
        """SIGHUP during a renewal: either all is replaced or nothing, and nothing hangs."""
        service = self.start("--config", str(self.file))
        for number in range(20):
            count = len(service.output)
            renewed = self.root.certify(self.server, ["*.unit1.example"])
            content = key_pem(self.server.key) + certificate_pem(renewed)
            with self.path.open("wb") as file:
                file.write(content[: number * 40])
                file.flush()
                service.child.send_signal(signal.SIGHUP)
                time.sleep(0.001 * number)
                file.write(content[number * 40 :])
            service.wait_for("reloaded", after=count)
        self.assertNotIn("Traceback", service.text)
        count = len(service.output)
        service.child.send_signal(signal.SIGHUP)
        # Lines of the signals before may come late.
        service.wait_for(" reloaded: ", after=count)
        end = time.monotonic() + TIMEOUT
        while self.serial(service.ports[1]) != renewed.serial_number:
            self.assertLess(time.monotonic(), end, service.text)


class DirectoryTests(TwistdTestCase):
    """Where relative paths start from."""

    def test_relative_paths_start_from_the_start_directory(self) -> None:
        """``--rundir`` changes the directory of the process: at the start and at SIGHUP."""
        # A short path, for UNIX sockets.
        work = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, work)
        (work / "etc").mkdir(parents=True)
        (work / "pems").mkdir()
        server = Party.new("unit1.example")
        pem = key_pem(server.key) + certificate_pem(server.certify(server, ["unit1.example"]))
        (work / "pems/a.pem").write_bytes(pem)
        self.key_file.rename(work / "key")
        self.key_file = Path("key")
        self.configure("tls:pems:port=0:interface=127.0.0.1", "unix:socket").rename(
            work / "etc/topicsvc.toml"
        )
        self.directory = self.directory / "run"
        self.directory.mkdir()
        service = TwistdProcess(
            *("--config", "etc/topicsvc.toml", "--admin", "unix:admin"),
            directory=self.directory,
            cwd=work,
        )
        self.addCleanup(service.stop)
        for name in ("socket", "admin"):
            self.assertTrue((work / name).is_socket())
        (work / "pems/b.pem").write_bytes(pem)
        count = len(service.output)
        service.child.send_signal(signal.SIGHUP)
        service.wait_for(" reloaded: the certificate of tls:pems:port=0", after=count)
        (work / "pems/b.pem").write_bytes(b"")
        service.child.send_signal(signal.SIGHUP)
        service.wait_for(f"not reloaded.*{work}/pems/b.pem: it is empty")
        check = subprocess.run(
            [*TOPICSVC, "check", "--config", "etc/topicsvc.toml"],
            cwd=work,
            env=environment(),
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            check=False,
        )
        self.assertIn("pems/b.pem: it is empty", check.stderr)


class EndpointTests(TwistdTestCase):
    """Endpoints that cannot listen."""

    def test_check_and_doctor_say_so(self) -> None:
        port = free_port()
        file = self.configure(
            f"tcp:{port}:interface=127.0.0.1",
            f"haproxy:tcp:{port}",
            "unix:/nowhere/socket",
            f"tcp:{free_port()}:interface=192.0.2.77",
        )
        text = file.read_text()
        file.write_text(f'admin = "tcp:{port}:interface=127.0.0.1"\n' + text)
        for command in ("check", "doctor"):
            output = self.run_command(command, file)
            for words in (
                f"listen 'tcp:{port}:interface=127.0.0.1' listens there already",
                "/nowhere: No such file or directory: make this directory",
                "interface=192.0.2.77: no interface of this host has this address",
            ):
                self.assertIn(words, output)
            for setting in ("listen", "admin"):
                self.assertRegex(output, rf"{setting}:? .*: listen 'tcp:{port}.* listens there")
        file.write_text(file.read_text().replace("unix:/nowhere/socket", "stdio:"))
        for command in ("check", "doctor"):
            self.assertIn("listen: 'stdio:': it has no clients", self.run_command(command, file))

    def run_command(self, command: str, file: Path) -> str:
        """Run a command on a configuration that is wrong; return its output."""
        done = subprocess.run(
            [*TOPICSVC, command, "--config", str(file)],
            env=environment(),
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            check=False,
        )
        self.assertEqual(done.returncode, 1, done.stdout + done.stderr)
        return done.stdout + done.stderr

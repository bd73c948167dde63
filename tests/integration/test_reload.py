"""SIGHUP to a process: certificates, settings, and invalid files."""

from __future__ import annotations

import json
import os
import signal
import socket

from cryptography import x509
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.support.certificates import Authority
from tests.support.processes import TwistdProcess
from tests.support.twistd_case import LOOPBACK, WEBSOCKET_PATH, TwistdTestCase
from topicsvc.validators.local import make_key, write_key

HOST = "cell1.unit1.example"
NAMES = ("unit1.example", "*.unit1.example")


class ReloadTestCase(TwistdTestCase):
    def reload(self, service: TwistdProcess, pattern: str) -> str:
        """Send SIGHUP and wait until the log matches `pattern`; return the new log lines."""
        before = len(service.output)
        service.child.send_signal(signal.SIGHUP)
        service.wait_for(pattern, after=before)
        return "".join(service.output[before:])


class CertificateTests(ReloadTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.authority = Authority(self.directory)
        self.key_pem, self.cert_pem = self.authority.issue(*NAMES)
        self.pems = self.directory / "pems"
        self.pems.mkdir()
        self.bundle()
        self.service = self.start(
            "--config",
            str(
                self.configure(
                    f"ssl:0:privateKey={self.key_pem}:certKey={self.cert_pem}:interface=127.0.0.1",
                    f"tls:{self.pems}:port=0:interface=127.0.0.1",
                )
            ),
        )
        self.context = self.authority.client_context()

    def bundle(self) -> None:
        (self.pems / "unit.pem").write_bytes(self.key_pem.read_bytes() + self.cert_pem.read_bytes())

    def renew(self) -> int:
        """Replace the certificate on disk; return its serial number."""
        self.authority.issue(*NAMES)
        self.bundle()
        return x509.load_pem_x509_certificate(self.cert_pem.read_bytes()).serial_number

    def serials(self) -> list[int]:
        """Serial numbers of the certificates that both ports show to new clients."""
        serials = []
        for port in self.service.ports:
            with (
                socket.create_connection(("127.0.0.1", port), timeout=10) as raw,
                self.context.wrap_socket(raw, server_hostname=HOST) as stream,
            ):
                shown = stream.getpeercert(binary_form=True)
            serials.append(x509.load_der_x509_certificate(shown).serial_number)
        return serials

    def test_new_clients_get_the_new_certificate_and_sessions_go_on(self) -> None:
        before = self.serials()
        old = [
            self.connect(port, HOST, WEBSOCKET_PATH, self.context) for port in self.service.ports
        ]
        for client in old:
            self.present(client, self.token())
        serial = self.renew()
        self.assertEqual(self.serials(), before, "not before SIGHUP")
        log = self.reload(self.service, "reloaded: ")
        self.assertEqual(log.count(f"(serial {serial:x}, until "), 2, log)
        self.assertEqual(self.serials(), [serial, serial])
        self.assertNotIn(serial, before)
        port = self.service.ports[0]
        self.assertEqual(
            self.send(port, HOST, "/box1/col/topic/name", b"1", "POST", self.context), 200
        )
        for client in old:
            self.assertEqual(json.loads(client.recv())["Body"], 1)
        new = self.connect(port, HOST, WEBSOCKET_PATH, self.context)
        self.present(new, self.token())
        self.assertNotIn("PRIVATE", self.service.text)

    def test_a_broken_file_changes_nothing(self) -> None:
        before = self.serials()
        self.renew()
        (self.pems / "unit.pem").write_text("-----BEGIN CERTIFICATE-----\nnonsense")
        log = self.reload(self.service, "not reloaded")
        self.assertRegex(
            log, r"not reloaded, the old settings stay in effect: \S+\.toml: listen: 'tls:"
        )
        self.assertEqual(self.serials(), before, "the valid file is not loaded either")
        self.bundle()
        self.authority.issue(*NAMES, name="other")
        self.key_pem.write_bytes((self.directory / "other-key.pem").read_bytes())
        log = self.reload(self.service, "not reloaded")
        self.assertIn("do not match", log)
        self.assertEqual(self.serials(), before)
        serial = self.renew()
        self.reload(self.service, "reloaded: ")
        self.assertEqual(self.serials(), [serial, serial], "loaded after the repair")


class RollingRestartTests(ReloadTestCase):
    """SIGUSR2 to a process without workers."""

    def assert_it_goes_on(self, *options: str) -> None:
        service = self.start("--config", str(self.configure(LOOPBACK)), *options)
        client = self.connect(service.ports[0], HOST, WEBSOCKET_PATH)
        self.present(client, self.token())
        for count in (1, 2):
            service.child.send_signal(signal.SIGUSR2)
            line = r"SIGUSR2: a rolling restart needs workers: restart the service instead\n"
            service.wait_for(f"(?s)(?:{line}.*){{{count}}}")
        self.assertEqual(
            self.send(service.ports[0], HOST, "/box1/col/topic/name", b"1", "POST"), 200
        )
        self.assertEqual(json.loads(client.recv())["Body"], 1)
        service.stop()
        self.assertIn("stopping: 1 session", service.text)

    def test_it_writes_a_line_and_keeps_its_sessions(self) -> None:
        self.assert_it_goes_on()

    def test_it_does_so_with_workers_auto_on_one_processor_too(self) -> None:
        processors = os.sched_getaffinity(0)
        self.addCleanup(os.sched_setaffinity, 0, processors)
        os.sched_setaffinity(0, {min(processors)})
        self.assert_it_goes_on("--workers", "auto")


class SettingsTests(ReloadTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.file = self.configure(LOOPBACK)
        self.service = self.start("--config", str(self.file))
        [self.port] = self.service.ports

    def change(self, before: str, after: str) -> None:
        text = self.file.read_text()
        self.assertIn(before, text)
        self.file.write_text(text.replace(before, after))

    def is_accepted(self, token: str) -> bool:
        client = self.connect(self.port, HOST, WEBSOCKET_PATH)
        client.send(json.dumps({"AccessToken": token}))
        return json.loads(client.recv())["Result"] == "Success"

    def test_a_new_key_and_session_settings(self) -> None:
        session = self.connect(self.port, HOST, WEBSOCKET_PATH)
        self.present(session, self.token())
        old_token = self.token()
        self.key, key_file = make_key(), self.directory / "key2"
        write_key(key_file, self.key)
        self.change(str(self.key_file), str(key_file))
        self.change(
            "[validator]",
            "[session]\nmax_message = 2000\n[send]\nmax_body = 10\n[validator]",
        )
        log = self.reload(self.service, "reloaded: ")
        self.assertIn("reloaded: [send], [session], [validator]\n", log)
        self.assertTrue(self.is_accepted(self.token()))
        self.assertFalse(self.is_accepted(old_token))
        client = self.connect(self.port, HOST, WEBSOCKET_PATH)
        client.send("x" * 3000)
        self.assertEqual(self.assertRaises(ConnectionClosed, client.recv).rcvd.code, 1009)
        self.assertEqual(self.send(self.port, HOST, "/box1/col/topic/name", b"1" * 20), 413)
        self.assertEqual(self.send(self.port, HOST, "/box1/col/topic/name", b"1"), 200)
        self.assertEqual(json.loads(session.recv())["Body"], 1, "the session goes on")
        self.change("max_body = 10", "enabled = false")
        self.reload(self.service, r"reloaded: \[send\]")
        self.assertNotEqual(self.send(self.port, HOST, "/box1/col/topic/name", b"1"), 200)

    def test_limits(self) -> None:
        session = self.connect(self.port, HOST, WEBSOCKET_PATH)
        self.present(session, self.token())
        self.change("[validator]", "[limits]\nper_address = 1\n[validator]")
        self.assertIn("reloaded: [limits]\n", self.reload(self.service, "reloaded: "))
        refused = self.assertRaises(InvalidStatus, self.connect, self.port, HOST, WEBSOCKET_PATH)
        self.assertEqual(refused.response.status_code, 503)
        self.present(session, self.token())

    def test_an_invalid_file_changes_nothing_and_all_errors_are_logged(self) -> None:
        self.change("[validator]", "[session]\nmax_message = 2000\nping_limit = 0\n[validator]")
        self.change(str(self.key_file), "nowhere")
        log = self.reload(self.service, r"(?s)ping_limit.*key_file|key_file.*ping_limit")
        for problem in ("session.ping_limit: must be ", "validator.key_file: nowhere: "):
            self.assertRegex(
                log, rf"not reloaded, the old settings stay in effect: \S+\.toml: {problem}"
            )
        self.assertTrue(self.is_accepted(self.token()))
        client = self.connect(self.port, HOST, WEBSOCKET_PATH)
        client.send("x" * 3000)
        self.assertEqual(json.loads(client.recv())["Reason"], "Invalid message")
        self.file.write_text("not TOML")
        self.reload(
            self.service, r"not reloaded, the old settings stay in effect: \S+\.toml: not TOML"
        )
        self.file.unlink()
        self.reload(self.service, "not reloaded, the old settings stay in effect: .*No such file")
        self.assertTrue(self.is_accepted(self.token()))

    def test_settings_that_need_a_restart_are_logged(self) -> None:
        self.change("unit1.example", "unit2.example")
        self.change("drain = 0", "drain = 0.5")
        log = self.reload(self.service, "reloaded: ")
        self.assertIn("unit_url, hosts or validator.cell_urls: needs a restart", log)
        self.assertIn("reloaded: [stop]\n", log)
        self.assertTrue(self.is_accepted(self.token()))

    def test_a_send_queue_that_the_history_in_effect_does_not_fit_is_refused(self) -> None:
        self.change("[validator]", "[session]\nsend_queue = 65536\n[validator]")
        self.reload(
            self.service,
            "not reloaded, the old settings stay in effect: history.bytes: 524288 is more than "
            "half of session.send_queue, 65536",
        )
        self.assertTrue(self.is_accepted(self.token()))


class DemoTests(ReloadTestCase):
    def test_a_demo_keeps_its_key(self) -> None:
        service = self.start("--demo", "--listen", LOOPBACK)
        self.reload(service, "reloaded: nothing has changed")

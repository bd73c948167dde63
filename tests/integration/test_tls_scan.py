"""A TLS scanner reports nothing of medium severity or above.

The certificates are from an authority of the test, which the scanner trusts. All findings count
except those about the scanner itself, and one check that it cannot do reliably.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

from tests.integration.support.requirements import need
from tests.support.certificates import Authority
from tests.support.processes import environment
from tests.support.twistd_case import TwistdTestCase

HOST = "unit1.example"
TIMEOUT = 900

CHECKS = ["-p", "-s", "-f", "-P", "-S", "-h", "-U"]
"""Protocols, ciphers, forward secrecy, preferences, certificate, headers, vulnerabilities."""

HARMLESS = {"OK", "INFO", "LOW"}
NOT_CHECKED = {"WARN", "FATAL"}
"""The scanner could not check something, or not scan. The others are MEDIUM, HIGH and CRITICAL."""

ABOUT_THE_SCANNER = {"engine_problem", "scanTime"}
"""Findings about the scanner's own OpenSSL, and the duration of the scan."""

BY_CHANCE = {"sessionresumption_ticket"}
"""The scanner's first client ends at the end of its empty input, often before the session tickets
of TLS 1.3 arrive, and the second one fails without them. The same happens with other servers.
`tests/end_to_end/test_tls.py` tests resumption."""

ATTEMPTS = 3


class ScanTests(TwistdTestCase):
    def test_nothing_of_medium_severity_or_above(self) -> None:
        need(shutil.which("testssl"), "testssl.sh (tests/integration/install.sh)")
        authority = Authority(self.directory)
        key, certificate = authority.issue(HOST)
        certificates = self.directory / "certificates"
        certificates.mkdir()
        (certificates / f"{HOST}.pem").write_bytes(certificate.read_bytes() + key.read_bytes())
        endpoints = [
            f"ssl:0:privateKey={key}:certKey={certificate}:interface=127.0.0.1",
            f"tls:{certificates}:port=0:interface=127.0.0.1",
        ]
        service = self.start("--config", str(self.configure(*endpoints)))
        scans = [self.scan(port, authority) for port in service.ports]
        first = [self.results(scan, port) for scan, port in zip(scans, service.ports, strict=True)]
        for endpoint, port, found in zip(endpoints, service.ports, first, strict=True):
            with self.subTest(endpoint=endpoint):
                output, findings = found
                for _ in range(ATTEMPTS - 1):
                    # A check can fail on a busy machine: repeat the scan without the other one.
                    if any(each["severity"] in NOT_CHECKED for each in findings):
                        output, findings = self.results(self.scan(port, authority), port)
                by_id = {each["id"]: each["finding"] for each in findings}
                # The scan is complete, and it was a scan of this service.
                self.assertEqual(by_id["cert_chain_of_trust"], "passed.", output)
                self.assertIn("TLS1.3", by_id["protocol_negotiated"])
                self.assertLessEqual({"SSLv2", "heartbleed", "LOGJAM", "RC4"}, set(by_id))
                problems = [each for each in findings if each["severity"] not in HARMLESS]
                self.assertEqual(problems, [])

    def results(self, scan: subprocess.Popen[str], port: int) -> tuple[str, list[dict[str, str]]]:
        output = scan.communicate(timeout=TIMEOUT)[0]
        findings: list[dict[str, str]] = json.loads(self.report(port).read_text())
        self.report(port).unlink()
        return output, [
            each
            for each in findings
            if each["id"] not in ABOUT_THE_SCANNER
            and not (each["id"] in BY_CHANCE and each["severity"] in NOT_CHECKED)
        ]

    def report(self, port: int) -> Path:
        return self.directory / f"scan-{port}.json"

    def scan(self, port: int, authority: Authority) -> subprocess.Popen[str]:
        """Start a scan of a port."""
        scan = subprocess.Popen(
            [
                *("testssl", "--quiet", "--color", "0", "--warnings", "batch"),
                *("--nodns", "none", "--ip", "127.0.0.1", "--add-ca", str(authority.ca_file)),
                *(*CHECKS, "--jsonfile", str(self.report(port)), f"{HOST}:{port}"),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment(),
        )
        self.addCleanup(self.end, scan)
        return scan

    def end(self, scan: subprocess.Popen[str]) -> None:
        if scan.poll() is None:
            scan.kill()
            scan.wait()
        assert scan.stdout is not None
        scan.stdout.close()

"""What a scanner of TLS servers has to say: nothing of medium severity or above.

The certificates are of an authority of the test's own, which the scanner is told to trust.
Nothing is taken off what it finds but what it says of itself.
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
TIMEOUT = 240

CHECKS = ["-p", "-s", "-f", "-P", "-S", "-h", "-U"]
"""Protocols, ciphers, forward secrecy, preferences, certificate, headers, vulnerabilities."""

HARMLESS = {"OK", "INFO", "LOW"}
COULD_NOT_LOOK = "WARN"
"""Beside them there are MEDIUM, HIGH, CRITICAL and FATAL."""

OF_THE_SCANNER = {"engine_problem", "scanTime"}
"""What is said of the scanner's own OpenSSL, and how long it took."""


class ScanTests(TwistdTestCase):
    def test_nothing_of_medium_severity_or_above(self) -> None:
        need(shutil.which("testssl"), "testssl.sh")
        authority = Authority(self.directory)
        key, certificate = authority.issue(HOST)
        chosen = self.directory / "certificates"
        chosen.mkdir()
        (chosen / f"{HOST}.pem").write_bytes(certificate.read_bytes() + key.read_bytes())
        endpoints = [
            f"ssl:0:privateKey={key}:certKey={certificate}:interface=127.0.0.1",
            f"tls:{chosen}:port=0:interface=127.0.0.1",
        ]
        service = self.start("--config", str(self.configure(*endpoints)))
        scans = [self.scan(port, authority) for port in service.ports]
        first = [self.found(scan, port) for scan, port in zip(scans, service.ports, strict=True)]
        for endpoint, port, found in zip(endpoints, service.ports, first, strict=True):
            with self.subTest(endpoint=endpoint):
                output, findings = found
                if any(each["severity"] == COULD_NOT_LOOK for each in findings):
                    # Beside the other scan, on a busy machine: so again, and alone.
                    output, findings = self.found(self.scan(port, authority), port)
                told = {each["id"]: each["finding"] for each in findings}
                # It has looked to the end, and at this service.
                self.assertEqual(told["cert_chain_of_trust"], "passed.", output)
                self.assertIn("TLS1.3", told["protocol_negotiated"])
                self.assertLessEqual({"SSLv2", "heartbleed", "LOGJAM", "RC4"}, set(told))
                worse = [
                    each
                    for each in findings
                    if each["severity"] not in HARMLESS and each["id"] not in OF_THE_SCANNER
                ]
                self.assertEqual(worse, [])

    def found(self, scan: subprocess.Popen[str], port: int) -> tuple[str, list[dict[str, str]]]:
        output = scan.communicate(timeout=TIMEOUT)[0]
        findings: list[dict[str, str]] = json.loads(self.report(port).read_text())
        self.report(port).unlink()
        return output, findings

    def report(self, port: int) -> Path:
        return self.directory / f"scan-{port}.json"

    def scan(self, port: int, authority: Authority) -> subprocess.Popen[str]:
        """Begin to scan a port of this machine."""
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

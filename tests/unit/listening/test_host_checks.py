"""What this host lacks for an endpoint is found without listening."""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from topicsvc.listening import host_checks
from topicsvc.listening.endpoint_string import EndpointString
from topicsvc.listening.host_checks import host_problem


def problem(text: str) -> str | None:
    return host_problem(EndpointString.parse(text))


class UnixTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.directory = Path(os.path.relpath(self.mktemp()))
        self.directory.mkdir()
        self.path = self.directory / "s"

    def test_a_free_name_and_a_socket(self) -> None:
        self.assertIsNone(problem(f"unix:{self.path}"))
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(str(self.path))
            self.assertIsNone(problem(f"unix:{self.path}"))

    def test_a_directory_that_does_not_exist(self) -> None:
        text = problem(f"unix:{self.directory}/nowhere/s")
        self.assertEqual(
            text, f"{self.directory}/nowhere: No such file or directory: make this directory"
        )

    def test_another_file_of_the_name(self) -> None:
        self.path.write_bytes(b"")
        self.assertIn("another file has this name", problem(f"unix:{self.path}") or "")
        self.assertIn("it is no directory", problem(f"unix:{self.path}/s") or "")

    def test_a_long_path(self) -> None:
        self.assertIn("at most 107 bytes", problem(f"unix:/{'x' * 107}") or "")
        self.assertIsNone(problem(f"unix:/{'x' * 106}"))

    def test_no_path_and_a_path_that_no_file_can_have(self) -> None:
        for text in ("unix:", "unix:address=", "unix:/run/a\0b", "unix:\0abstract"):
            self.assertEqual(
                problem(text),
                "write the path of a UNIX socket behind unix:, without a NUL character",
            )

    def test_an_endpoint_without_an_address(self) -> None:
        self.assertIsNone(problem("systemd:domain=INET:index=0"))


class InterfaceTests(SynchronousTestCase):
    def test_addresses_of_this_host(self) -> None:
        for text in ("tcp:1", "tcp:1:interface=127.0.0.1", "tcp:1:interface=0.0.0.0",
                     "ssl:1:interface=127.0.0.1", "haproxy:tcp:1:interface=127.0.0.1"):  # fmt: skip
            self.assertIsNone(problem(text))

    def test_an_address_that_no_interface_has(self) -> None:
        for text in ("tcp:1:interface=192.0.2.1", "tls:/x:interface=192.0.2.1"):
            expected = "interface=192.0.2.1: no interface of this host has this address"
            self.assertEqual(problem(text), expected)

    def test_what_is_no_address(self) -> None:
        def refuse(*_: Any, **__: Any) -> Any:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

        self.patch(host_checks.socket, "getaddrinfo", refuse)
        self.assertEqual(
            problem("tcp:1:interface=eth7"),
            "interface=eth7 is no address: write an IP address of this host",
        )

    def test_a_host_without_ipv6(self) -> None:
        class NoSocket:
            def __init__(self, *_: Any) -> None:
                raise OSError(errno.EAFNOSUPPORT, "")

        self.patch(host_checks.socket, "socket", NoSocket)
        self.assertIn("this host has no IPv6", problem("tls:/x") or "")

"""Endpoint strings: their parts, their paths, and which of them exclude one another."""

from __future__ import annotations

from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from topicsvc.listening.endpoint_string import EndpointString, with_absolute_paths


class ParseTests(SynchronousTestCase):
    def test_the_parts(self) -> None:
        found = EndpointString.parse(r"haproxy:haproxy:tls:/a\:b\\c:port=443:interface=\:\:1")
        self.assertEqual((found.kind, found.proxies), ("tls", 2))
        self.assertEqual(found.get("path"), r"/a:b\c")
        self.assertEqual((found.get("port"), found.interface), ("443", "::1"))

    def test_positional_and_default_parameters(self) -> None:
        for text, port, interface in (
            ("tcp:8080", "8080", ""),
            ("tcp:8080:127.0.0.1", "8080", "127.0.0.1"),
            ("tcp6:8080", "8080", "::"),
            ("ssl:443:k:c", "443", ""),
            ("tls:/pems", "", "::"),
        ):
            found = EndpointString.parse(text)
            self.assertEqual((found.get("port"), found.interface), (port, interface))

    def test_any_text_is_parsed(self) -> None:
        for text in ("", ":", "\\", "tcp:\\", "a=b", "::::", "tcp", "haproxy:", "\0"):
            EndpointString.parse(text)


class ConflictTests(SynchronousTestCase):
    def conflict(self, one: str, other: str) -> bool:
        first, second = EndpointString.parse(one), EndpointString.parse(other)
        found = first.conflicts_with(second)
        self.assertEqual(second.conflicts_with(first), found)
        return found

    def test_endpoints_that_exclude_one_another(self) -> None:
        for one, other in (
            ("tcp:8080", "tcp:8080"),
            ("tcp:8080", "tcp:port=8080"),
            ("tcp:8080", "tcp:08080"),
            ("tcp:8080:interface=localhost", "tcp:8080:interface=127.0.0.1"),
            ("tcp:8080:interface=LOCALHOST", "tcp6:8080"),
            ("tcp:8080", "haproxy:tcp:8080"),
            ("tcp:8080", "ssl:8080:privateKey=k"),
            ("tcp:443", "tls:/pems"),
            ("tcp:8080", "tcp:8080:interface=127.0.0.1"),
            ("tcp:8080:interface=127.0.0.1", "tcp:8080:interface=0.0.0.0"),
            (r"tcp:1:interface=\:\:1", r"tcp:1:interface=0\:0\:\:1"),
            (r"tcp:1:interface=127.0.0.1", r"tcp6:1"),
            (r"tcp:1:interface=127.0.0.1", r"tcp:1:interface=\:\:ffff\:127.0.0.1"),
            ("unix:/run/a", "unix:/run//a:mode=600"),
            ("systemd:domain=INET:index=0", "haproxy:systemd:domain=INET6:index=0"),
        ):
            self.assertTrue(self.conflict(one, other), (one, other))

    def test_endpoints_that_do_not(self) -> None:
        for one, other in (
            ("tcp:8080", "tcp:8081"),
            ("tcp:0", "tcp:0"),
            ("tcp:0", "tcp:00"),
            ("tcp:8080:interface=localhost", "tcp:8080:interface=127.0.0.2"),
            ("tcp:8080:interface=127.0.0.1", "tcp:8080:interface=127.0.0.2"),
            (r"tcp:1:interface=\:\:1", "tcp:1:interface=127.0.0.1"),
            (r"tcp:1:interface=\:\:1", "tcp:1"),
            ("unix:/run/a", "unix:/run/b"),
            ("unix:/run/a", "tcp:8080"),
            ("systemd:domain=INET:index=0", "systemd:domain=INET:index=1"),
            ("systemd:domain=INET:name=a", "systemd:domain=INET:name=b"),
            ("nonsense:1", "nonsense:1"),
        ):
            self.assertFalse(self.conflict(one, other), (one, other))


class PathTests(SynchronousTestCase):
    def test_relative_paths_become_absolute(self) -> None:
        for text, expected in (
            ("tls:pems:port=443", "tls:/etc/x:pems:port=443"),
            ("tls:path=pems:port=443", "tls:path=/etc/x:pems:port=443"),
            ("haproxy:tls:pems", "haproxy:tls:/etc/x:pems"),
            ("ssl:443:k.pem:c.pem", "ssl:443:/etc/x:k.pem:/etc/x:c.pem"),
            (
                "ssl:443:privateKey=k:certKey=c:extraCertChain=x:dhParameters=d",
                "ssl:443:privateKey=/etc/x:k:certKey=/etc/x:c:extraCertChain=/etc/x:x"
                ":dhParameters=/etc/x:d",
            ),
            ("unix:../run/a:mode=600", "unix:/etc/x:../run/a:mode=600"),
            ("unix:address=a", "unix:address=/etc/x:a"),
            (r"tls:a\:b", r"tls:/etc/x:a\:b"),
        ):
            absolute = with_absolute_paths(text, Path("/etc/x"))
            self.assertEqual(absolute, expected.replace("/etc/x:", "/etc/x/"))

    def test_other_parts_stay(self) -> None:
        for text in ("tcp:8080", "tls:/pems:port=443", "systemd:domain=INET:name=a", "", "x:y=z",
                     "ssl:443:privateKey=/k", "unix:/run/a", r"tcp:1:interface=\:\:1"):  # fmt: skip
            self.assertEqual(with_absolute_paths(text, Path("/etc/x")), text)

    def test_client_endpoints(self) -> None:
        self.assertEqual(
            with_absolute_paths("tls:host:61614:trustRoots=ca", Path("/etc/x"), is_client=True),
            "tls:host:61614:trustRoots=/etc/x/ca",
        )

    def test_a_directory_whose_name_needs_escapes(self) -> None:
        text = with_absolute_paths("tls:pems:port=443", Path("/a:b\\c"))
        self.assertEqual(EndpointString.parse(text).get("path"), "/a:b\\c/pems")


class LocalTests(SynchronousTestCase):
    def test_endpoints_that_only_programs_of_this_host_reach(self) -> None:
        for text in (
            "tcp:9090:interface=127.0.0.1",
            "tcp:9090:127.0.0.2",
            "haproxy:tcp:9090:interface=127.0.0.1",
            r"tcp6:9090:interface=\:\:1",
            r"tcp6:9090:interface=\:\:ffff\:127.0.0.1",
            "tcp:9090:interface=localhost",
            "unix:/run/x",
        ):
            self.assertTrue(EndpointString.parse(text).is_local, text)

    def test_endpoints_that_others_reach(self) -> None:
        for text in (
            "tcp:9090",
            "tcp:9090:interface=0.0.0.0",
            "tcp:9090:interface=192.0.2.1",
            "tcp:9090:interface=127.example",
            "tcp6:9090",
            r"tls:/x:port=9090:interface=\:\:",
            "systemd:domain=INET:index=0",
        ):
            self.assertFalse(EndpointString.parse(text).is_local, text)

"""The parent opens the sockets that workers listen on, and keeps them."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any
from unittest import mock

from twisted.internet import reactor
from twisted.internet.defer import inlineCallbacks
from twisted.internet.error import CannotListenError
from twisted.internet.protocol import Factory, Protocol
from twisted.python.systemd import ListenFDs
from twisted.trial.unittest import TestCase

from topicsvc.listening import endpoints
from topicsvc.listening.endpoint_string import EndpointString
from topicsvc.listening.shared_sockets import SharedSockets, sharing_problem


class SharedSocketsTests(TestCase):
    def open(self, text: str, count: int = 3) -> SharedSockets:
        shared = SharedSockets(text, count, reactor)
        self.addCleanup(shared.close)
        return shared

    def address(self, descriptor: int) -> Any:
        with socket.socket(fileno=os.dup(descriptor)) as each:
            return each.getsockname()

    def test_each_worker_has_its_own_socket_on_one_port(self) -> None:
        for text in ("tcp:0:interface=127.0.0.1", "haproxy:tcp:0:interface=127.0.0.1:backlog=9"):
            shared = self.open(text)
            self.assertEqual(len(set(shared.descriptors)), 3)
            self.assertEqual(len({self.address(each) for each in shared.descriptors}), 1)

    def test_ipv6_and_tls_endpoints_have_ports_too(self) -> None:
        for text, family in (
            ("tcp6:0:interface=\\:\\:1", socket.AF_INET6),
            ("tls:/nowhere:port=0", socket.AF_INET6),
            ("ssl:0:privateKey=/nowhere", socket.AF_INET),
            ("tcp:0:interface=\\:\\:1", socket.AF_INET6),
        ):
            for descriptor in self.open(text).descriptors:
                with socket.socket(fileno=os.dup(descriptor)) as each:
                    self.assertEqual(each.family, family, text)
                    self.assertTrue(each.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))

    def test_the_kernel_distributes_connections_and_backlogs_wait(self) -> None:
        shared = self.open("tcp:0:interface=127.0.0.1:backlog=500")
        target = self.address(shared.descriptors[0])
        clients = [socket.create_connection(target) for _ in range(120)]
        counts = []
        for descriptor in shared.descriptors:
            with socket.socket(fileno=os.dup(descriptor)) as listening:
                counts.append(0)
                while True:
                    try:
                        listening.accept()[0].close()
                    except BlockingIOError:
                        break
                    counts[-1] += 1
        for each in clients:
            each.close()
        self.assertEqual(sum(counts), 120)
        self.assertLess(max(counts), 120)

    @inlineCallbacks
    def test_a_socket_can_refuse_connections_until_its_worker_listens_again(self) -> Any:
        """Meanwhile the kernel gives all connections to the other sockets."""
        for text in (
            "tcp:{}:interface=127.0.0.1:backlog=90",
            "tcp6:{}:interface=\\:\\:1:backlog=90",
        ):
            with socket.socket(
                socket.AF_INET6 if text.startswith("tcp6") else socket.AF_INET
            ) as probe:
                probe.bind(("::1" if text.startswith("tcp6") else "127.0.0.1", 0))
                port = probe.getsockname()[1]
            shared = self.open(text.format(port), 2)
            address = self.address(shared.descriptors[0])
            for index in (0, 1):
                self.assertTrue(shared.refuse(index))
                self.assertFalse(shared.refuse(index))
                self.assertEqual(self.address(shared.descriptors[index])[:2], address[:2])
                clients = [socket.create_connection(address[:2], 10) for _ in range(40)]
                other = shared.descriptors[1 - index]
                self.assertEqual(self.waiting(other), 40)
                listening = os.dup(shared.descriptors[index])
                endpoint = endpoints.parse(text.format(port), reactor, listening)
                served = yield endpoint.listen(Factory.forProtocol(Protocol))
                clients += [socket.create_connection(address[:2], 10) for _ in range(40)]
                self.assertLess(self.waiting(other), 40)
                self.assertGreater(self.waiting(shared.descriptors[index]), 0)
                yield served.stopListening()
                for each in clients:
                    each.close()
            for index in (0, 1):
                shared.refuse(index)
            self.assertRaises(ConnectionRefusedError, socket.create_connection, address[:2], 10)

    def waiting(self, descriptor: int) -> int:
        """Accept all connections that wait; return their number."""
        count = 0
        with socket.socket(fileno=os.dup(descriptor)) as listening:
            while True:
                try:
                    listening.accept()[0].close()
                except BlockingIOError:
                    return count
                count += 1

    def test_what_is_one_socket_for_all_refuses_nothing(self) -> None:
        shared = self.open(f"unix:{os.path.relpath(self.mktemp())}")
        self.assertFalse(shared.refuse(1))

    def test_a_port_of_another_process_is_not_shared(self) -> None:
        """Another topicsvc with workers would get a part of the connections."""
        shared = self.open("tcp:0:interface=127.0.0.1")
        port = self.address(shared.descriptors[0])[1]
        text = f"tcp:{port}:interface=127.0.0.1"
        error = self.assertRaises(CannotListenError, SharedSockets, text, 2, reactor)
        self.assertEqual(error.port, port)
        shared.close()
        self.open(text)

    def test_an_address_that_this_host_does_not_have_is_an_error(self) -> None:
        text = "tcp:0:interface=192.0.2.1"
        error = self.assertRaises(CannotListenError, SharedSockets, text, 2, reactor)
        self.assertEqual(error.interface, "192.0.2.1")

    @inlineCallbacks
    def test_a_unix_socket_is_one_for_all_and_its_file_is_removed_at_the_end(self) -> Any:
        path = Path(os.path.relpath(self.mktemp()))
        shared = SharedSockets(f"unix:{path}:mode=600", 3, reactor)
        self.assertEqual(len(set(shared.descriptors)), 1)
        self.assertEqual(path.stat().st_mode & 0o777, 0o600)
        second = self.assertRaises(CannotListenError, SharedSockets, f"unix:{path}", 2, reactor)
        self.assertIn("socket", str(second))
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))  # it waits in the backlog
            yield shared.close()
        self.assertFalse(path.exists())

    def test_a_socket_of_systemd_is_one_for_all_and_stays_open(self) -> None:
        listening = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(listening.close)
        passed = mock.patch.object(
            ListenFDs, "inheritedDescriptors", return_value=[listening.fileno()]
        )
        with passed:
            shared = SharedSockets("systemd:domain=INET:index=0", 3, reactor)
        self.assertEqual(shared.descriptors, [listening.fileno()] * 3)
        shared.close()
        self.assertTrue(listening.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))

    def test_only_kinds_that_can_be_shared_are_allowed(self) -> None:
        for text in ("tcp:1", "tcp6:1", "ssl:1", "tls:x", "unix:x", "systemd:x", "haproxy:tcp:1"):
            self.assertIsNone(sharing_problem(EndpointString.parse(text)), text)
        problem = sharing_problem(EndpointString.parse("onion:80"))
        self.assertIn("workers cannot share it; allowed: tcp:", str(problem))

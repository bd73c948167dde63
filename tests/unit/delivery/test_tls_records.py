"""TLS records, made by OpenSSL's functions and by pyOpenSSL's methods: the same bytes arrive."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from OpenSSL import SSL
from OpenSSL._util import lib
from twisted.trial.unittest import SynchronousTestCase

from tests.support.certificates import Authority
from topicsvc.delivery import tls_records
from topicsvc.delivery.tls_records import DirectRecords, Records, make_records

SIZES = (1, 140, 16383, 16384, 16385, 32768, 100_000, 1_048_576)


def context(directory: str) -> SSL.Context:
    path = Path(directory)
    path.mkdir(parents=True)
    key, cert = Authority(path).issue("localhost")
    made = SSL.Context(SSL.TLS_METHOD)
    made.use_privatekey_file(str(key))
    made.use_certificate_file(str(cert))
    return made


def move(one: SSL.Connection, other: SSL.Connection) -> bool:
    """Carry what one has to say to the other; return whether there was anything."""
    try:
        other.bio_write(one.bio_read(1 << 20))
    except SSL.WantReadError:
        return False
    return True


class RecordsTests(SynchronousTestCase):
    """By pyOpenSSL's methods."""

    kind: type[Records] = Records

    def setUp(self) -> None:
        self.server = SSL.Connection(context(self.mktemp()), None)
        self.server.set_accept_state()
        self.client = SSL.Connection(SSL.Context(SSL.TLS_METHOD), None)
        self.client.set_connect_state()
        self.records = self.kind(self.server)

    def shake_hands(self) -> None:
        is_done = False
        while not is_done:
            is_done = True
            for one, other in ((self.client, self.server), (self.server, self.client)):
                try:
                    one.do_handshake()
                except SSL.WantReadError:
                    is_done = False
                move(one, other)
        self.received()

    def received(self) -> bytes:
        taken = b""
        try:
            while True:
                taken += self.client.recv(1 << 20)
        except SSL.WantReadError:
            return taken

    def carry(self, made: bytes | memoryview) -> bytes:
        self.client.bio_write(bytes(made))
        return self.received()

    def assert_no_error_is_left(self) -> None:
        self.assertEqual(lib.ERR_peek_error(), 0)

    def test_all_of_it_arrives_whatever_its_size(self) -> None:
        self.shake_hands()
        for size in SIZES:
            data = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
            made, rest = self.records.of(data)
            self.assertEqual(rest, b"")
            self.assertTrue(self.carry(made) == data, size)

    def test_nothing_is_no_record(self) -> None:
        self.shake_hands()
        self.assertEqual(self.records.of(b""), (b"", b""))
        self.assertEqual(self.carry(self.records.of(b"next")[0]), b"next")

    def test_before_the_handshake_nothing_is_taken(self) -> None:
        made, rest = self.records.of(b"too early")
        self.assertEqual((bytes(made), rest), (b"", b"too early"))
        self.assert_no_error_is_left()
        self.shake_hands()
        self.assertEqual(self.carry(self.records.of(b"now")[0]), b"now")

    def test_after_our_end_nothing_is_taken(self) -> None:
        self.shake_hands()
        self.server.shutdown()
        move(self.server, self.client)
        made, rest = self.records.of(b"too late" * 10_000)
        self.assertEqual((bytes(made), rest), (b"", b"too late" * 10_000))
        self.assert_no_error_is_left()

    def test_what_tls_had_to_say_before_goes_first(self) -> None:
        self.shake_hands()
        before = b"a" * 16384 + b"b" * 16384 + b"c" * 16384
        for at in range(0, len(before), 16384):
            self.server.send(before[at : at + 16384])
        made, rest = self.records.of(b"d")
        self.assertEqual(rest, b"")
        self.assertTrue(self.carry(made) == before + b"d")


class DirectRecordsTests(RecordsTests):
    """By OpenSSL's functions."""

    kind = DirectRecords

    def write_at_most(self, most: int, until: int = 1 << 30) -> None:
        """As OpenSSL writes for a client that has asked for short records (RFC 6066, section 4)."""
        write, written = tls_records._write, 0

        def write_some(ssl: Any, data: bytes, size: int) -> int:
            nonlocal written
            if written >= until:
                return -1
            done = int(write(ssl, data, min(size, most)))
            written += done
            return done

        self.patch(tls_records, "_write", write_some)

    def test_these_are_used(self) -> None:
        self.assertIs(type(make_records(self.server)), DirectRecords)

    def test_a_short_record_is_not_copied(self) -> None:
        self.shake_hands()
        self.assertIsInstance(self.records.of(b"x" * 140)[0], memoryview)

    def test_records_may_be_shorter_than_what_is_given(self) -> None:
        self.shake_hands()
        self.write_at_most(512)
        for size in (140, 512, 513, 5000, 40_000):
            data = bytes(range(250)) * (size // 250) + b"x" * (size % 250)
            made, rest = self.records.of(data)
            self.assertEqual(rest, b"")
            self.assertTrue(self.carry(made) == data, size)

    def test_what_is_taken_halfway_is_not_given_twice(self) -> None:
        self.shake_hands()
        self.write_at_most(512, until=1024)
        made, rest = self.records.of(b"x" * 1024 + b"y" * 1000)
        self.assertEqual((self.carry(made), rest), (b"x" * 1024, b"y" * 1000))

    def test_one_buffer_serves_all_connections(self) -> None:
        self.shake_hands()
        first = self.carry(self.records.of(b"first")[0])
        other = RecordsTests("shake_hands")
        other.setUp()
        other.shake_hands()
        made = DirectRecords(other.server).of(b"other")[0]
        self.assertEqual((first, other.carry(made)), (b"first", b"other"))


class ChoiceTests(SynchronousTestCase):
    """An inside that is not as expected is left alone."""

    def setUp(self) -> None:
        self.connection = SSL.Connection(SSL.Context(SSL.TLS_METHOD), None)

    def assert_plain(self, **inside: Any) -> None:
        kept = {"_ssl": self.connection._ssl, "_from_ssl": self.connection._from_ssl}
        methods = {"send": self.connection.send, "bio_read": self.connection.bio_read}
        there = {name: part for name, part in {**kept, **inside}.items() if part != "missing"}
        other: Any = SimpleNamespace(**methods, **there)
        self.assertIs(type(make_records(other)), Records, inside)

    def test_that_it_is_as_expected_is_seen(self) -> None:
        with self.assertRaises(AssertionError):
            self.assert_plain()

    def test_each_part_that_is_missing_or_of_another_kind(self) -> None:
        self.assert_plain(_ssl="missing")
        self.assert_plain(_from_ssl="missing")
        self.assert_plain(_ssl=object())
        self.assert_plain(_from_ssl=None)
        self.assert_plain(_ssl=self.connection._from_ssl)
        self.assert_plain(_from_ssl=self.connection._ssl)

    def test_bindings_that_are_not_there(self) -> None:
        self.patch(tls_records, "_ffi", None)
        self.assertIs(type(make_records(self.connection)), Records)

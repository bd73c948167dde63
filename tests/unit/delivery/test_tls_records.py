"""TLS records, made with OpenSSL's functions and with pyOpenSSL's methods."""

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
    """Carry the output of `one` to `other`; return whether there was any."""
    try:
        other.bio_write(one.bio_read(1 << 20))
    except SSL.WantReadError:
        return False
    return True


class RecordsTests(SynchronousTestCase):
    """With pyOpenSSL's methods."""

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

    def test_data_of_every_size_arrives(self) -> None:
        self.shake_hands()
        for size in SIZES:
            data = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
            made, rest = self.records.encrypt(data)
            self.assertEqual(rest, b"")
            self.assertTrue(self.carry(made) == data, size)

    def test_no_data_makes_no_record(self) -> None:
        self.shake_hands()
        self.assertEqual(self.records.encrypt(b""), (b"", b""))
        self.assertEqual(self.carry(self.records.encrypt(b"next")[0]), b"next")

    def test_nothing_is_encrypted_before_the_handshake(self) -> None:
        made, rest = self.records.encrypt(b"too early")
        self.assertEqual((bytes(made), rest), (b"", b"too early"))
        self.assert_no_error_is_left()
        self.shake_hands()
        self.assertEqual(self.carry(self.records.encrypt(b"now")[0]), b"now")

    def test_nothing_is_encrypted_after_shutdown(self) -> None:
        self.shake_hands()
        self.server.shutdown()
        move(self.server, self.client)
        made, rest = self.records.encrypt(b"too late" * 10_000)
        self.assertEqual((bytes(made), rest), (b"", b"too late" * 10_000))
        self.assert_no_error_is_left()

    def test_earlier_output_of_tls_comes_first(self) -> None:
        self.shake_hands()
        before = b"a" * 16384 + b"b" * 16384 + b"c" * 16384
        for at in range(0, len(before), 16384):
            self.server.send(before[at : at + 16384])
        made, rest = self.records.encrypt(b"d")
        self.assertEqual(rest, b"")
        self.assertTrue(self.carry(made) == before + b"d")


class DirectRecordsTests(RecordsTests):
    """With OpenSSL's functions."""

    kind = DirectRecords

    def limit_writes(self, size: int, until: int = 1 << 30) -> None:
        """Write as OpenSSL does after a client negotiated short records (RFC 6066, section 4)."""
        write, written = tls_records._write, 0

        def write_some(ssl: Any, data: bytes, wanted: int) -> int:
            nonlocal written
            if written >= until:
                return -1
            done = int(write(ssl, data, min(wanted, size)))
            written += done
            return done

        self.patch(tls_records, "_write", write_some)

    def test_direct_records_are_the_default(self) -> None:
        self.assertIs(type(make_records(self.server)), DirectRecords)

    def test_a_short_record_is_not_copied(self) -> None:
        self.shake_hands()
        self.assertIsInstance(self.records.encrypt(b"x" * 140)[0], memoryview)

    def test_data_may_need_several_short_records(self) -> None:
        self.shake_hands()
        self.limit_writes(512)
        for size in (140, 512, 513, 5000, 40_000):
            data = bytes(range(250)) * (size // 250) + b"x" * (size % 250)
            made, rest = self.records.encrypt(data)
            self.assertEqual(rest, b"")
            self.assertTrue(self.carry(made) == data, size)

    def test_the_rest_of_a_failed_write_is_returned(self) -> None:
        self.shake_hands()
        self.limit_writes(512, until=1024)
        made, rest = self.records.encrypt(b"x" * 1024 + b"y" * 1000)
        self.assertEqual((self.carry(made), rest), (b"x" * 1024, b"y" * 1000))

    def test_connections_share_one_buffer(self) -> None:
        self.shake_hands()
        first = self.carry(self.records.encrypt(b"first")[0])
        other = RecordsTests("shake_hands")
        other.setUp()
        other.shake_hands()
        made = DirectRecords(other.server).encrypt(b"other")[0]
        self.assertEqual((first, other.carry(made)), (b"first", b"other"))


class MakeRecordsTests(SynchronousTestCase):
    """With other internals of pyOpenSSL, its methods make the records."""

    def setUp(self) -> None:
        self.connection = SSL.Connection(SSL.Context(SSL.TLS_METHOD), None)

    def assert_methods_used(self, **internals: Any) -> None:
        expected = {"_ssl": self.connection._ssl, "_from_ssl": self.connection._from_ssl}
        methods = {"send": self.connection.send, "bio_read": self.connection.bio_read}
        attributes = {
            name: part for name, part in {**expected, **internals}.items() if part != "missing"
        }
        other: Any = SimpleNamespace(**methods, **attributes)
        self.assertIs(type(make_records(other)), Records, internals)

    def test_the_expected_internals_are_recognized(self) -> None:
        with self.assertRaises(AssertionError):
            self.assert_methods_used()

    def test_each_attribute_that_is_missing_or_of_another_kind(self) -> None:
        self.assert_methods_used(_ssl="missing")
        self.assert_methods_used(_from_ssl="missing")
        self.assert_methods_used(_ssl=object())
        self.assert_methods_used(_from_ssl=None)
        self.assert_methods_used(_ssl=self.connection._from_ssl)
        self.assert_methods_used(_from_ssl=self.connection._ssl)

    def test_missing_bindings(self) -> None:
        self.patch(tls_records, "_ffi", None)
        self.assertIs(type(make_records(self.connection)), Records)

"""Client addresses: the key by which each is counted, and the client behind proxies."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from topicsvc.admission.addresses import address_key, forwarded_address, is_within, parse_network

PROXIES = [parse_network("10.0.0.0/8"), parse_network("2001:db8::/32")]


class AddressKeyTests(SynchronousTestCase):
    def test_addresses_that_count_as_one_have_the_same_key(self) -> None:
        for host, key in (
            ("192.0.2.7", "192.0.2.7"),
            ("::ffff:192.0.2.7", "192.0.2.7"),
            ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
            ("2001:db8:1:2::", "2001:db8:1:2::/64"),
            ("2001:db8:1:3::", "2001:db8:1:3::/64"),
            ("::1", "::/64"),
            ("fe80::1%eth0", "fe80::/64"),
            ("nonsense", "nonsense"),
            ("x" * 1000, "x" * 64),
        ):
            with self.subTest(host=host):
                self.assertEqual(address_key(host), key)


class IsWithinTests(SynchronousTestCase):
    def test_addresses_and_networks(self) -> None:
        for host, inside in (
            ("10.1.2.3", True),
            ("::ffff:10.1.2.3", True),
            ("11.0.0.0", False),
            ("2001:db8::7", True),
            ("2001:db9::7", False),
            ("nonsense", False),
        ):
            with self.subTest(host=host):
                self.assertEqual(is_within(host, PROXIES), inside)


class ForwardedAddressTests(SynchronousTestCase):
    def client(self, host: str, xff: list[bytes], forwarded: list[bytes] | None = None) -> str:
        return forwarded_address(host, xff, forwarded or [], PROXIES)

    def test_headers_of_an_untrusted_address_are_ignored(self) -> None:
        self.assertEqual(
            self.client("192.0.2.7", [b"203.0.113.9"], [b"for=203.0.113.9"]), "192.0.2.7"
        )
        self.assertEqual(forwarded_address("10.0.0.1", [b"203.0.113.9"], [], []), "10.0.0.1")

    def test_the_rightmost_untrusted_address_is_the_client(self) -> None:
        for values, expected in (
            ([b"203.0.113.9"], "203.0.113.9"),
            ([b"198.51.100.1, 203.0.113.9"], "203.0.113.9"),
            ([b"198.51.100.1, 203.0.113.9 ,10.0.0.2"], "203.0.113.9"),
            ([b"198.51.100.1", b"203.0.113.9", b"10.0.0.2, 2001:db8::1"], "203.0.113.9"),
            ([b"10.0.0.3, 10.0.0.2"], "10.0.0.3"),
            ([b"2001:db9::7"], "2001:db9::7"),
            ([b"203.0.113.9:5000"], "203.0.113.9"),
            ([b"[2001:db9::7]:5000"], "2001:db9::7"),
            ([b"198.51.100.1, unknown, 10.0.0.2"], "10.0.0.2"),
            ([b"198.51.100.1, \xff"], "10.0.0.1"),
            ([b"198.51.100.1,"], "10.0.0.1"),
            ([], "10.0.0.1"),
            ([b""], "10.0.0.1"),
        ):
            with self.subTest(values=values):
                self.assertEqual(self.client("10.0.0.1", values), expected)

    def test_forwarded_is_read_without_x_forwarded_for(self) -> None:
        for value, expected in (
            (b"for=203.0.113.9", "203.0.113.9"),
            (b'For="[2001:db9::7]:4711"', "2001:db9::7"),
            (b"for=198.51.100.1, for=203.0.113.9;proto=http;by=10.0.0.1", "203.0.113.9"),
            (b"proto=http; for=203.0.113.9", "203.0.113.9"),
            (b"for=198.51.100.1, for=_hidden", "10.0.0.1"),
            (b"for=198.51.100.1, by=203.0.113.9", "10.0.0.1"),
            (b"nonsense", "10.0.0.1"),
        ):
            with self.subTest(value=value):
                self.assertEqual(self.client("10.0.0.1", [], [value]), expected)

    def test_x_forwarded_for_takes_precedence_over_forwarded(self) -> None:
        self.assertEqual(self.client("10.0.0.1", [b"203.0.113.9"], [b"for=1.2.3.4"]), "203.0.113.9")

    @given(st.lists(st.binary(max_size=80), max_size=3), st.lists(st.binary(max_size=80)))
    def test_any_bytes_have_a_key(self, xff: list[bytes], forwarded: list[bytes]) -> None:
        self.assertTrue(address_key(self.client("10.0.0.1", xff, forwarded)))

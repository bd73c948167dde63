"""Addresses: what is counted as one, and who is behind proxies."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from topicsvc.admission.addresses import behind_proxies, counted_as, is_within, parse_network

PROXIES = [parse_network("10.0.0.0/8"), parse_network("2001:db8::/32")]


class CountedAsTests(SynchronousTestCase):
    def test_what_is_counted_as_one(self) -> None:
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
                self.assertEqual(counted_as(host), key)


class WithinTests(SynchronousTestCase):
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


class BehindProxiesTests(SynchronousTestCase):
    def of(self, host: str, xff: list[bytes], forwarded: list[bytes] | None = None) -> str:
        return behind_proxies(host, xff, forwarded or [], PROXIES)

    def test_a_stranger_s_word_is_not_taken(self) -> None:
        self.assertEqual(self.of("192.0.2.7", [b"203.0.113.9"], [b"for=203.0.113.9"]), "192.0.2.7")
        self.assertEqual(behind_proxies("10.0.0.1", [b"203.0.113.9"], [], []), "10.0.0.1")

    def test_the_rightmost_that_is_not_trusted(self) -> None:
        for values, client in (
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
                self.assertEqual(self.of("10.0.0.1", values), client)

    def test_forwarded_where_there_is_no_x_forwarded_for(self) -> None:
        for value, client in (
            (b"for=203.0.113.9", "203.0.113.9"),
            (b'For="[2001:db9::7]:4711"', "2001:db9::7"),
            (b"for=198.51.100.1, for=203.0.113.9;proto=http;by=10.0.0.1", "203.0.113.9"),
            (b"proto=http; for=203.0.113.9", "203.0.113.9"),
            (b"for=198.51.100.1, for=_hidden", "10.0.0.1"),
            (b"for=198.51.100.1, by=203.0.113.9", "10.0.0.1"),
            (b"nonsense", "10.0.0.1"),
        ):
            with self.subTest(value=value):
                self.assertEqual(self.of("10.0.0.1", [], [value]), client)

    def test_x_forwarded_for_goes_before_what_a_client_may_have_written(self) -> None:
        self.assertEqual(self.of("10.0.0.1", [b"203.0.113.9"], [b"for=1.2.3.4"]), "203.0.113.9")

    @given(st.lists(st.binary(max_size=80), max_size=3), st.lists(st.binary(max_size=80)))
    def test_nonsense_is_no_address(self, xff: list[bytes], forwarded: list[bytes]) -> None:
        self.assertTrue(counted_as(self.of("10.0.0.1", xff, forwarded)))

"""Introspection responses are read strictly."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from topicsvc.errors import TokenInactive, ValidatorUnavailable
from topicsvc.validators.introspection_response import Claims, is_client_refused, read_claims
from topicsvc.validators.numeric_date import MAX_TIME

NOW = 1544056220.5


def response(**members: Any) -> bytes:
    """The body for an active token, with other members."""
    return json.dumps({"active": True, "exp": 1544059820, **members}).encode()


class ClaimsTests(SynchronousTestCase):
    def assert_inactive(self, body: bytes) -> None:
        self.assertRaises(TokenInactive, read_claims, body, NOW)

    def assert_invalid(self, body: bytes) -> None:
        self.assertRaises(ValidatorUnavailable, read_claims, body, NOW)

    def test_the_response_of_a_unit(self) -> None:
        body = (
            b'{"active":true,"exp":1544059820,"iat":1544056220,"client_id":"","aud":null,"p_roles":[],'
            b'"sub":"https://cell1.unit1.example/#account","iss":"https://cell1.unit1.example/"}'
        )
        self.assertEqual(
            read_claims(body, NOW),
            Claims(
                "https://cell1.unit1.example/#account",
                1544059820,
                issuer="https://cell1.unit1.example/",
            ),
        )

    def test_all_claims(self) -> None:
        body = response(sub="me", scope="a  b c", iss="them", aud=["x", "y", 1])
        self.assertEqual(
            read_claims(body, NOW),
            Claims("me", 1544059820, frozenset("abc"), "them", frozenset("xy")),
        )
        self.assertEqual(read_claims(response(aud="x"), NOW).audience, frozenset("x"))

    def test_optional_claims_of_a_wrong_type_are_ignored(self) -> None:
        claims = read_claims(response(sub=1, iss=["them"], aud={"x": 1}), NOW)
        self.assertEqual(claims, Claims(None, 1544059820))

    def test_an_inactive_token(self) -> None:
        self.assert_inactive(b'{"active":false}')
        self.assert_inactive(b'{"active": false, "exp": "nonsense"}')

    def test_an_expired_token(self) -> None:
        for expiry in (0, 1544056219, 1544056220):
            self.assert_inactive(response(exp=expiry))
        read_claims(response(exp=1544056221), NOW)

    def test_nbf_may_be_a_minute_ahead_because_clocks_differ(self) -> None:
        for not_before in (1544056220, 1544056250, 1544056280, 1544056280.5, 0):
            read_claims(response(nbf=not_before), NOW)
        self.assert_inactive(response(nbf=1544056281))
        self.assert_inactive(response(nbf=1544056280.6))
        self.assert_inactive(response(nbf=MAX_TIME))
        for not_before in ("soon", True, -1, MAX_TIME + 1):
            self.assert_invalid(response(nbf=not_before))

    def test_active_must_be_true_or_false(self) -> None:
        for active in ("true", "false", 1, 0, None, [], {}, [True]):
            self.assert_invalid(response(active=active))
        self.assert_invalid(b'{"exp":1544059820}')

    def test_times_may_have_a_fraction_or_an_exponent(self) -> None:
        for text, expiry in (
            (b"1544059820.0", 1544059820),
            (b"1544059820.25", 1544059820.25),
            (b"1.54405982e9", 1544059820),
            (b"1.54405982E+9", 1544059820),
            (b"15440598200e-1", 1544059820),
            (b"1544056220.51", 1544056220.51),
            (b"253402300799.0", MAX_TIME),
        ):
            body = b'{"active":true,"exp":%s,"nbf":1.544e9}' % text
            self.assertEqual(read_claims(body, NOW).expires_at, expiry)
        self.assert_inactive(b'{"active":true,"exp":1544056220.5}')
        self.assert_inactive(b'{"active":true,"exp":1.5e-9}')

    def test_exp_must_be_a_number_of_seconds(self) -> None:
        for expiry in ("1544059820", "1544059820.5", True, MAX_TIME + 1.5, 1e300, -0.5,
                       None, -1, [], MAX_TIME + 1, 10**30, 1544059820000):  # fmt: skip
            self.assert_invalid(response(exp=expiry))
        self.assert_invalid(b'{"active":true}')
        self.assertEqual(read_claims(response(exp=MAX_TIME), NOW).expires_at, MAX_TIME)

    def test_only_spaces_separate_scopes(self) -> None:
        for scope in ("a\tb", "a\nb", "a\xa0b", "a\u2003b"):
            self.assertEqual(read_claims(response(scope=scope), NOW).scopes, {scope})
        self.assertEqual(read_claims(response(scope=" "), NOW).scopes, frozenset())

    def test_a_scope_of_null_is_none(self) -> None:
        self.assertEqual(read_claims(response(scope=None), NOW).scopes, frozenset())

    def test_scope_must_be_a_string(self) -> None:
        self.assert_invalid(response(scope=["a", "b"]))

    def test_a_body_that_is_not_a_json_object(self) -> None:
        for body in (
            b"", b"active", b"[true]", b"true", b'"x"', b"\xff", b'{"active":true',
            b'{"active":true,"exp":1e999}', b'{"active":true,"exp":NaN}',
            b'{"active":true,"exp":Infinity}', b'{"active":true,"exp":' + b"9" * 5000 + b"}",
            b"[" * 100000,
        ):  # fmt: skip
            self.assert_invalid(body)

    def test_credentials_of_the_service_that_are_refused(self) -> None:
        wrong = b'{"error":"invalid_client","error_description":"[PR400-AN-0016] - text"}'
        for status, body, is_refused in (
            (400, wrong, True),
            (400, b'{"error":"unauthorized_client"}', True),
            (401, b"", True),
            (403, b"", True),
            (400, b'{"error":"invalid_request"}', False),
            (400, b'{"code":"PR400-CM-0005"}', False),
            (400, b'["invalid_client"]', False),
            (400, b"invalid_client", False),
            (400, b"\xff", False),
            (400, b"[" * 100000, False),
            (200, wrong, False),
            (404, wrong, False),
            (500, wrong, False),
        ):
            self.assertEqual(is_client_refused(status, body), is_refused, (status, body[:100]))

    @given(st.binary(max_size=100))
    def test_any_bytes_raise_one_of_the_two_errors(self, body: bytes) -> None:
        self.assertRaises((TokenInactive, ValidatorUnavailable), read_claims, body, NOW)

    @given(
        st.dictionaries(
            st.sampled_from(["active", "exp", "nbf", "sub", "scope", "iss", "aud"]),
            st.recursive(
                st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
                st.lists,
                max_leaves=3,
            ),
        )
    )
    def test_claims_always_have_an_expiry_in_the_future(self, members: dict[str, Any]) -> None:
        try:
            claims = read_claims(json.dumps(members).encode(), NOW)
        except (TokenInactive, ValidatorUnavailable):
            return
        self.assertIs(members["active"], True)
        self.assertTrue(NOW < claims.expires_at < MAX_TIME + 1)

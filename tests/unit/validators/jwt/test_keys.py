"""Key sets: the keys that are used, and why others are not."""

from __future__ import annotations

import json
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from tests.support.jwt_issuer import b64, jwk, jwks
from tests.support.jwt_issuer import private_key as key
from topicsvc.validators.jwt.keys import (
    MAX_JWKS,
    MAX_KEYS,
    KeySet,
    algorithms_of,
    read_keys,
    verify,
)

GOOD = jwk(key("ES256"), "good")
RSA = jwk(key("RSA2048"), "a")


class KeySetTests(SynchronousTestCase):
    def names(self, keys: KeySet) -> list[str | None]:
        return [each.key_id for each in keys.keys]

    def skipped(self, entry: Any) -> str:
        """Return why `entry` is skipped; the key beside it is used."""
        keys = read_keys(jwks(entry, GOOD))
        self.assertEqual(self.names(keys), ["good"])
        [line] = keys.skipped
        return line

    def test_each_type_of_key_allows_its_algorithms(self) -> None:
        for entry, expected in (
            (RSA, "RS256, RS384, RS512, PS256, PS384, PS512"),
            ({**RSA, "alg": "PS384"}, "PS384"),
            (jwk(key("ES256")), "ES256"),
            (jwk(key("ES384")), "ES384"),
            (jwk(key("ES512")), "ES512"),
            (jwk(key("Ed25519")), "EdDSA, Ed25519"),
            (jwk(key("Ed25519"), alg="Ed25519"), "Ed25519"),
            (jwk(key("Ed448")), "EdDSA"),
            (jwk(key("ES256"), None, use=None), "ES256"),
            ({**RSA, "key_ops": ["verify"]}, "RS256, RS384, RS512, PS256, PS384, PS512"),
        ):
            self.assertEqual(algorithms_of(read_keys(jwks(entry)).keys), expected)

    def test_a_key_that_cannot_be_used_is_skipped_and_the_others_serve(self) -> None:
        private = {**RSA, "d": "AQAB"}
        for entry, reason in (
            ({"kty": "AKP", "alg": "ML-DSA-44", "pub": "AA", "kid": "x"},
             'key "x": its type (kty) is "AKP", which is not supported'),
            ({"kty": "oct", "k": "AAAA", "kid": "x"}, 'key "x": its type (kty) is "oct"'),
            ({"kid": "x"}, 'key "x": its type (kty) is missing'),
            ({"kty": ["RSA"]}, "key 1: its type (kty) is no text"),
            (5, "key 1: not a JSON object"),
            ({**RSA, "use": "enc"}, 'key "a": its use is "enc", not signatures'),
            ({**RSA, "use": None}, 'key "a": its use is missing'),
            ({**RSA, "key_ops": ["encrypt"]}, 'key "a": its key_ops do not have verify'),
            ({**RSA, "key_ops": "verify"}, 'key "a": its key_ops do not have verify'),
            (private, 'key "a": it has private members (d), which were disclosed'),
            ({**RSA, "k": "AA"}, 'key "a": it has private members (k)'),
            ({**RSA, "kid": 1}, "key 1: its name (kid) is no text"),
            ({**RSA, "alg": "RSA-OAEP"}, 'key "a": its algorithm (alg) is "RSA-OAEP"'),
            ({**RSA, "alg": "HS256"}, 'key "a": its algorithm (alg) is "HS256"'),
            ({**RSA, "alg": "ES256"}, 'key "a": its algorithm (alg) is "ES256"'),
            ({**RSA, "alg": None}, 'key "a": its algorithm (alg) is missing'),
            ({"kty": "RSA", "e": "AQAB"}, "key 1: n is missing or no text"),
            ({**RSA, "n": 5}, 'key "a": n is missing or no text'),
            ({**RSA, "n": "!!"}, 'key "a": it is not valid: '),
            ({**RSA, "e": "AQ"}, 'key "a": it is not valid: its exponent'),
            ({**RSA, "e": b64(b"\1" * 9)}, 'key "a": it is not valid: its exponent'),
            ({**RSA, "e": "BA"}, 'key "a": it is not valid: '),
            (jwk(key("RSA1024"), "x"), 'key "x": it is not valid: 1024 bits; 2048 to 8192'),
            ({**RSA, "n": b64(b"\x7f" + b"\xff" * 255)}, 'key "a": it is not valid: 2047 bits'),
            ({**RSA, "n": b64(b"\1" + b"\xff" * 1024)}, 'key "a": it is not valid: 8193 bits'),
            (jwk(key("ES256K"), "x"), 'key "x": its curve (crv) is "secp256k1"'),
            ({**GOOD, "kid": "x", "crv": "P-384"}, 'key "x": it is not valid: '),
            ({**GOOD, "kid": "x", "x": GOOD["y"]}, 'key "x": it is not valid: '),
            ({**GOOD, "kid": "x", "y": None}, 'key "x": y is missing or no text'),
            ({"kty": "OKP", "crv": "X25519", "x": "AA"}, 'key 1: its curve (crv) is "X25519"'),
            ({"kty": "OKP", "crv": "P-256", "x": "AA"}, 'key 1: its curve (crv) is "P-256"'),
            ({"kty": "EC", "crv": "Ed25519", "x": "A", "y": "A"}, "key 1: its curve (crv) is"),
            ({"kty": "OKP", "crv": "Ed25519", "x": "AAAA"}, "key 1: it is not valid: "),
        ):  # fmt: skip
            with self.subTest(reason):
                self.assertIn(reason, self.skipped(entry))

    def test_the_longest_allowed_rsa_key(self) -> None:
        modulus = b"\xff" * 1024
        [longest] = read_keys(jwks({"kty": "RSA", "n": b64(modulus), "e": "AQAB"})).keys
        self.assertEqual(longest.public_key.key_size, 8192)

    def test_a_name_in_a_reason_is_quoted_and_cut(self) -> None:
        line = self.skipped({"kty": "oct", "kid": "a\nb" * 1000})
        self.assertNotIn("\n", line)
        self.assertLess(len(line), 300)

    def test_bodies_that_are_no_key_sets(self) -> None:
        for body, reason in (
            (b"", "not JSON"),
            (b"<html>", "not JSON"),
            (b"\xff", "not JSON"),
            (b"[" * 100000, "not JSON"),
            (b'{"keys":[],"keys":[]}', "a key occurs twice"),
            (b'{"keys":[{"kty":"RSA","kty":"EC"}]}', "a key occurs twice"),
            (b"[]", 'without a list "keys"'),
            (b"{}", 'without a list "keys"'),
            (b'{"keys":{}}', 'without a list "keys"'),
            (jwks(*[GOOD] * 101), "more than 100 keys"),
            (jwks(*[{}] * 10000), "more than 100 keys"),
            (b" " * (MAX_JWKS + 1), f"more than {MAX_JWKS} bytes"),
        ):
            with self.subTest(reason):
                error = self.assertRaises(ValueError, read_keys, body)
                self.assertIn(reason, str(error))

    def test_the_most_keys(self) -> None:
        entries = [{**GOOD, "kid": str(number)} for number in range(MAX_KEYS)]
        self.assertEqual(len(read_keys(jwks(*entries)).keys), MAX_KEYS)
        self.assertEqual(read_keys(b'{"keys":[]}'), KeySet(()))

    def test_the_same_key_twice_is_one_key(self) -> None:
        self.assertEqual(len(read_keys(jwks(GOOD, GOOD)).keys), 1)
        self.assertEqual(len(read_keys(jwks(GOOD, {**GOOD, "kid": "b"})).keys), 2)
        self.assertEqual(len(read_keys(jwks(GOOD, {**GOOD, "alg": "ES256"})).keys), 1)

    def test_keys_that_stay_are_the_same_objects(self) -> None:
        older = read_keys(jwks(GOOD, RSA))
        newer = older.replaced_by(read_keys(jwks(jwk(key("ES384"), "new"), GOOD)))
        self.assertIs(newer.keys[1], older.keys[0])
        self.assertEqual([each.is_current for each in older.keys], [True, False])
        self.assertTrue(all(each.is_current for each in newer.keys))

    def test_a_key_with_the_name_of_another_replaces_it(self) -> None:
        older = read_keys(jwks(GOOD))
        newer = older.replaced_by(read_keys(jwks(jwk(key("ES256", "second"), "good"))))
        self.assertIsNot(newer.keys[0], older.keys[0])
        self.assertFalse(older.keys[0].is_current)

    def test_names_of_withdrawn_keys_are_kept_and_bounded(self) -> None:
        keys = read_keys(jwks(GOOD, {**RSA, "kid": None}))
        keys = keys.replaced_by(read_keys(jwks({**GOOD, "kid": "second"})))
        keys = keys.replaced_by(read_keys(jwks({**GOOD, "kid": "third"})))
        self.assertEqual(keys.withdrawn, ("good", "second"))
        keys = keys.replaced_by(read_keys(jwks(GOOD)))
        self.assertEqual(keys.withdrawn, ("second", "third"))
        many = [{**GOOD, "kid": str(number)} for number in range(MAX_KEYS)]
        keys = keys.replaced_by(read_keys(jwks(*many))).replaced_by(read_keys(jwks(GOOD)))
        self.assertEqual(keys.withdrawn, tuple(map(str, range(MAX_KEYS))))

    def test_a_key_that_comes_back_is_current_again(self) -> None:
        older = read_keys(jwks(GOOD))
        older.withdraw()
        self.assertTrue(older.replaced_by(read_keys(jwks(GOOD))).keys[0].is_current)

    def test_a_signature_needs_an_algorithm_of_the_key(self) -> None:
        [pinned] = read_keys(jwks({**RSA, "alg": "PS256"})).keys
        self.assertFalse(verify(pinned, "RS256", b"x", b"y"))
        self.assertFalse(verify(pinned, "HS256", b"x", b"y"))
        self.assertFalse(verify(pinned, "PS256", b"x", b"y"))

    def test_the_key_set_is_not_changed_by_order_or_unknown_members(self) -> None:
        body = json.dumps({"keys": [{"x5c": ["AA"], "note": [1], **GOOD}], "more": None})
        self.assertEqual(self.names(read_keys(body.encode())), ["good"])

"""A table of tokens and their verdicts."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from twisted.trial.unittest import SynchronousTestCase

from tests.support.jwt_issuer import AUDIENCE, ISSUER, FakeIssuer, b64, encode, jwk, jwks
from tests.support.jwt_issuer import private_key as key
from topicsvc.errors import TokenInactive
from topicsvc.interfaces import Grant
from topicsvc.refusals import RefusalReason as Reason
from topicsvc.settings import IssuerSettings, JwtSettings, Rule
from topicsvc.topics import SubjectPattern, TopicAddress, TopicPattern
from topicsvc.validators.jwt.key_source import FixedKeys
from topicsvc.validators.jwt.keys import read_keys
from topicsvc.validators.jwt.validator import JwtValidator

NOW = 1544056220.0
EXPIRY = int(NOW) + 3600
OTHER = "https://other.example"
DETAILS = "https://push.example/topics"

TOPIC = TopicAddress("cell1", "box1", ("col",), "name")
INBOX = TopicAddress("alice", "inbox", ("col",), "name")

RULES = (
    Rule("news", (TopicPattern.parse("/cell1/*"),), frozenset({"receive"})),
    Rule("write", (TopicPattern.parse("/cell1/*"),), frozenset({"send"})),
    Rule(None, (TopicPattern.parse("/cell1/*"),), frozenset({"send"}), ("groups",), "staff"),
    Rule(
        None, (TopicPattern.parse("/cell1/*"),), frozenset({"send"}), ("realm", "roles"), "editor"
    ),
    Rule(None, (SubjectPattern.parse("/{sub}/inbox/*"),), frozenset({"receive"})),
)

SETTINGS = IssuerSettings(ISSUER, (AUDIENCE, "second"))
PUBLISHED = jwks(
    jwk(key("RSA2048"), "a"),
    jwk(key("RSA2048", "pinned"), "pinned", alg="RS256"),
    jwk(key("RSA2048", "pss"), "pss", alg="PS256"),
    jwk(key("ES256"), "ec256"),
    jwk(key("ES384"), "ec384"),
    jwk(key("ES512"), "ec512"),
    jwk(key("Ed25519"), "ed"),
    jwk(key("Ed448"), "ed448"),
    jwk(key("RSA2048", "enc"), "enc", use="enc"),
    jwk(key("RSA1024"), "short"),
    jwk(key("RSA2048", "twice 1"), "twice"),
    jwk(key("RSA2048", "twice 2"), "twice"),
)
OTHER_PUBLISHED = jwks(jwk(key("RSA2048", "other"), "other"))


class TableTestCase(SynchronousTestCase):
    """One validator with two issuers; each token is checked at `NOW`."""

    def setUp(self) -> None:
        self.issuer = FakeIssuer(NOW)

    def build(self, published: bytes = PUBLISHED, **changes: Any) -> JwtValidator:
        issuer = replace(SETTINGS, **changes)
        other = replace(issuer, issuer=OTHER)
        return JwtValidator(
            JwtSettings((issuer, other), RULES),
            {
                ISSUER: FixedKeys(read_keys(published)),
                OTHER: FixedKeys(read_keys(OTHER_PUBLISHED)),
            },
            lambda: NOW,
        )

    def verdict(
        self, token: str, topic: TopicAddress = TOPIC, validator: JwtValidator | None = None
    ) -> Grant | Reason:
        """Return the grant, or the reason of the refusal."""
        check = (validator or self.build()).validate(token, topic)
        results: list[Grant] = []
        check.addCallback(results.append)
        check.addErrback(lambda failure: failure.trap(TokenInactive) and results.append(
            failure.value.refusal.reason
        ))  # fmt: skip
        [result] = results
        return result

    def assert_granted(
        self, token: str, topic: TopicAddress = TOPIC, may: str = "receive", **changes: Any
    ) -> Grant:
        grant = self.verdict(token, topic, self.build(**changes))
        assert isinstance(grant, Grant), grant
        rights = ["receive"] * grant.may_receive + ["send"] * grant.may_send
        self.assertEqual(" ".join(rights), may)
        return grant

    def assert_refused(self, token: str, reason: Reason, **changes: Any) -> None:
        self.assertIs(self.verdict(token, validator=self.build(**changes)), reason)


Row = tuple[str, Callable[[FakeIssuer], str], Reason | str]
"""A name, a token, and the reason of its refusal or its rights."""


def signed(algorithm: str, key_id: str | None, kind: str, name: str = "", **claims: Any) -> Any:
    """A token of this key."""
    return lambda issuer: issuer.token(key(kind, name), algorithm, {"kid": key_id}, **claims)


def has(**claims: Any) -> Any:
    """A token with these claims."""
    return lambda issuer: issuer.token(**claims)


def header(**parameters: Any) -> Any:
    """A token with these parameters in its header."""
    return lambda issuer: issuer.token(header=parameters)


def raw_claims(text: str) -> Any:
    """A token whose claims are this text; ``$`` stands for the claims of a valid token."""
    valid = f'"iss": "{ISSUER}", "aud": "{AUDIENCE}", "scope": "news"'

    def make(_: FakeIssuer) -> str:
        head = json.dumps({"typ": "at+jwt", "alg": "RS256", "kid": "a"}).encode()
        return encode(head, text.replace("$", valid).encode(), key("RSA2048"), "RS256")

    return make


def raw_header(text: str) -> Any:
    """A token whose header is this text."""

    def make(_: FakeIssuer) -> str:
        claims = json.dumps({"iss": ISSUER, "aud": AUDIENCE, "exp": EXPIRY, "scope": "news"})
        return encode(text.encode(), claims.encode(), key("RSA2048"), "RS256")

    return make


def hmac_with_the_public_key(issuer: FakeIssuer) -> str:
    public = key("RSA2048").public_key()
    pem = public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return issuer_token_with_hmac(issuer, pem)


def issuer_token_with_hmac(issuer: FakeIssuer, secret: bytes) -> str:
    import hashlib
    import hmac

    head, claims, _ = issuer.token(header={"alg": "HS256"}).split(".")
    signature = hmac.new(secret, f"{head}.{claims}".encode(), hashlib.sha256).digest()
    return f"{head}.{claims}.{b64(signature)}"


def changed(edit: Callable[[list[str]], object]) -> Any:
    """A valid token after `edit` has changed its three parts."""

    def make(issuer: FakeIssuer) -> str:
        parts = issuer.token().split(".")
        edit(parts)
        return ".".join(parts)

    return make


def part(place: int, change: Callable[[str], str]) -> Any:
    """A valid token with one changed part."""

    def edit(parts: list[str]) -> None:
        parts[place] = change(parts[place])

    return changed(edit)


ALGORITHMS: list[Row] = [
    ("RS256", signed("RS256", "a", "RSA2048"), "receive"),
    ("RS384", signed("RS384", "a", "RSA2048"), "receive"),
    ("RS512", signed("RS512", "a", "RSA2048"), "receive"),
    ("PS256", signed("PS256", "a", "RSA2048"), "receive"),
    ("PS384", signed("PS384", "a", "RSA2048"), "receive"),
    ("PS512", signed("PS512", "a", "RSA2048"), "receive"),
    ("ES256", signed("ES256", "ec256", "ES256"), "receive"),
    ("ES384", signed("ES384", "ec384", "ES384"), "receive"),
    ("ES512", signed("ES512", "ec512", "ES512"), "receive"),
    ("EdDSA with Ed25519", signed("EdDSA", "ed", "Ed25519"), "receive"),
    ("EdDSA with Ed448", signed("EdDSA", "ed448", "Ed448"), "receive"),
    ("Ed25519", signed("Ed25519", "ed", "Ed25519"), "receive"),
    ("the algorithm of the key", signed("RS256", "pinned", "RSA2048", "pinned"), "receive"),
    ("PS256 as the key has it", signed("PS256", "pss", "RSA2048", "pss"), "receive"),
    ("another than the key's", signed("PS256", "pinned", "RSA2048", "pinned"), Reason.ALGORITHM),
    ("RS256 of a key for PS256", signed("RS256", "pss", "RSA2048", "pss"), Reason.ALGORITHM),
    ("RS512 of a key for RS256", signed("RS512", "pinned", "RSA2048", "pinned"), Reason.ALGORITHM),
    ("ES256 with another curve", signed("ES256", "ec384", "ES384"), Reason.ALGORITHM),
    ("ES384 with another curve", signed("ES384", "ec256", "ES256"), Reason.ALGORITHM),
    ("Ed25519 with Ed448", signed("Ed25519", "ed448", "Ed448"), Reason.ALGORITHM),
    ("RS256 with the name of an EC key", signed("RS256", "ec256", "RSA2048"), Reason.ALGORITHM),
    ("ES256K", signed("ES256K", "a", "ES256K"), Reason.ALGORITHM),
    ("none", header(alg="none"), Reason.ALGORITHM),
    ("None", header(alg="None"), Reason.ALGORITHM),
    ("none without a signature", changed(lambda parts: parts.__setitem__(
        slice(0, 3), [b64(b'{"alg":"none","typ":"at+jwt"}'), parts[1], ""])), Reason.ALGORITHM),
    ("no algorithm", header(alg=None), Reason.ALGORITHM),
    ("a number", header(alg=256), Reason.ALGORITHM),
    ("a list", header(alg=["RS256"]), Reason.ALGORITHM),
    ("lower case", header(alg="rs256"), Reason.ALGORITHM),
    ("HS256 with the public key", hmac_with_the_public_key, Reason.ALGORITHM),
    ("HS256 with an empty key", lambda issuer: issuer_token_with_hmac(issuer, b""),
     Reason.ALGORITHM),
    ("HS512", header(alg="HS512"), Reason.ALGORITHM),
    ("another algorithm than was used", lambda issuer: encode(
        b'{"alg":"RS256","kid":"a","typ":"at+jwt"}',
        json.dumps({"iss": ISSUER, "aud": AUDIENCE, "exp": EXPIRY}).encode(),
        key("RSA2048"), "PS256"), Reason.SIGNATURE),
]  # fmt: skip

KEYS: list[Row] = [
    ("an unknown key", signed("RS256", "unknown", "RSA2048"), Reason.UNKNOWN_KEY),
    ("the key of another name", signed("RS256", "pinned", "RSA2048"), Reason.SIGNATURE),
    ("the name in upper case", signed("RS256", "A", "RSA2048"), Reason.UNKNOWN_KEY),
    ("an empty name", signed("RS256", "", "RSA2048"), Reason.UNKNOWN_KEY),
    ("a number as name", signed("RS256", 1, "RSA2048"), Reason.HEADER),  # type: ignore[arg-type]
    ("a list as name", header(kid=["a"]), Reason.HEADER),
    ("a path as name", header(kid="../../dev/null"), Reason.UNKNOWN_KEY),
    ("SQL as name", header(kid="a' UNION SELECT 'x"), Reason.UNKNOWN_KEY),
    ("no name, and several keys fit", signed("RS256", None, "RSA2048"), Reason.UNKNOWN_KEY),
    ("no name, and one key fits", signed("ES256", None, "ES256"), "receive"),
    ("no name, and no key fits but one that cannot be used",
     signed("ES256", None, "ES256", "unknown"), Reason.SIGNATURE),
    ("one name for two keys", signed("RS256", "twice", "RSA2048", "twice 1"), Reason.UNKNOWN_KEY),
    ("a key for encryption", signed("RS256", "enc", "RSA2048", "enc"), Reason.UNKNOWN_KEY),
    ("1024-bit RSA", signed("RS256", "short", "RSA1024"), Reason.UNKNOWN_KEY),
    ("the key of another issuer", signed("RS256", "other", "RSA2048", "other"),
     Reason.UNKNOWN_KEY),
    ("another issuer with its key",
     signed("RS256", "other", "RSA2048", "other", iss=OTHER), "receive"),
    ("another issuer with the key of the first", signed("RS256", "a", "RSA2048", iss=OTHER),
     Reason.UNKNOWN_KEY),
]  # fmt: skip

HEADERS: list[Row] = [
    ("application/at+jwt", header(typ="application/at+jwt"), "receive"),
    ("another case", header(typ="AT+JWT"), "receive"),
    ("another case of the prefix", header(typ="Application/AT+jwt"), "receive"),
    ("JWT", header(typ="JWT"), Reason.TOKEN_TYPE),
    ("no type", header(typ=None), Reason.TOKEN_TYPE),
    ("an empty type", header(typ=""), Reason.TOKEN_TYPE),
    ("another type", header(typ="id+jwt"), Reason.TOKEN_TYPE),
    ("two prefixes", header(typ="application/application/at+jwt"), Reason.TOKEN_TYPE),
    ("a blank behind it", header(typ="at+jwt "), Reason.TOKEN_TYPE),
    ("a number", header(typ=1), Reason.TOKEN_TYPE),
    ("a list", header(typ=["at+jwt"]), Reason.TOKEN_TYPE),
    ("crit", header(crit=["exp"]), Reason.HEADER),
    ("an empty crit", header(crit=[]), Reason.HEADER),
    ("b64", header(b64=False, crit=["b64"]), Reason.HEADER),
    ("jku", header(jku="https://evil.example/jwks"), Reason.HEADER),
    ("x5u", header(x5u="https://evil.example/cert"), Reason.HEADER),
    ("jwk", header(jwk={"kty": "RSA"}), Reason.HEADER),
    ("x5t is ignored", header(x5t="abc"), "receive"),
    ("cty is ignored", header(cty="json"), "receive"),
    ("a duplicate parameter", raw_header('{"alg":"RS256","alg":"RS256","kid":"a"}'),
     Reason.MALFORMED),
    ("not JSON", raw_header("{"), Reason.MALFORMED),
    ("a list as header", raw_header("[]"), Reason.MALFORMED),
    ("NaN", raw_header('{"alg":"RS256","kid":"a","typ":"at+jwt","x":NaN}'), Reason.MALFORMED),
    ("nested too deeply", raw_header("[" * 9000), Reason.MALFORMED),
]  # fmt: skip

TIMES: list[Row] = [
    ("exp in the future", has(exp=int(NOW) + 1), "receive"),
    ("exp now", has(exp=int(NOW)), Reason.EXPIRED),
    ("exp in the past, within the leeway", has(exp=int(NOW) - 1), Reason.EXPIRED),
    ("exp 0", has(exp=0), Reason.EXPIRED),
    ("exp with a fraction", has(exp=NOW + 0.5), "receive"),
    ("exp with a fraction, in the past", has(exp=NOW - 0.5), Reason.EXPIRED),
    ("exp with .0", raw_claims('{$, "exp": 1544059820.0}'), "receive"),
    ("exp with an exponent", raw_claims('{$, "exp": 1.54406e9}'), "receive"),
    ("exp in the year 9999", raw_claims('{$, "exp": 253402300799}'), "receive"),
    ("exp in the year 10000", raw_claims('{$, "exp": 253402300800}'), Reason.CLAIMS),
    ("exp in milliseconds", has(exp=EXPIRY * 1000), Reason.CLAIMS),
    ("exp too large for a float", raw_claims('{$, "exp": 1e400}'), Reason.CLAIMS),
    ("exp of 5,000 digits", raw_claims('{$, "exp": %s}' % ("9" * 5000)), Reason.MALFORMED),
    ("exp of 400 digits", raw_claims('{$, "exp": %s}' % ("9" * 400)), Reason.CLAIMS),
    ("exp NaN", raw_claims('{$, "exp": NaN}'), Reason.MALFORMED),
    ("exp Infinity", raw_claims('{$, "exp": Infinity}'), Reason.MALFORMED),
    ("exp true", has(exp=True), Reason.CLAIMS),
    ("exp a string", has(exp=str(EXPIRY)), Reason.CLAIMS),
    ("exp a list", has(exp=[EXPIRY]), Reason.CLAIMS),
    ("exp null", raw_claims('{$, "exp": null}'), Reason.CLAIMS),
    ("exp negative", has(exp=-1), Reason.CLAIMS),
    ("exp missing", has(exp=None), Reason.CLAIMS),
    ("exp twice", raw_claims('{$, "exp": 1544059820, "exp": 1544059820}'), Reason.MALFORMED),
    ("nbf in the past", has(nbf=int(NOW) - 1), "receive"),
    ("nbf at the end of the leeway", has(nbf=int(NOW) + 10), "receive"),
    ("nbf after the leeway", has(nbf=int(NOW) + 11), Reason.NOT_YET_VALID),
    ("nbf with a fraction", has(nbf=NOW + 10.5), Reason.NOT_YET_VALID),
    ("nbf a string", has(nbf=str(int(NOW))), Reason.CLAIMS),
    ("nbf true", has(nbf=True), Reason.CLAIMS),
    ("nbf null", raw_claims('{$, "exp": 1544059820, "nbf": null}'), Reason.CLAIMS),
    ("nbf in the year 10000", has(nbf=253402300800), Reason.CLAIMS),
    ("iat in the future is not looked at", has(iat=int(NOW) + 9000), "receive"),
    ("iat a string is not looked at", has(iat="now"), "receive"),
]  # fmt: skip

CLAIMS: list[Row] = [
    ("aud is the second", has(aud="second"), "receive"),
    ("aud is a list with it", has(aud=["account", AUDIENCE]), "receive"),
    ("aud is another", has(aud="account"), Reason.AUDIENCE),
    ("aud is a list of others", has(aud=["account", "x"]), Reason.AUDIENCE),
    ("aud is an empty list", has(aud=[]), Reason.AUDIENCE),
    ("aud is missing", has(aud=None), Reason.AUDIENCE),
    ("aud without the slash", has(aud=AUDIENCE.rstrip("/")), Reason.AUDIENCE),
    ("aud begins alike", has(aud=AUDIENCE + "x"), Reason.AUDIENCE),
    ("aud is a number", has(aud=1), Reason.CLAIMS),
    ("aud is an object", has(aud={AUDIENCE: True}), Reason.CLAIMS),
    ("aud is a list with a number", has(aud=[AUDIENCE, 1]), Reason.CLAIMS),
    ("aud in client_id", has(aud=None, client_id=AUDIENCE), Reason.AUDIENCE),
    ("iss is another", has(iss="https://evil.example"), Reason.ISSUER),
    ("iss is missing", has(iss=None), Reason.ISSUER),
    ("iss with a slash", has(iss=ISSUER + "/"), Reason.ISSUER),
    ("iss is a list", has(iss=[ISSUER]), Reason.ISSUER),
    ("iss is an object", has(iss={"a": 1}), Reason.ISSUER),
    ("iss twice", raw_claims('{"iss": "x", $, "exp": 1544059820}'), Reason.MALFORMED),
    ("sub is missing", has(sub=None), "receive"),
    ("sub is a number", has(sub=1), Reason.CLAIMS),
    ("sub is half a surrogate pair", has(sub="\ud800"), Reason.CLAIMS),
    ("scope has several", has(scope="openid news write"), "receive send"),
    ("scope has others", has(scope="newsletter NEWS"), ""),
    ("scope is missing", has(scope=None), ""),
    ("scope is a list", has(scope=["news", "write"]), "receive send"),
    ("scp is text", has(scope=None, scp="news"), "receive"),
    ("scp is a list", has(scope=None, scp=["write"]), "send"),
    ("scope and scp add up", has(scp=["write"]), "receive send"),
    ("scope with a tab", has(scope="news\twrite"), ""),
    ("scope is a number", has(scope=1), Reason.CLAIMS),
    ("scope is a list with a number", has(scope=["news", 1]), Reason.CLAIMS),
    ("scp is an object", has(scp={"news": True}), Reason.CLAIMS),
    ("a claim holds the value", has(groups=["staff"]), "receive send"),
    ("a claim is the value", has(groups="staff"), "receive send"),
    ("a claim has another value", has(groups=["Staff"]), "receive"),
    ("a nested claim holds the value", has(realm={"roles": ["editor"]}), "receive send"),
    ("a nested claim is elsewhere", has(roles=["editor"]), "receive"),
    ("the claims are a list", raw_claims("[1]"), Reason.MALFORMED),
    ("the claims are text", raw_claims('"x"'), Reason.MALFORMED),
    ("the claims are empty", raw_claims(""), Reason.MALFORMED),
    ("a claim twice, nested", raw_claims('{$, "exp": 1544059820, "x": {"a": 1, "a": 1}}'),
     Reason.MALFORMED),
    ("authorization_details without the setting", has(authorization_details="x"), "receive"),
]  # fmt: skip

FORMS: list[Row] = [
    ("empty", lambda _: "", Reason.MALFORMED),
    ("an opaque token", lambda _: "AA~91WT0GNoVGFHJFQ.......e", Reason.MALFORMED),
    ("two parts", changed(lambda parts: parts.pop()), Reason.MALFORMED),
    ("four parts", changed(lambda parts: parts.append("x")), Reason.MALFORMED),
    ("an encrypted token", changed(lambda parts: parts.extend(["x", "x"])), Reason.MALFORMED),
    ("padding in the header", part(0, lambda text: text + "="), Reason.MALFORMED),
    ("padding in the signature", part(2, lambda text: text + "=="), Reason.MALFORMED),
    ("a character outside base64url", part(1, lambda text: text + "!"), Reason.MALFORMED),
    ("base64 that is not base64url", part(2, lambda text: "+/" + text[2:]), Reason.MALFORMED),
    ("a line end", part(2, lambda text: text + "\n"), Reason.MALFORMED),
    ("a letter outside ASCII", part(1, lambda text: text + "\u3042"), Reason.MALFORMED),
    ("an empty signature", part(2, lambda _: ""), Reason.SIGNATURE),
    ("half a signature", part(2, lambda text: text[: len(text) // 2 // 4 * 4]), Reason.SIGNATURE),
    ("a long signature", part(2, lambda text: "AAAA" + text), Reason.SIGNATURE),
    ("the signature of another token", lambda issuer: ".".join(
        [*issuer.token(scope="write").split(".")[:2], issuer.token().split(".")[2]]),
     Reason.SIGNATURE),
    ("changed claims", part(1, lambda text: b64(
        json.dumps({"iss": ISSUER, "aud": AUDIENCE, "exp": EXPIRY + 1}).encode())),
     Reason.SIGNATURE),
    ("bits that belong to no byte", part(2, lambda text: text[:-1] + "B"), Reason.MALFORMED),
    ("claims that are not UTF-8", lambda issuer: encode(
        b'{"alg":"RS256","kid":"a","typ":"at+jwt"}', b'{"iss":"\xff"}', key("RSA2048"), "RS256"),
     Reason.MALFORMED),
    ("100 KB", has(padding="x" * 75000), Reason.MALFORMED),
    ("just below 32 KiB", has(padding="x" * 24000), "receive"),
    ("nested too deeply", raw_claims('{$, "exp": 1, "x": %s}' % ("[" * 20000)), Reason.MALFORMED),
]  # fmt: skip


class TokenTableTests(TableTestCase):
    """Each row is a token with a name; the tables have more than 120 rows."""

    def check(self, rows: list[Row]) -> None:
        for name, make, expected in rows:
            with self.subTest(name):
                token = make(self.issuer)
                if isinstance(expected, Reason):
                    self.assert_refused(token, expected)
                else:
                    self.assert_granted(token, may=expected)

    def test_the_tables_have_enough_rows(self) -> None:
        tables = [ALGORITHMS, KEYS, HEADERS, TIMES, CLAIMS, FORMS]
        self.assertGreater(sum(map(len, tables)), 150)
        for table in tables:
            self.assertEqual(len({name for name, _, _ in table}), len(table))

    def test_algorithms(self) -> None:
        self.check(ALGORITHMS)

    def test_keys(self) -> None:
        self.check(KEYS)

    def test_headers(self) -> None:
        self.check(HEADERS)

    def test_times(self) -> None:
        self.check(TIMES)

    def test_claims(self) -> None:
        self.check(CLAIMS)

    def test_forms(self) -> None:
        self.check(FORMS)


class SettingTests(TableTestCase):
    """The settings of an issuer change the verdict."""

    def test_allowed_types(self) -> None:
        for token_types, typ, is_allowed in (
            (("JWT",), "JWT", True),
            (("JWT",), "jwt", True),
            (("jwt",), "application/jwt", True),
            (("application/at+jwt",), "at+jwt", True),
            (("JWT",), "at+jwt", False),
            (("JWT",), None, False),
            (("at+jwt", "JWT"), "JWT", True),
            (("",), None, True),
            (("",), "JWT", False),
        ):
            token = self.issuer.token(header={"typ": typ})
            with self.subTest(token_types=token_types, typ=typ):
                if is_allowed:
                    self.assert_granted(token, token_types=token_types)
                else:
                    self.assert_refused(token, Reason.TOKEN_TYPE, token_types=token_types)

    def test_allowed_algorithms(self) -> None:
        token = self.issuer.token()
        self.assert_granted(token, algorithms=("RS256",))
        self.assert_refused(token, Reason.ALGORITHM, algorithms=("ES256", "RS512"))

    def test_another_audience_claim(self) -> None:
        token = self.issuer.token(aud=None, client_id="second")
        self.assert_granted(token, audience_claim="client_id")
        self.assert_refused(
            self.issuer.token(client_id="x"), Reason.AUDIENCE, audience_claim="client_id"
        )

    def test_another_leeway(self) -> None:
        token = self.issuer.token(nbf=int(NOW) + 60)
        self.assert_granted(token, leeway=60)
        self.assert_refused(token, Reason.NOT_YET_VALID, leeway=59)
        self.assert_refused(self.issuer.token(exp=int(NOW)), Reason.EXPIRED, leeway=60)

    def test_another_subject_claim(self) -> None:
        token = self.issuer.token(sub="f81d4fae", preferred_username="alice")
        grant = self.assert_granted(token, INBOX, subject_claim="preferred_username")
        self.assertEqual(grant.subject, "alice")
        self.assert_granted(token, INBOX, may="")

    def test_other_scope_claims(self) -> None:
        token = self.issuer.token(permissions=["write"])
        self.assert_granted(token, may="send", scope_claims=("permissions",))
        self.assert_granted(token, may="", scope_claims=())


class GrantTests(TableTestCase):
    """The rights and the life of a valid token."""

    def test_subject_and_expiry(self) -> None:
        grant = self.assert_granted(self.issuer.token(exp=EXPIRY))
        self.assertEqual((grant.subject, grant.expires_at), ("alice", EXPIRY))
        self.assertIsNone(self.assert_granted(self.issuer.token(sub=None)).subject)

    def test_each_subject_has_its_own_topics(self) -> None:
        for subject in ("alice",):
            self.assert_granted(self.issuer.token(sub=subject), INBOX)
        for subject in ("bob", "Alice", "*", "/", "alice/inbox", "a/../alice", "%61lice", "",
                        "alice\0", "alice ", "\u3042", "\u0430lice", "{sub}", "..", None,
                        "https://cell1.unit1.example/#alice"):  # fmt: skip
            with self.subTest(subject):
                self.assert_granted(self.issuer.token(sub=subject), INBOX, may="")

    def test_a_valid_token_without_a_right_says_why(self) -> None:
        grant = self.assert_granted(self.issuer.token(scope="mail", sub=None), may="")
        assert grant.refusal is not None
        self.assertIs(grant.refusal.reason, Reason.NO_RIGHT)
        self.assertEqual(grant.refusal.detail, 'it meets no rule; its scopes: "mail"')
        elsewhere = TopicAddress("cell2", "box1", ("col",), "name")
        grant = self.assert_granted(self.issuer.token(), elsewhere, may="")
        assert grant.refusal is not None
        self.assertIn("the rules that it meets are for other topics", grant.refusal.detail)


class DetailsTests(TableTestCase):
    """``authorization_details`` (RFC 9396)."""

    def entry(self, **changes: Any) -> dict[str, Any]:
        entry = {"type": DETAILS, "actions": ["send"], "topics": ["/cell1/*"], **changes}
        return {name: value for name, value in entry.items() if value is not None}

    def test_entries_give_rights(self) -> None:
        for entries, may in (
            ([self.entry()], "send"),
            ([self.entry(actions=["receive", "send"])], "receive send"),
            ([self.entry(actions=["receive"]), self.entry()], "receive send"),
            ([self.entry(topics=[TOPIC.path])], "send"),
            ([self.entry(topics=["/cell2/*"])], ""),
            ([self.entry(topics=["/cell2/*", "/*"])], "send"),
            ([self.entry(topics=["/cell1/*"] * 128)], "send"),
            ([self.entry(actions=[])], ""),
            ([self.entry(topics=[])], ""),
            ([], ""),
            ([{"type": "payment", "actions": 1}], ""),
            ([{"type": "payment"}, self.entry()], "send"),
            ([self.entry(locations=["x"], note=1)], "send"),
        ):
            with self.subTest(entries):
                token = self.issuer.token(scope=None, authorization_details=entries)
                self.assert_granted(token, may=may, details_type=DETAILS)

    def test_scopes_and_entries_add_up(self) -> None:
        token = self.issuer.token(authorization_details=[self.entry()])
        self.assert_granted(token, may="receive send", details_type=DETAILS)
        self.assert_granted(token, may="receive")

    def test_one_malformed_entry_refuses_the_token(self) -> None:
        for wrong in (
            "x", 1, None, [], {}, {"type": 1}, {"type": None},
            self.entry(actions=None), self.entry(actions="send"), self.entry(actions=["fly"]),
            self.entry(actions=["send", 1]), self.entry(actions={"send": True}),
            self.entry(topics=None), self.entry(topics="/cell1/*"), self.entry(topics=[1]),
            self.entry(topics=["cell1/*"]), self.entry(topics=["/cell1/*/x"]),
            self.entry(topics=["/{sub}/*"]), self.entry(topics=["/cell1/*"] * 129),
            self.entry(topics=["/cell1/*", "/A/*"]),
        ):  # fmt: skip
            with self.subTest(wrong):
                token = self.issuer.token(authorization_details=[self.entry(), wrong])
                self.assert_refused(token, Reason.CLAIMS, details_type=DETAILS)
        for wrong in ({}, "x", 1, True, self.entry()):
            token = self.issuer.token(authorization_details=wrong)
            self.assert_refused(token, Reason.CLAIMS, details_type=DETAILS)


class ReasonTests(TableTestCase):
    """The detail of a refusal names the seen and the allowed value."""

    def detail(self, token: str, **changes: Any) -> str:
        failure = self.failureResultOf(self.build(**changes).validate(token, TOPIC), TokenInactive)
        return str(failure.value.refusal.detail)

    def test_details(self) -> None:
        token = self.issuer.token
        for made, expected in (
            (token(aud=["account"]),
             'aud is ["account"]; allowed: "https://push.example/", "second"'),
            (token(aud=None), 'aud is missing; allowed: "https://push.example/", "second"'),
            (token(iss="x"), f'iss is "x"; allowed: "{ISSUER}", "{OTHER}"'),
            (token(header={"typ": "JWT"}), 'typ is "JWT"; allowed (token_types): "at+jwt"'),
            (token(header={"typ": None}), 'typ is missing; allowed (token_types): "at+jwt"'),
            (token(exp=int(NOW) - 60), "exp is 60 s in the past"),
            (token(exp="x"), 'exp is "x", no time in seconds'),
            (token(exp=None), "exp is missing"),
            (token(nbf=int(NOW) + 60),
             "nbf is 60 s in the future; allowed: up to 10 s in the future"),
            (token(header={"kid": "z"}), 'kid is "z"; keys of the issuer: "a", "ec256", "ec384" '
             "and 7 more"),
            (token(header={"kid": None}), "kid is missing, and 4 keys fit"),
            (token(sub=1), "sub is no text"),
            (token(scope=1), "scope is not a text or a list of texts"),
            (token(header={"jku": "x"}), "it has jku, which is never used"),
            ("a.b.c.d.e", "an encrypted token (JWE); the issuer must send signed ones"),
            ("opaque", "not a JWT, but an opaque token"),
        ):  # fmt: skip
            with self.subTest(expected):
                self.assertEqual(self.detail(made), expected)
        self.assertIn("alg is \"HS256\"; allowed: RS256, ", self.detail(
            token(header={"alg": "HS256"})))  # fmt: skip

    def test_the_advice_for_another_type_names_the_setting(self) -> None:
        token = self.issuer.token(header={"typ": "JWT"})
        failure = self.failureResultOf(self.build().validate(token, TOPIC), TokenInactive)
        self.assertIn("token_types", failure.value.refusal.advice)

    def test_no_detail_has_the_subject_or_the_token(self) -> None:
        for changes in ({"exp": 1}, {"aud": "x"}, {"iss": "x"}, {"scope": 1}, {"nbf": "x"}):
            token = self.issuer.token(sub="canary-subject", **changes)
            detail = self.detail(token)
            self.assertNotIn("canary", detail)
            for piece in token.split("."):
                self.assertNotIn(piece[:20], detail)

    def test_a_long_value_is_cut(self) -> None:
        self.assertLess(len(self.detail(self.issuer.token(aud="x" * 10000))), 200)
        self.assertLess(len(self.detail(self.issuer.token(aud=["x\n" * 999] * 999))), 500)

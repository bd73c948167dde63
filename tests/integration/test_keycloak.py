"""JWTs and introspection with a real Keycloak."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Generator
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred, inlineCallbacks
from twisted.internet.threads import deferToThread

from tests.integration.support.keycloak_server import (
    AUDIENCE,
    AUDIENCE_SECRET,
    LIFESPAN,
    PASSWORD,
    USER,
    Keycloak,
    need_keycloak,
)
from tests.integration.support.validated_service import TOPIC, ValidatedServiceTestCase, sleep
from topicsvc import config
from topicsvc.errors import TokenInactive
from topicsvc.refusals import RefusalReason

Test = Generator[Deferred[Any], Any, None]

MAX_AGE = 10
"""Seconds between two fetches of the keys: the least that is allowed."""

RULES = """
    [[validator.rules]]
    scope = "news"
    topics = ["/cell1/box1/*"]
    may = ["receive"]
    [[validator.rules]]
    claim = ["realm_access", "roles"]
    value = "editor"
    topics = ["/cell1/box1/*"]
    may = ["send"]
"""


class KeycloakTests(ValidatedServiceTestCase):
    """All tests use one server, which the last one stops."""

    timeout = 900
    check_timeout = 60  # more than FETCH_INTERVAL, and the fetch
    server: Keycloak | None = None
    left = 0

    @inlineCallbacks
    def setUp(self) -> Test:
        need_keycloak()
        yield super().setUp()
        cls = KeycloakTests
        if cls.server is None:
            cls.left = sum(name.startswith("test_") for name in dir(cls))
            cls.server = Keycloak()
            yield cls.server.start()
        self.keycloak = cls.server

    def tearDown(self) -> None:
        super().tearDown()
        KeycloakTests.left -= 1
        if KeycloakTests.left == 0:
            self.keycloak.stop()
            KeycloakTests.server = None

    def start_jwt(self, more: str = "") -> None:
        text = f"""
            listen = ["tcp:0"]
            unit_url = "https://unit1.example/"
            [session]
            ping_interval = 3600  # clients are told of their tokens only
            [validator]
            kind = "jwt"
            timeout = {self.check_timeout}
            recheck = 1
            [[validator.issuers]]
            issuer = "{self.keycloak.issuer}"
            audience = ["{AUDIENCE}"]
            token_types = ["JWT", "at+jwt"]
            max_age = {MAX_AGE}
            {more}
        """
        self.start(config.load(text + RULES))

    def do(self, function: Callable[..., Any], *arguments: Any, **settings: Any) -> Deferred[Any]:
        """Send requests to Keycloak in a thread."""
        return deferToThread(function, *arguments, **settings)

    def header(self, token: str) -> dict[str, Any]:
        return self.part(token, 0)

    def claims(self, token: str) -> dict[str, Any]:
        return self.part(token, 1)

    def part(self, token: str, number: int) -> dict[str, Any]:
        """A part of a JWT."""
        part = token.split(".")[number]
        return dict(json.loads(base64.urlsafe_b64decode(part + "==")))

    @inlineCallbacks
    def begin(self, token: str) -> Generator[Deferred[Any], Any, Any]:
        """Start a session; fires with its client."""
        client = self.connect()
        client.present(token)
        text, _ = yield self.reply(client)
        self.assertIn('"Result":"Success"', text)
        return client

    @inlineCallbacks
    def test_tokens_of_both_types_are_accepted(self) -> Test:
        self.start_jwt()
        for value, typ in (("false", "JWT"), ("true", "at+jwt")):
            yield self.do(self.keycloak.set_client, **{"access.token.header.type.rfc9068": value})
            token = yield self.do(self.keycloak.token)
            self.assertEqual(self.header(token)["typ"], typ)
            expires_at = self.claims(token)["exp"]
            self.assertEqual(expires_at - self.claims(token)["iat"], LIFESPAN)
            most = expires_at - int(reactor.seconds())
            outcome = yield self.present(token)
            least = expires_at - int(reactor.seconds()) - 1
            self.assertIn('"Result":"Success"', outcome.text)
            self.assertIn(json.loads(outcome.text)["ExpiresIn"], range(least, most + 1))

    @inlineCallbacks
    def test_scopes_and_nested_roles_give_rights(self) -> Test:
        self.start_jwt()
        token = yield self.do(self.keycloak.token)
        grant = yield self.service._validators.validator.validate(token, TOPIC)
        self.assertEqual((grant.may_receive, grant.may_send), (True, True))
        # Without the scope there is no audience either.
        token = yield self.do(self.keycloak.token, "openid")
        check = self.service._validators.validator.validate(token, TOPIC)
        refused = yield self.assertFailure(check, TokenInactive)
        self.assertIs(refused.refusal.reason, RefusalReason.AUDIENCE)

    @inlineCallbacks
    def test_an_id_token_and_a_refresh_token_are_refused(self) -> Test:
        self.start_jwt()
        tokens = yield self.do(
            self.keycloak._request, "token", grant_type="password", username=USER,
            password=PASSWORD, scope="openid news",
        )  # fmt: skip
        for name in ("id_token", "refresh_token"):
            outcome = yield self.present(tokens[name])
            self.assertIn("Token inactive", outcome.text)

    @inlineCallbacks
    def test_keys_are_rotated_while_sessions_live(self) -> Test:
        """RS256, then ES256, then another RSA key, and the ES256 key is withdrawn."""
        self.start_jwt()
        old = yield self.begin((yield self.do(self.keycloak.token)))
        yield self.do(
            self.keycloak.add_key, "es256", "ecdsa-generated", ecdsaEllipticCurveKey="P-256"
        )
        yield self.do(self.keycloak.set_client, **{"access.token.signed.response.alg": "ES256"})
        token = yield self.do(self.keycloak.token)
        self.assertEqual(self.header(token)["alg"], "ES256")
        elliptic = yield self.begin(token)
        yield self.do(self.keycloak.add_key, "rsa2", "rsa-generated")
        yield self.do(self.keycloak.set_client, **{"access.token.signed.response.alg": "RS256"})
        token = yield self.do(self.keycloak.token)
        self.assertEqual(self.header(token)["alg"], "RS256")
        new = yield self.begin(token)
        for client in (old, elliptic, new):
            client.assert_nothing()
        yield self.do(self.keycloak.remove_key, "es256")
        text, code = yield self.reply(elliptic)
        self.assertIn('"Reason":"Token inactive"', text)
        self.assertEqual(code, 1008)
        yield sleep(2.5)  # at least one more recheck of the others
        for client in (old, new):
            client.assert_nothing()

    @inlineCallbacks
    def test_introspection_by_the_same_realm_sees_a_revocation(self) -> Test:
        endpoint = f"{self.keycloak.issuer}/protocol/openid-connect/token/introspect"
        text = f"""
            listen = ["tcp:0"]
            unit_url = "https://unit1.example/"
            [session]
            ping_interval = 3600
            [validator]
            kind = "introspection"
            url = "{endpoint}"
            client_id = "{AUDIENCE}"
            client_secret_file = "{self.secret_file(secret=AUDIENCE_SECRET)}"
            issuer = "{self.keycloak.issuer}"
            audience = "{AUDIENCE}"
            timeout = {self.check_timeout}
            recheck = 1
        """
        self.start(config.load(text + RULES))
        token = yield self.do(self.keycloak.token)
        client = yield self.begin(token)
        yield sleep(1.5)  # at least one recheck that succeeds
        client.assert_nothing()
        yield self.do(self.keycloak.revoke, token)
        text, code = yield self.reply(client)
        self.assertIn('"Reason":"Token inactive"', text)
        self.assertEqual(code, 1008)

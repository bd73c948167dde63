"""Introspection and JWTs of a certified OAuth 2.0 server: ``oidc-provider`` from npm."""

from __future__ import annotations

import json
import os
import shutil
from base64 import b64encode, urlsafe_b64decode
from collections.abc import Generator
from pathlib import Path
from typing import Any
from unittest import mock
from urllib.parse import quote_plus

from treq.client import HTTPClient
from twisted.internet import reactor
from twisted.internet.defer import Deferred, inlineCallbacks
from twisted.web.client import Agent

from tests.integration.support.requirements import need
from tests.integration.support.validated_service import ValidatedServiceTestCase, sleep
from tests.support.processes import Process
from topicsvc import config
from topicsvc.settings import Config

HERE = Path(__file__).parent / "oidc"

# Ids and secrets that must be encoded in a form and in a header (RFC 6749, section 2.3.1).
CLIENT = ("client one", "secret:+%/ =&")
RESOURCE_SERVER = ("topic:svc", "another secret: 100%+")

Test = Generator[Deferred[Any], Any, None]


class OidcTestCase(ValidatedServiceTestCase):
    """A server, and a service that accepts its tokens."""

    check_timeout = 60

    @inlineCallbacks
    def setUp(self) -> Test:
        need(shutil.which("node"), "node (tests/integration/install.sh)")
        need((HERE / "node_modules").is_dir(), "oidc-provider (tests/integration/install.sh)")
        yield super().setUp()
        clients = {
            "client": dict(zip(("id", "secret"), CLIENT, strict=True)),
            "resourceServer": dict(zip(("id", "secret"), RESOURCE_SERVER, strict=True)),
        }
        with mock.patch.dict(os.environ, OIDC_CLIENTS=json.dumps(clients)):
            server = Process(["node", str(HERE / "server.js")])
        self.addCleanup(server.stop)
        self.url = f"http://127.0.0.1:{server.wait_for('(?m)^([0-9]+)$')[1]}"
        self.client = HTTPClient(Agent(reactor))
        self.start(self.settings("recheck = 1"))

    def settings(self, more: str = "") -> Config:
        """The settings of the service; overridden."""
        raise NotImplementedError

    @inlineCallbacks
    def post(self, path: str, **form: str) -> Generator[Deferred[Any], Any, Any]:
        """Send a form to the server with the credentials of the client; fires with the response."""
        credentials = b64encode(":".join(map(quote_plus, CLIENT)).encode())
        response = yield self.client.post(
            self.url + path, data=form, headers={"Authorization": b"Basic " + credentials}
        )
        body = yield response.text()
        self.assertEqual(response.code, 200, body)
        return json.loads(body) if body else None

    @inlineCallbacks
    def token(self, scope: str, **form: str) -> Generator[Deferred[Any], Any, str]:
        response = yield self.post("/token", grant_type="client_credentials", scope=scope, **form)
        return str(response["access_token"])

    @inlineCallbacks
    def send(self, token: str, path: str = "/box1/col/topic/name") -> Any:
        client = self.connect_http()
        client.request("POST", path, {"Authorization": f"Bearer {token}"}, b"1")
        while not client.status:
            yield sleep(0.01)
            client.read_answer()
        client.disconnect()
        return client.status


class RightsCases:
    """What holds for every kind of token; mixed into test cases."""

    @inlineCallbacks
    def test_a_token_is_accepted(self) -> Test:
        began = reactor.seconds()
        token = yield self.token("news")
        outcome = yield self.present(token)
        self.assertIn('"Result":"Success"', outcome.text)
        passed = int(reactor.seconds() - began)
        self.assertIn(json.loads(outcome.text)["ExpiresIn"], range(598 - passed, 601))

    @inlineCallbacks
    def test_the_scopes_of_a_token_give_its_rights(self) -> Test:
        reader, writer = (yield self.token("news")), (yield self.token("editor"))
        outcome = yield self.present(writer)
        self.assertIn("Token inactive", outcome.text)
        self.assertEqual((yield self.send(writer)), 200)
        self.assertEqual((yield self.send(reader)), 403)
        self.assertEqual((yield self.send(writer, "/box2/col/topic/name")), 404)
        both = yield self.token("news editor")
        outcome = yield self.present(both)
        self.assertIn('"Result":"Success"', outcome.text)
        self.assertEqual((yield self.send(both)), 200)


class OidcTests(RightsCases, OidcTestCase):
    """Introspection of opaque tokens."""

    def settings(self, more: str = "", secret: str = RESOURCE_SERVER[1]) -> Config:
        return config.load(f"""
            listen = ["tcp:0"]
            unit_url = "https://unit1.example/"
            topics = ["/cell1/box1/*"]
            [validator]
            kind = "introspection"
            url = "{self.url}/token/introspection"
            client_id = "{RESOURCE_SERVER[0]}"
            client_secret_file = "{self.secret_file(secret=secret)}"
            issuer = "{self.url}"
            {more}
            [[validator.rules]]
            scope = "news"
            topics = ["/cell1/*"]
            may = ["receive"]
            [[validator.rules]]
            scope = "editor"
            topics = ["/cell1/box1/*"]
            may = ["send"]
        """)

    @inlineCallbacks
    def test_a_revoked_token_is_rejected(self) -> Test:
        token = yield self.token("news")
        yield self.post("/token/revocation", token=token)
        outcome = yield self.present(token)
        self.assertIn('"Reason":"Token inactive"', outcome.text)
        self.assertEqual(outcome.code, 1008)
        self.assertEqual((yield self.send(token)), 401)

    @inlineCallbacks
    def test_revoking_a_token_ends_its_session(self) -> Test:
        token = yield self.token("news")
        client = self.connect()
        client.present(token)
        text, code = yield self.reply(client)
        self.assertIn('"Result":"Success"', text)
        yield sleep(1.5)  # at least one recheck that succeeds
        client.assert_nothing()
        yield self.post("/token/revocation", token=token)
        text, code = yield self.reply(client)
        self.assertIn('"Reason":"Token inactive"', text)
        self.assertEqual(code, 1008)

    @inlineCallbacks
    def test_an_unknown_token_is_rejected(self) -> Test:
        outcome = yield self.present("made-up")
        self.assertIn('"Reason":"Token inactive"', outcome.text)
        self.assertEqual(outcome.code, 1008)

    @inlineCallbacks
    def test_a_wrong_client_secret_does_not_reject_the_token(self) -> Test:
        token = yield self.token("news")
        yield self.stop()
        self.start(self.settings(secret="wrong"))
        outcome = yield self.present(token)
        self.assertIn('"Reason":"Service unavailable"', outcome.text)
        self.assertEqual(outcome.code, 1013)


class OidcJwtTests(RightsCases, OidcTestCase):
    """The same rights by JWTs of RFC 9068, which the server issues for a resource (RFC 8707)."""

    resource = "https://push.example/"
    algorithm = "PS256"

    def settings(self, more: str = "") -> Config:
        return config.load(f"""
            listen = ["tcp:0"]
            unit_url = "https://unit1.example/"
            topics = ["/cell1/box1/*"]
            [validator]
            kind = "jwt"
            {more}
            [[validator.issuers]]
            issuer = "{self.url}"
            audience = ["{self.resource}"]
            algorithms = ["{self.algorithm}"]
            [[validator.rules]]
            scope = "news"
            topics = ["/cell1/*"]
            may = ["receive"]
            [[validator.rules]]
            scope = "editor"
            topics = ["/cell1/box1/*"]
            may = ["send"]
        """)

    def token(self, scope: str, **form: str) -> Deferred[str]:
        result: Deferred[str] = super().token(scope, **{"resource": self.resource, **form})
        return result

    @inlineCallbacks
    def test_the_token_is_a_jwt_of_rfc_9068(self) -> Test:
        token = yield self.token("news")
        header = json.loads(urlsafe_b64decode(token.partition(".")[0] + "=="))
        self.assertEqual((header["typ"], header["alg"]), ("at+jwt", self.algorithm))

    @inlineCallbacks
    def test_a_token_for_another_resource_is_rejected(self) -> Test:
        other = {"https://push.example/", "https://push.example/ed25519"} - {self.resource}
        token = yield self.token("news", resource=other.pop())
        outcome = yield self.present(token)
        self.assertIn('"Reason":"Token inactive"', outcome.text)

    @inlineCallbacks
    def test_an_unknown_token_is_rejected(self) -> Test:
        for token in ("made-up", (yield self.opaque_token())):
            outcome = yield self.present(token)
            self.assertIn('"Reason":"Token inactive"', outcome.text)
            self.assertEqual(outcome.code, 1008)

    @inlineCallbacks
    def opaque_token(self) -> Generator[Deferred[Any], Any, str]:
        response = yield self.post("/token", grant_type="client_credentials", scope="news")
        return str(response["access_token"])


class OidcEdDsaTests(OidcJwtTests):
    """The same with EdDSA."""

    resource = "https://push.example/ed25519"
    algorithm = "EdDSA"

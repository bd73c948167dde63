"""The metadata of RFC 9728: which issuers a client may get a token from."""

from __future__ import annotations

import json
from typing import Any

from tests.support.harness import BEARER, HANDSHAKE, HOST, SEND_PATH, Client, HttpTestCase
from topicsvc.settings import (
    IntrospectionSettings,
    IssuerSettings,
    JwtSettings,
    LocalSettings,
    Rule,
    ValidatorSettings,
)
from topicsvc.topics import TopicPattern

PATH = "/.well-known/oauth-protected-resource"
ALL = (TopicPattern.parse("/*"),)
RULES = (
    Rule("news", ALL, frozenset({"receive"})),
    Rule("mail", ALL, frozenset({"receive"})),
    Rule("news", ALL, frozenset({"send"})),
    Rule(None, ALL, frozenset({"send"}), ("groups",), "staff"),
    Rule(None, ALL, frozenset({"send"})),
)
JWT = JwtSettings(
    (
        IssuerSettings("https://as.example/realms/main", ("x",)),
        IssuerSettings("http://localhost:8080", ("x",)),
        IssuerSettings("not a URL", ("x",), jwks=b""),
    ),
    RULES,
)


def introspection(issuer: str | None) -> IntrospectionSettings:
    return IntrospectionSettings("https://as.example/x", "me", "secret", (), issuer=issuer)


class MetadataTests(HttpTestCase):
    def get(
        self, validator: ValidatorSettings = JWT, host: str = HOST, method: str = "GET"
    ) -> tuple[Client, Any]:
        self.metadata.configure(validator)
        client = self.client()
        body = client.request(method, PATH, {"Host": host})
        return client, json.loads(body) if body else None

    def test_the_metadata_name_the_issuers_and_the_scopes(self) -> None:
        client, document = self.get()
        self.assertEqual(client.status, 200)
        self.assertEqual(client.headers["content-type"], ["application/json"])
        self.assertEqual(client.headers["access-control-allow-origin"], ["*"])
        self.assertEqual(
            document,
            {
                "resource": "https://cell1.unit1.example/",
                "authorization_servers": [
                    "https://as.example/realms/main",
                    "http://localhost:8080",
                ],
                "bearer_methods_supported": ["header"],
                "scopes_supported": ["mail", "news"],
            },
        )

    def test_the_resource_is_the_unit_or_the_cell_of_the_request(self) -> None:
        _, document = self.get(host="unit1.example")
        self.assertEqual(document["resource"], "https://unit1.example/")

    def test_an_introspection_server_is_known_if_its_issuer_is_set(self) -> None:
        _, document = self.get(introspection("https://as.example"))
        self.assertEqual(document["authorization_servers"], ["https://as.example"])
        self.assertNotIn("scopes_supported", document)

    def test_without_a_known_issuer_there_are_no_metadata(self) -> None:
        for validator in (LocalSettings(b""), introspection(None), introspection("us")):
            client, document = self.get(validator)
            self.assertEqual(client.status, 404)
            self.assertEqual(document["code"], "PR404-DV-0001")

    def test_other_methods(self) -> None:
        client, document = self.get(method="HEAD")
        self.assertEqual((client.status, document), (200, None))
        client, document = self.get(method="OPTIONS")
        self.assertEqual((client.status, document), (200, None))
        self.assertEqual(client.headers["allow"], ["OPTIONS, GET, HEAD"])
        client, document = self.get(method="POST")
        self.assertEqual((client.status, document["code"]), (405, "PR405-MC-0001"))
        self.assertEqual(client.headers["allow"], ["OPTIONS, GET, HEAD"])

    def test_another_host_is_refused(self) -> None:
        client, document = self.get(host="evil.example")
        self.assertEqual((client.status, document["code"]), (400, "PR400-CM-0005"))

    def test_an_upgrade_request_gets_the_metadata(self) -> None:
        self.metadata.configure(JWT)
        client = self.client()
        client.request("GET", PATH, HANDSHAKE)
        self.assertEqual(client.status, 200)


class ChallengeTests(HttpTestCase):
    """Each 401 to a send leads to the metadata, if there are any."""

    REALM = 'Bearer realm="https://cell1.unit1.example/"'

    def challenges(self) -> list[str]:
        """Return the challenges to a send without, with a malformed and an inactive token."""
        found = []
        for headers in ({}, {"Authorization": "Bearer \xe4"}, BEARER):
            client = self.client()
            client.request("POST", SEND_PATH, headers, b"1")
            if headers == BEARER:
                self.validator.checks.pop().refuse()
                client.read_answer()
            self.assertEqual(client.status, 401)
            found += client.headers["www-authenticate"]
        return found

    def test_with_known_issuers(self) -> None:
        self.metadata.configure(JWT)
        expected = f'{self.REALM}, resource_metadata="https://{HOST}{PATH}"'
        self.assertEqual(self.challenges(), [expected] * 3)

    def test_a_request_to_the_host_of_the_unit_leads_there(self) -> None:
        self.metadata.configure(JWT)
        client = self.client()
        client.request("POST", f"/cell1{SEND_PATH}", {"Host": "unit1.example"})
        [challenge] = client.headers["www-authenticate"]
        self.assertIn(f'resource_metadata="https://unit1.example{PATH}"', challenge)

    def test_a_token_that_expires_while_the_body_arrives(self) -> None:
        self.metadata.configure(JWT)
        client = self.client()
        head = [f"POST {SEND_PATH} HTTP/1.1", f"Host: {HOST}", "Content-Length: 1"]
        client.send_raw("\r\n".join([*head, "Authorization: Bearer a", "", ""]).encode())
        self.validator.checks.pop().grant(self.now + 1)
        self.advance(2)
        client.send_raw(b"1")
        client.read_answer()
        self.assertEqual(client.status, 401)
        self.assertIn("resource_metadata", client.headers["www-authenticate"][0])

    def test_without_known_issuers_the_challenge_is_as_before(self) -> None:
        self.assertEqual(self.challenges(), [self.REALM] * 3)

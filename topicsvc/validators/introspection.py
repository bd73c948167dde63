"""Validates tokens at an OAuth 2.0 server with token introspection (RFC 7662).

Such a server knows scopes and claims, not topics. Rules in the settings say which of them give
which right on which topics. Without a rule there is no right.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from typing import Any

from twisted.internet.defer import Deferred, inlineCallbacks

from topicsvc.errors import TokenInactive, ValidatorUnavailable
from topicsvc.interfaces import Grant, TokenValidator
from topicsvc.refusals import Refusal, RefusalReason, quoted, quoted_list
from topicsvc.settings import Rule
from topicsvc.topics import TopicAddress
from topicsvc.validators.http_client import HttpClient, Response, basic, bearer
from topicsvc.validators.introspection_response import Claims, is_client_refused, read_claims
from topicsvc.validators.rules import Facts, no_right, rights_of, rights_on

__all__ = ["IntrospectionValidator"]


class IntrospectionValidator(TokenValidator):
    """Validates a token with one introspection request.

    Args:
        http_client: sends requests.
        url: the server's introspection endpoint.
        client_id: the client's name there.
        client_secret: its secret.
        rules: which tokens have which rights.
        now: the time of day, in seconds since the epoch, which decides about expiry.
        issuer: the required ``iss``; None: any.
        audience: the required ``aud``; None: any.
    """

    def __init__(
        self,
        http_client: HttpClient,
        url: str,
        client_id: str,
        client_secret: str,
        rules: Iterable[Rule],
        now: Callable[[], float],
        issuer: str | None = None,
        audience: str | None = None,
    ) -> None:
        self._http_client = http_client
        self._url = url
        self._headers = {
            "Authorization": basic(client_id, client_secret),
            "Accept": "application/json",
        }
        self._rules = tuple(rules)
        self._now = now
        self._issuer = issuer
        self._audience = audience

    @inlineCallbacks
    def validate(self, token: str, topic: TopicAddress) -> Generator[Deferred[Any], Any, Grant]:
        """See `topicsvc.interfaces.TokenValidator`.

        No status but 200 says anything about the token: a server answers 200 to an unknown
        token, and 401 to unknown client credentials (RFC 7662, section 2.3).
        """
        bearer(token)  # refuses characters that no valid token has
        response: Response = yield self._http_client.request(
            "POST",
            self._url,
            self._headers,
            {"token": token, "token_type_hint": "access_token"},
        )
        if is_client_refused(response.status, response.body):
            raise ValidatorUnavailable(
                f"introspection: status {response.status}: wrong credentials; "
                "are client_id and client_secret_file right?"
            )
        if response.status != 200:
            raise ValidatorUnavailable(f"introspection: status {response.status}")
        claims = read_claims(response.body, self._now())
        self._check(claims)
        facts = Facts(claims.subject, claims.scopes, claims.members)
        of_token = rights_of(self._rules, facts)
        rights = rights_on(topic, of_token)
        return Grant(
            claims.subject,
            claims.expires_at,
            "receive" in rights,
            "send" in rights,
            None if rights else no_right(facts, of_token),
        )

    def _check(self, claims: Claims) -> None:
        if self._issuer is not None and claims.issuer != self._issuer:
            raise TokenInactive(
                Refusal(RefusalReason.ISSUER, _difference(self._issuer, claims.issuer))
            )
        if self._audience is not None and self._audience not in claims.audience:
            raise TokenInactive(
                Refusal(RefusalReason.AUDIENCE, _difference(self._audience, *claims.audience))
            )


def _difference(expected: str, *seen: str | None) -> str:
    """Return the configured and the seen values of a claim."""
    values = quoted_list(value for value in seen if value is not None)
    return f"{quoted(expected)} is required, the token has {values}"

"""Adapter: tokens that any OAuth 2.0 server judges (RFC 7662), with rules of our own.

Such a server knows scopes, not topics. Rules say which scope may do what on which topics;
without a rule there is no right.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from typing import Any

from twisted.internet.defer import Deferred, inlineCallbacks

from topicsvc.errors import TokenInactive, ValidatorUnavailable
from topicsvc.interfaces import Grant
from topicsvc.settings import Rule
from topicsvc.topics import TopicAddress
from topicsvc.validators.http_client import HttpClient, Response, basic, bearer
from topicsvc.validators.introspection_response import Claims, read_claims

__all__ = ["IntrospectionValidator"]


class IntrospectionValidator:
    """Asks the server.

    Args:
        http: carries questions.
        url: the server's introspection endpoint.
        client_id: who we are there.
        client_secret: what proves it.
        rules: which scope may do what.
        now: the time of day, in seconds since the epoch: what expiry is measured by.
        issuer: who must have made a token; None: whoever the server believes.
        audience: for whom it must have been made; None: anybody.
    """

    def __init__(
        self,
        http: HttpClient,
        url: str,
        client_id: str,
        client_secret: str,
        rules: Iterable[Rule],
        now: Callable[[], float],
        issuer: str | None = None,
        audience: str | None = None,
    ) -> None:
        self._http = http
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

        Any status but 200 is the server's trouble or ours: RFC 7662, section 2.3, answers
        401 to credentials of ours that it does not know, and 200 to a token that it does not.
        """
        bearer(token)
        answer: Response = yield self._http.ask(
            "POST",
            self._url,
            self._headers,
            {"token": token, "token_type_hint": "access_token"},
        )
        if answer.status in (401, 403):
            raise ValidatorUnavailable(
                f"introspection: status {answer.status}; are client_id and its secret good?"
            )
        if answer.status != 200:
            raise ValidatorUnavailable(f"introspection: status {answer.status}")
        claims = read_claims(answer.body, self._now())
        self._check(claims)
        rights = frozenset[str]().union(
            *(rule.rights(claims.scopes, topic) for rule in self._rules)
        )
        return Grant(claims.subject, claims.expires_at, "receive" in rights, "send" in rights)

    def _check(self, claims: Claims) -> None:
        if self._issuer is not None and claims.issuer != self._issuer:
            raise TokenInactive("another issuer")
        if self._audience is not None and self._audience not in claims.audience:
            raise TokenInactive("another audience")

"""Validates tokens at a Personium unit.

Three requests, sent together, decide. PROPFIND: is there a stream collection with this topic,
and may the token read its properties? OPTIONS: which methods may the token use on the topic?
Introspection: is the token active, and when does it expire?
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any

from twisted.internet.defer import Deferred, inlineCallbacks, maybeDeferred

from topicsvc.errors import TokenInactive, TopicNotFound, ValidatorUnavailable
from topicsvc.interfaces import Grant, TokenValidator
from topicsvc.refusals import Refusal, RefusalReason
from topicsvc.topics import TopicAddress, Unit
from topicsvc.validators.http_client import HttpClient, Response, basic, bearer, is_host_name
from topicsvc.validators.introspection_response import Claims, read_claims
from topicsvc.validators.propfind import has_topic
from topicsvc.validators.verdicts import all_or_first_refusal

__all__ = ["PersoniumValidator", "methods"]

_REFUSED = (401, 403)

_NO_PRIVILEGE = Refusal(
    RefusalReason.NO_RIGHT,
    "OPTIONS: the Allow header has neither GET nor POST",
    "grant its owner stream-receive or stream-send on the collection; see docs/validators.md",
)


class PersoniumValidator(TokenValidator):
    """Validates a token with three requests to the unit.

    Args:
        http_client: sends requests.
        unit: the URL of the unit's HTTP API, and the style of its cells' URLs.
        username: ``io.personium.core.introspect.username`` of the unit.
        password: ``io.personium.core.introspect.password`` of the unit.
        now: the time of day, in seconds since the epoch, which decides about expiry.
    """

    def __init__(
        self,
        http_client: HttpClient,
        unit: Unit,
        username: str,
        password: str,
        now: Callable[[], float],
    ) -> None:
        self._http_client = http_client
        self._unit = unit
        self._credentials = basic(username, password)
        self._now = now

    @inlineCallbacks
    def validate(self, token: str, topic: TopicAddress) -> Generator[Deferred[Any], Any, Grant]:
        """See `topicsvc.interfaces.TokenValidator`."""
        authorization = bearer(token)
        host = self._unit.cell_host(topic.cell)
        if host is not None and not is_host_name(host):
            raise TokenInactive(Refusal(RefusalReason.NO_CELL, "no host can have its name"))
        requests: list[Deferred[Any]] = [
            maybeDeferred(self._find_topic, authorization, topic),
            maybeDeferred(self._allowed_methods, authorization, topic),
            maybeDeferred(self._claims, token, topic),
        ]
        _, allowed, claims = yield all_or_first_refusal(requests)
        if allowed is None:
            raise TopicNotFound(Refusal(RefusalReason.NOT_REGISTERED, "OPTIONS: status 404"))
        may_receive, may_send = "GET" in allowed, "POST" in allowed
        return Grant(
            claims.subject,
            claims.expires_at,
            may_receive,
            may_send,
            None if may_receive or may_send else _NO_PRIVILEGE,
        )

    @inlineCallbacks
    def check_credentials(self, topic: TopicAddress) -> Generator[Deferred[Any], Any, bool]:
        """Present the service's own credentials; fires with whether the topic's cell exists.

        Fails with:
            ValidatorUnavailable: the unit refuses them, or there was no valid response.
        """
        response: Response | None = yield self._introspect("none", topic)
        return response is not None

    @inlineCallbacks
    def _find_topic(
        self, authorization: str, topic: TopicAddress
    ) -> Generator[Deferred[Any], Any, None]:
        """Find out whether the topic exists, if the token may know."""
        response: Response = yield self._http_client.request(
            "PROPFIND",
            self._unit.collection_url(topic),
            {"Authorization": authorization, "Depth": "0", "Accept": "application/xml"},
        )
        if response.status in _REFUSED:
            raise _refused("PROPFIND", response.status)
        if response.status == 404:
            raise TopicNotFound(Refusal(RefusalReason.NO_COLLECTION, "PROPFIND: status 404"))
        if response.status != 207:
            raise ValidatorUnavailable(f"PROPFIND: status {response.status}")
        if not has_topic(response.body, response.header("content-type"), topic.topic):
            raise TopicNotFound(Refusal(RefusalReason.NOT_REGISTERED))

    @inlineCallbacks
    def _allowed_methods(
        self, authorization: str, topic: TopicAddress
    ) -> Generator[Deferred[Any], Any, frozenset[str] | None]:
        """Return the methods that the token may use on the topic; None: no such topic.

        A unit tells anybody that a topic does not exist. So None is not a refusal: the
        caller must not pass it on before the token is known to be valid.
        """
        response: Response = yield self._http_client.request(
            "OPTIONS", self._unit.topic_url(topic), {"Authorization": authorization}
        )
        if response.status in _REFUSED:
            raise _refused("OPTIONS", response.status)
        if response.status == 404:
            return None
        if response.status != 200:
            raise ValidatorUnavailable(f"OPTIONS: status {response.status}")
        allowed = methods(response.header("allow"))
        if "OPTIONS" not in allowed:  # a unit allows it without any right
            raise ValidatorUnavailable("OPTIONS: the Allow header does not list OPTIONS")
        return allowed

    @inlineCallbacks
    def _claims(self, token: str, topic: TopicAddress) -> Generator[Deferred[Any], Any, Claims]:
        """Return the token's subject and expiry."""
        response: Response | None = yield self._introspect(token, topic)
        if response is None:
            raise TokenInactive(Refusal(RefusalReason.NO_CELL, "introspection: status 404"))
        return read_claims(response.body, self._now())

    @inlineCallbacks
    def _introspect(
        self, token: str, topic: TopicAddress
    ) -> Generator[Deferred[Any], Any, Response | None]:
        """Introspect a token at the topic's cell; None: there is no such cell.

        A unit answers 401 and 403 to unknown credentials of the service, and never because
        of the token.
        """
        response: Response = yield self._http_client.request(
            "POST",
            self._unit.cell_url(topic.cell) + "__introspect",
            {"Authorization": self._credentials, "Accept": "application/json"},
            {"token": token},
        )
        if response.status in _REFUSED:
            raise ValidatorUnavailable(
                f"introspection: status {response.status}; are username and password the unit's?"
            )
        if response.status == 404:
            return None
        if response.status != 200:
            raise ValidatorUnavailable(f"introspection: status {response.status}")
        return response


def _refused(request: str, status: int) -> TokenInactive:
    return TokenInactive(Refusal(RefusalReason.UNIT_REFUSED, f"{request}: status {status}"))


def methods(allow: str) -> frozenset[str]:
    """Return the methods in an ``Allow`` header (RFC 9110, section 10.2.1)."""
    return frozenset(method.strip() for method in allow.split(",")) - {""}

"""Validates tokens at a Personium unit.

Three requests, sent together, decide. PROPFIND: is there a stream collection with this topic,
and may the token read its properties? OPTIONS: which methods may the token use on the topic?
Introspection: is the token active, and when does it expire?

Sending needs no PROPFIND, because a unit does not require the right to read properties for it.
Receiving does: if a token may read a whole box, OPTIONS lists GET for any path in it.
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
from topicsvc.validators.introspection_response import (
    Claims,
    is_client_refused,
    read_claims,
)
from topicsvc.validators.propfind import TopicReader
from topicsvc.validators.verdicts import all_or_first_refusal

__all__ = ["PersoniumValidator", "methods"]

_REFUSED = (401, 403)

_NO_PRIVILEGE = Refusal(
    RefusalReason.NO_RIGHT,
    "OPTIONS: the Allow header has neither GET nor POST",
    "grant its owner stream-receive or stream-send on the collection; see docs/validators.md",
)


_NO_PRIVILEGE_HERE = Refusal(
    RefusalReason.NO_RIGHT,
    "OPTIONS: status 403",
    "check the URL that the client uses, or grant its owner stream-send on the collection",
)

_FORBIDDEN: frozenset[str] = frozenset({"OPTIONS: status 403"})
"""In place of the methods that a token may use."""


class PersoniumValidator(TokenValidator):
    """Validates a token for receiving, with three requests to the unit.

    Args:
        http_client: sends requests.
        unit: the URL of the unit's HTTP API, and the style of its cells' URLs.
        username: ``io.personium.core.introspect.username`` of the unit.
        password: ``io.personium.core.introspect.password`` of the unit.
        now: the time of day, in seconds since the epoch, which decides about expiry.

    Attributes:
        for_sending: validates tokens for sending, with two requests. Its grants contain the
            right to receive as OPTIONS lists it, which does not suffice for receiving.
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
        self.for_sending: TokenValidator = _ForSending(self)

    @inlineCallbacks
    def validate(self, token: str, topic: TopicAddress) -> Generator[Deferred[Any], Any, Grant]:
        """See `topicsvc.interfaces.TokenValidator`."""
        authorization = self._authorization(token, topic)
        requests: list[Deferred[Any]] = [
            maybeDeferred(self._find_topic, authorization, topic),
            maybeDeferred(self._allowed_methods, authorization, topic).addCallback(_check_allowed),
            maybeDeferred(self._claims, token, topic),
        ]
        _, allowed, claims = yield all_or_first_refusal(requests)
        return _grant(allowed, claims)

    @inlineCallbacks
    def validate_for_sending(
        self, token: str, topic: TopicAddress
    ) -> Generator[Deferred[Any], Any, Grant]:
        """See `for_sending`."""
        authorization = self._authorization(token, topic)
        requests: list[Deferred[Any]] = [
            maybeDeferred(self._allowed_methods, authorization, topic),
            maybeDeferred(self._claims, token, topic),
        ]
        allowed, claims = yield all_or_first_refusal(requests)
        if allowed is _FORBIDDEN:
            # The token is valid and has no right here: a client must not throw it away.
            return Grant(claims.subject, claims.expires_at, False, False, _NO_PRIVILEGE_HERE)
        return _grant(allowed, claims)

    def _authorization(self, token: str, topic: TopicAddress) -> str:
        """Return the header with the token.

        Raises:
            TokenInactive: no request can have this token, or go to this cell.
        """
        authorization = bearer(token)
        host = self._unit.cell_host(topic.cell)
        if host is not None and not is_host_name(host):
            raise TokenInactive(Refusal(RefusalReason.NO_CELL, "no host can have its name"))
        return authorization

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
        reader: TopicReader | None = None

        def read_body(response: Response) -> TopicReader | None:
            nonlocal reader
            if response.status == 207:
                reader = TopicReader(topic.topic, response.header("content-type"))
            return reader

        response: Response = yield self._http_client.request(
            "PROPFIND",
            self._unit.collection_url(topic),
            {"Authorization": authorization, "Depth": "0", "Accept": "application/xml"},
            read_body=read_body,
        )
        if response.status in _REFUSED:
            raise TokenInactive(_refused("PROPFIND", response.status))
        if response.status == 404:
            raise TopicNotFound(Refusal(RefusalReason.NO_COLLECTION, "PROPFIND: status 404"))
        if reader is None:
            raise _unusable("PROPFIND", response.status)
        if not reader.close():
            raise TopicNotFound(Refusal(RefusalReason.NOT_REGISTERED))

    @inlineCallbacks
    def _allowed_methods(
        self, authorization: str, topic: TopicAddress
    ) -> Generator[Deferred[Any], Any, frozenset[str] | None]:
        """Return the methods that the token may use on the topic; None: no such topic.

        A unit tells anybody that a topic does not exist. So None is not a refusal: the
        caller must not pass it on before the token is known to be valid. Neither is `_FORBIDDEN`:
        the path is not that of a topic, or the token may not know.

        Raises:
            TokenInactive: the unit does not accept the token.
        """
        response: Response = yield self._http_client.request(
            "OPTIONS", self._unit.topic_url(topic), {"Authorization": authorization}
        )
        if response.status == 401:
            raise TokenInactive(_refused("OPTIONS", response.status))
        if response.status == 403:
            return _FORBIDDEN
        if response.status == 404:
            return None
        if response.status != 200:
            raise _unusable("OPTIONS", response.status)
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

        A unit refuses unknown credentials of the service with 400 ``invalid_client``; with 403, if
        the name is that of an account of the cell. It answers neither because of the token.
        """
        response: Response = yield self._http_client.request(
            "POST",
            self._unit.cell_url(topic.cell) + "__introspect",
            {"Authorization": self._credentials, "Accept": "application/json"},
            {"token": token},
        )
        if is_client_refused(response.status, response.body):
            raise ValidatorUnavailable(
                f"introspection: status {response.status}: wrong credentials; are username and "
                "password the unit's? (username, password_file)"
            )
        if response.status == 404:
            return None
        if response.status != 200:
            raise _unusable("introspection", response.status)
        return response


class _ForSending(TokenValidator):
    """Validates tokens for sending."""

    def __init__(self, validator: PersoniumValidator) -> None:
        self._validator = validator

    def validate(self, token: str, topic: TopicAddress) -> Deferred[Grant]:
        """See `topicsvc.interfaces.TokenValidator`."""
        return self._validator.validate_for_sending(token, topic)


def _check_allowed(allowed: frozenset[str] | None) -> frozenset[str] | None:
    """Return `allowed`.

    Raises:
        TokenInactive: the token may not use the path.
    """
    if allowed is _FORBIDDEN:
        raise TokenInactive(_refused("OPTIONS", 403))
    return allowed


def _grant(allowed: frozenset[str] | None, claims: Claims) -> Grant:
    """Return the grant of a valid token.

    Raises:
        TopicNotFound: there is no such topic.
    """
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


def _refused(request: str, status: int) -> Refusal:
    # 401: the unit does not accept the token. Its introspection, asked at once, says the same.
    reason = RefusalReason.NOT_ACTIVE if status == 401 else RefusalReason.UNIT_REFUSED
    return Refusal(reason, f"{request}: status {status}")


def _unusable(request: str, status: int) -> ValidatorUnavailable:
    """The error for a status that says nothing about the token.

    With the wrong style of its cells' URLs, a unit answers 400.
    """
    if status == 400:
        return ValidatorUnavailable(f"{request}: status 400; is cell_urls the unit's style?")
    return ValidatorUnavailable(f"{request}: status {status}")


def methods(allow: str) -> frozenset[str]:
    """Return the methods in an ``Allow`` header (RFC 9110, section 10.2.1)."""
    return frozenset(method.strip() for method in allow.split(",")) - {""}

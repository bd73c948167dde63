"""Adapter: tokens that a Personium unit judges.

Three questions decide, asked together: is this a stream collection with this topic, and
may the token read its properties (PROPFIND); what may the token do there (OPTIONS); does
the token live, and until when (introspection).
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any

from twisted.internet.defer import Deferred, inlineCallbacks, maybeDeferred

from topicsvc.errors import TokenInactive, TopicNotFound, ValidatorUnavailable
from topicsvc.interfaces import Grant
from topicsvc.topics import TopicAddress, Unit
from topicsvc.validators.http_client import HttpClient, Response, basic, bearer, is_host_name
from topicsvc.validators.introspection_response import Claims, read_claims
from topicsvc.validators.propfind import has_topic
from topicsvc.validators.verdicts import all_or_first_refusal

__all__ = ["PersoniumValidator", "methods"]

_NO = (401, 403)


class PersoniumValidator:
    """Asks the unit.

    Args:
        http: carries questions.
        unit: the unit's HTTP API and how it writes its cells' URLs.
        username: ``io.personium.core.introspect.username`` of the unit.
        password: ``io.personium.core.introspect.password`` of the unit.
        now: the time of day, in seconds since the epoch: what expiry is measured by.
    """

    def __init__(
        self,
        http: HttpClient,
        unit: Unit,
        username: str,
        password: str,
        now: Callable[[], float],
    ) -> None:
        self._http = http
        self._unit = unit
        self._credentials = basic(username, password)
        self._now = now

    @inlineCallbacks
    def validate(self, token: str, topic: TopicAddress) -> Generator[Deferred[Any], Any, Grant]:
        """See `topicsvc.interfaces.TokenValidator`."""
        authorization = bearer(token)
        host = self._unit.cell_host(topic.cell)
        if host is not None and not is_host_name(host):
            raise TokenInactive("no such cell: no host has its name")
        questions: list[Deferred[Any]] = [
            maybeDeferred(self._find, authorization, topic),
            maybeDeferred(self._rights, authorization, topic),
            maybeDeferred(self._life, token, topic),
        ]
        _, rights, claims = yield all_or_first_refusal(questions)
        if rights is None:
            raise TopicNotFound(topic.path)
        return Grant(claims.subject, claims.expires_at, "GET" in rights, "POST" in rights)

    @inlineCallbacks
    def _find(self, authorization: str, topic: TopicAddress) -> Generator[Deferred[Any], Any, None]:
        """Whether the topic exists, for somebody who may know."""
        answer: Response = yield self._http.ask(
            "PROPFIND",
            self._unit.collection_url(topic),
            {"Authorization": authorization, "Depth": "0", "Accept": "application/xml"},
        )
        if answer.status in _NO:
            raise TokenInactive(f"PROPFIND: {answer.status}")
        if answer.status == 404:
            raise TopicNotFound(topic.path)
        if answer.status != 207:
            raise ValidatorUnavailable(f"PROPFIND: status {answer.status}")
        if not has_topic(answer.body, answer.header("content-type"), topic.topic):
            raise TopicNotFound(topic.path)

    @inlineCallbacks
    def _rights(
        self, authorization: str, topic: TopicAddress
    ) -> Generator[Deferred[Any], Any, frozenset[str] | None]:
        """The methods that the token may use on the topic; None: there is no such topic.

        A unit says to anybody that a topic is not there, so it is no answer to give away
        before the token is known to live.
        """
        answer: Response = yield self._http.ask(
            "OPTIONS", self._unit.topic_url(topic), {"Authorization": authorization}
        )
        if answer.status in _NO:
            raise TokenInactive(f"OPTIONS: {answer.status}")
        if answer.status == 404:
            return None
        if answer.status != 200:
            raise ValidatorUnavailable(f"OPTIONS: status {answer.status}")
        allowed = methods(answer.header("allow"))
        if "OPTIONS" not in allowed:  # it is allowed to everybody
            raise ValidatorUnavailable("OPTIONS: not allowed, says the answer to it")
        return allowed

    @inlineCallbacks
    def _life(self, token: str, topic: TopicAddress) -> Generator[Deferred[Any], Any, Claims]:
        """Whose token it is and until when.

        A unit answers 401 and 403 here to credentials of ours that it does not know, and
        never because of the token.
        """
        answer: Response | None = yield self._introspect(token, topic)
        if answer is None:
            raise TokenInactive("introspection: no such cell")
        return read_claims(answer.body, self._now())

    @inlineCallbacks
    def knows_us(self, topic: TopicAddress) -> Generator[Deferred[Any], Any, bool]:
        """Show our credentials to the topic's cell; fires with whether there is such a cell.

        Fails with:
            ValidatorUnavailable: they are not the unit's, or it cannot be asked.
        """
        answer: Response | None = yield self._introspect("none", topic)
        return answer is not None

    @inlineCallbacks
    def _introspect(
        self, token: str, topic: TopicAddress
    ) -> Generator[Deferred[Any], Any, Response | None]:
        """What the topic's cell says of a token; None: there is no such cell."""
        answer: Response = yield self._http.ask(
            "POST",
            self._unit.cell_url(topic.cell) + "__introspect",
            {"Authorization": self._credentials, "Accept": "application/json"},
            {"token": token},
        )
        if answer.status in _NO:
            raise ValidatorUnavailable(
                f"introspection: status {answer.status}; are username and password the unit's?"
            )
        if answer.status == 404:
            return None
        if answer.status != 200:
            raise ValidatorUnavailable(f"introspection: status {answer.status}")
        return answer


def methods(allow: str) -> frozenset[str]:
    """The methods in an ``Allow`` header (RFC 9110, section 10.2.1)."""
    return frozenset(method.strip() for method in allow.split(",")) - {""}

"""Sending to a topic over HTTP."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, maybeDeferred, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from topicsvc.errors import (
    HostRefused,
    InvalidBody,
    PathRefused,
    TokenInactive,
    TooManyFailedTokens,
    TopicNotFound,
    Unavailable,
)
from topicsvc.interfaces import Broker, Grant, Message, TokenValidator
from topicsvc.refusals import Refusal, RefusalReason
from topicsvc.strict_json import json_text
from topicsvc.topics import TopicAddress, Unit
from topicsvc.web import batch, responses
from topicsvc.web.http_connection import ALLOWED, SEND_METHODS, Exchange
from topicsvc.web.http_parser import RequestHead
from topicsvc.web.metadata import MetadataResource
from topicsvc.web.refused_sends import RefusedSends
from topicsvc.web.responses import (
    ANY_ORIGIN,
    ApiError,
    Header,
    Response,
    error_response,
    too_many_failed_tokens,
    too_many_sends,
)
from topicsvc.web.senders import Senders
from topicsvc.websocket.messages import MAX_TOKEN, TOKEN_BLANKS

__all__ = ["MAX_IN_FLIGHT", "SendResource"]

MAX_IN_FLIGHT = 1000
"""Most requests that wait for the validator or the broker; further ones get 503."""

_BEARER = re.compile(r"(?i:bearer) +(.*)")
_TOKEN = re.compile(rf"[!-~]{{1,{MAX_TOKEN}}}")
_MALFORMED = Refusal(RefusalReason.MALFORMED, f"not 1 to {MAX_TOKEN} characters of visible ASCII")
_ALL_METHODS = b"OPTIONS, POST, PUT, GET"
_VIA = b"x-personium-via"
_CELL_URL = re.compile(r"https?://[!-~]+")
_PREFLIGHT: tuple[Header, ...] = (
    ANY_ORIGIN,
    (b"Access-Control-Allow-Methods", ALLOWED),
    (b"Access-Control-Allow-Headers", b"Authorization, Content-Type"),
    (b"Access-Control-Max-Age", b"600"),
)
_ACCEPTED = Response(200, (ANY_ORIGIN,))


class SendResource:
    """POST and PUT send; OPTIONS reports which methods a token allows.

    Args:
        unit: parses hosts and paths.
        validator: validates tokens for sending.
        broker: accepts the messages.
        is_full: whether the hub's queues are full; then sends are refused.
        now: the time of day, in seconds since the epoch. Expiry is measured by it.
        trust_via: whether ``X-Personium-Via`` determines the sender.
        max_batch: most messages of one request.
        refused: counts and logs refused tokens.
        rights_validator: finds out which methods a token allows; None: `validator` does.

    Attributes:
        senders: counts the messages of each sender; None: they are not counted.
        metadata: the metadata that a 401 names; None: there are none.
    """

    def __init__(
        self,
        unit: Unit,
        validator: TokenValidator,
        broker: Broker,
        is_full: Callable[[], bool],
        now: Callable[[], float],
        trust_via: bool,
        max_batch: int,
        refused: RefusedSends,
        rights_validator: TokenValidator | None = None,
    ) -> None:
        self.unit = unit
        self.refused = refused
        self.broker = broker
        self.is_full = is_full
        self.now = now
        self.configure(validator, trust_via, max_batch, rights_validator)
        self.senders: Senders | None = None
        self.metadata: MetadataResource | None = None
        self.is_cancelling = False
        self._in_flight: dict[_Send, None] = {}
        self._all_answered: Deferred[None] | None = None

    def configure(
        self,
        validator: TokenValidator,
        trust_via: bool,
        max_batch: int,
        rights_validator: TokenValidator | None = None,
    ) -> None:
        """Apply new settings to requests that arrive from now on."""
        self.validator = validator
        self.rights_validator = rights_validator or validator
        self.trust_via = trust_via
        self.max_batch = max_batch

    def all_answered(self) -> Deferred[None]:
        """Fires when no request is in progress any more."""
        if not self._in_flight:
            return succeed(None)
        if self._all_answered is None:
            self._all_answered = Deferred()
        return self._all_answered

    def cancel_pending(self) -> None:
        """Respond with 503 to requests in progress, without waiting for validator or broker."""
        self.is_cancelling = True
        for send in tuple(self._in_flight):
            send.cancel()

    def add(self, send: _Send) -> None:
        """Add a request in progress."""
        self._in_flight[send] = None

    def discard(self, send: _Send) -> None:
        """Remove a request that is no longer in progress."""
        self._in_flight.pop(send, None)
        if not self._in_flight and self._all_answered is not None:
            all_answered, self._all_answered = self._all_answered, None
            all_answered.callback(None)

    def respond(self, exchange: Exchange) -> Response | _Send:
        """See `topicsvc.web.site.Resource`."""
        head = exchange.head
        try:
            topic = self.unit.send_topic(exchange.hosts, head.path)
        except HostRefused as error:
            return _error(responses.BAD_HOST, str(error))
        except PathRefused:
            keyed = self._topic_with_key(exchange)
            if keyed is None:
                return _error(responses.NOT_FOUND, exchange.url(self.unit.scheme))
            topic = keyed
        is_options = head.method == b"OPTIONS"
        if not is_options and head.method not in SEND_METHODS:
            return _error(responses.METHOD_NOT_ALLOWED, headers=((b"Allow", ALLOWED),))
        token = _bearer(head)
        if token is None:
            if is_options:
                return Response(200, (*_PREFLIGHT, (b"Allow", _ALL_METHODS)))
            return self.challenge(topic, responses.NO_TOKEN, exchange)
        if not _TOKEN.fullmatch(token):
            self.refused.record(_MALFORMED, exchange.quota.peer, topic, token)
            if is_options:
                return Response(200, (*_PREFLIGHT, (b"Allow", b"OPTIONS")))
            return self.challenge(topic, responses.TOKEN_INACTIVE, exchange)
        if len(self._in_flight) >= MAX_IN_FLIGHT:
            return _error(responses.TOO_MANY_REQUESTS, is_options=is_options)
        return _Send(self, topic, token, is_options)

    def _topic_with_key(self, exchange: Exchange) -> TopicAddress | None:
        """Return the topic of a PUT with a key behind its name; None: another request."""
        if exchange.head.method != b"PUT":
            return None
        try:
            return self.unit.send_topic_with_key(exchange.hosts, exchange.head.path)
        except PathRefused:
            return None

    def challenge(self, topic: TopicAddress, error: ApiError, exchange: Exchange) -> Response:
        """Return a 401 with the topic's cell as realm, and the place of the metadata."""
        realm = self.unit.cell_url(topic.cell).encode("ascii")
        metadata = b"" if self.metadata is None else self.metadata.challenge(exchange.hosts)
        value = b'Bearer realm="%s"%s' % (realm, metadata)
        return _error(error, headers=((b"WWW-Authenticate", value),))


class _Send:
    """One request with a well-formed token."""

    __slots__ = ("_exchange", "_grant", "_is_options", "_pending", "_resource", "_token", "_topic",
                 "is_valid")  # fmt: skip

    _log = Logger()

    def __init__(
        self, resource: SendResource, topic: TopicAddress, token: str, is_options: bool
    ) -> None:
        self._resource = resource
        self._topic = topic
        self._token = token
        self._is_options = is_options
        self._grant: Grant | None = None
        self._pending: Deferred[Any] | None = None
        self._exchange: Exchange | None = None
        self.is_valid = False

    def start(self, exchange: Exchange) -> Response | None:
        """See `topicsvc.web.http_connection.PendingSend`."""
        resource = self._resource
        validator = resource.rights_validator if self._is_options else resource.validator
        grant = exchange.quota.remembered(validator, self._token, self._topic)
        if grant is not None:
            return self._granted(grant, exchange)
        checked = exchange.quota.validate(validator, self._token, self._topic)
        return self._wait_for(checked, lambda grant: self._granted(grant, exchange), exchange)

    def _granted(self, grant: Grant, exchange: Exchange) -> Response | None:
        if grant.is_expired(self._resource.now()):
            raise TokenInactive(Refusal(RefusalReason.EXPIRED))
        if self._is_options:
            return Response(200, (*_PREFLIGHT, (b"Allow", _methods(grant))))
        if not grant.may_send:
            self._record(grant.refusal_to_send, exchange, grant.subject)
            return _error(responses.NO_PRIVILEGE)
        seconds = exchange.quota.use_sends(self._token, self._topic.cell)
        if seconds:
            return too_many_sends(seconds, (ANY_ORIGIN,))
        self._grant = grant
        self.is_valid = True
        return None

    def finish(self, exchange: Exchange, body: bytes) -> Response | None:
        """See `topicsvc.web.http_connection.PendingSend`."""
        resource, grant = self._resource, self._grant
        assert grant is not None  # noqa: S101 - the token is valid
        if grant.is_expired(resource.now()):
            refusal = Refusal(RefusalReason.EXPIRED, "while the body arrived")
            self._record(refusal, exchange, grant.subject)
            return resource.challenge(self._topic, responses.TOKEN_INACTIVE, exchange)
        is_batch = _media_type(exchange.head) == batch.MEDIA_TYPE
        lines = batch.count_lines(body) if is_batch else 1
        if resource.senders is not None:
            quota = exchange.quota
            resource.senders.count(grant.subject, quota.host or quota.peer, lines)
        if resource.is_full():
            return _error(responses.TOO_MANY_REQUESTS)
        sender = self._sender(exchange.head, grant) or resource.unit.cell_url(self._topic.cell)
        if is_batch:
            return self._send_batch(exchange, sender, body, lines)
        try:
            message = Message(self._topic, sender, json_text(body))
        except InvalidBody:
            return _error(responses.NOT_JSON)
        if resource.broker.accept(message):
            return _ACCEPTED
        published = maybeDeferred(resource.broker.publish, message)
        return self._wait_for(published, lambda _: _ACCEPTED, exchange)

    def _send_batch(
        self, exchange: Exchange, sender: str, body: bytes, lines: int
    ) -> Response | None:
        resource, topic, quota = self._resource, self._topic, exchange.quota
        max_lines = quota.max_sends(resource.max_batch)
        # Checked before the body is split: a list of empty lines takes 40 times their bytes.
        if lines > max_lines:
            return _error(responses.TOO_MANY_LINES, str(max_lines))
        if lines > 1:
            seconds = quota.use_sends(self._token, topic.cell, lines - 1)
            if seconds:
                return too_many_sends(seconds, (ANY_ORIGIN,))
        sending = batch.Batch(
            body,
            lambda line: Message(topic, sender, line),
            resource.broker,
            exchange.connection.budget,
        ).send()
        return self._wait_for(sending, lambda _: _ACCEPTED, exchange)

    def cancel(self) -> None:
        """See `topicsvc.web.http_connection.PendingSend`."""
        if self._pending is not None:
            self._pending.cancel()

    def _wait_for(
        self,
        pending: Deferred[Any],
        on_result: Callable[[Any], Response | None],
        exchange: Exchange,
    ) -> Response | None:
        """Return the response, if `pending` has fired; else None, and respond later."""
        pending.addCallback(on_result)
        pending.addErrback(self._respond_to_failure, exchange)
        outcome: list[Response | None] = []
        self._exchange = None
        pending.addCallback(self._settled, outcome)
        if outcome:
            return outcome[0]
        self._pending = pending
        self._exchange = exchange
        self._resource.add(self)
        return None

    def _settled(self, response: Response | None, outcome: list[Response | None]) -> None:
        exchange = self._exchange
        if exchange is None:
            outcome.append(response)
            return
        self._pending = self._exchange = None
        self._resource.discard(self)
        if response is None:
            exchange.decided()
        else:
            exchange.respond(response)

    def _sender(self, head: RequestHead, grant: Grant) -> str | None:
        """Return the URL of the sending cell, from a trusted header or the token's subject."""
        if self._resource.trust_via:
            via = (head.get_all(_VIA) or [b""])[0].decode("latin-1")
            # Each relaying cell appends itself, so the first is the origin.
            first = via.partition(",")[0].strip()
            if _is_cell_url(first):
                return first
        cell_url = (grant.subject or "").rsplit("#", 1)[0]
        return cell_url if _is_cell_url(cell_url) else None

    def _respond_to_failure(self, failure: Failure, exchange: Exchange) -> Response:
        """Return the response to a request that is refused or cannot be served now."""
        error = failure.value
        is_options = self._is_options
        url = exchange.url(self._resource.unit.scheme)
        if isinstance(error, batch.InvalidLine):
            return _error(responses.BAD_LINE, str(error.number))
        if isinstance(error, TooManyFailedTokens):
            return too_many_failed_tokens(error.seconds, self._headers)
        if isinstance(error, TokenInactive):
            self._record(error.refusal, exchange)
        if isinstance(error, TopicNotFound):
            return _error(responses.NOT_FOUND, url, is_options=is_options)
        if isinstance(error, TokenInactive):
            if is_options:
                return Response(200, (*_PREFLIGHT, (b"Allow", b"OPTIONS")))
            return self._resource.challenge(self._topic, responses.TOKEN_INACTIVE, exchange)
        if isinstance(error, Unavailable | CancelledError):
            return _error(responses.UNAVAILABLE, is_options=is_options)
        self._log.failure("internal error: a request for {url} failed", failure, url=url)
        return _error(responses.INTERNAL_ERROR, is_options=is_options)

    def _record(self, refusal: Refusal, exchange: Exchange, subject: str | None = None) -> None:
        peer = exchange.quota.peer
        self._resource.refused.record(refusal, peer, self._topic, self._token, subject)

    @property
    def _headers(self) -> tuple[Header, ...]:
        return _PREFLIGHT if self._is_options else (ANY_ORIGIN,)


def _error(
    error: ApiError, detail: str = "", headers: tuple[Header, ...] = (), is_options: bool = False
) -> Response:
    return error_response(error, detail, (*(_PREFLIGHT if is_options else (ANY_ORIGIN,)), *headers))


def _bearer(head: RequestHead) -> str | None:
    """Return the bearer token, well-formed or not (RFC 6750, section 2.1); None: none."""
    # Removed from the head, because a long token would be kept twice.
    values = head.headers.pop(b"authorization", None)
    if values is None or len(values) != 1:
        return None
    match = _BEARER.fullmatch(values[0].decode("latin-1"))
    return None if match is None else match[1].strip(TOKEN_BLANKS)


def _media_type(head: RequestHead) -> bytes:
    """Return the media type of the body, without parameters."""
    values = head.headers.get(b"content-type")
    return b"" if values is None else values[0].partition(b";")[0].strip().lower()


def _methods(grant: Grant) -> bytes:
    allowed = [b"OPTIONS"]
    if grant.may_send:
        allowed += SEND_METHODS
    if grant.may_receive:
        allowed.append(b"GET")
    return b", ".join(allowed)


def _is_cell_url(text: str) -> bool:
    return _CELL_URL.fullmatch(text) is not None

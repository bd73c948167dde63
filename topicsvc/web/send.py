"""Sending to a topic over HTTP."""

from __future__ import annotations

import re
from collections.abc import Callable, Generator
from typing import Any

from twisted.internet.defer import (
    CancelledError,
    Deferred,
    inlineCallbacks,
    maybeDeferred,
    succeed,
)
from twisted.python.failure import Failure
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET

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
from topicsvc.strict_json import json_text
from topicsvc.topics import TopicAddress, Unit
from topicsvc.web import responses
from topicsvc.web.responses import (
    ApiError,
    respond,
    respond_too_many_failed_tokens,
    url_of,
)
from topicsvc.web.site import SEND_METHODS, TopicRequest
from topicsvc.websocket.messages import MAX_TOKEN

__all__ = ["MAX_IN_FLIGHT", "SendResource"]

MAX_IN_FLIGHT = 1000
"""Most requests that wait for the validator or the broker; further ones get 503."""

_BEARER = re.compile(r"(?i:bearer) +(.*)")
_TOKEN = re.compile(rf"[!-~]{{1,{MAX_TOKEN}}}")
_ALLOWED = b"OPTIONS, POST, PUT"
_ALL_METHODS = b"OPTIONS, POST, PUT, GET"
_PREFLIGHT_MAX_AGE = b"600"
_VIA = b"x-personium-via"
_CELL_URL = re.compile(r"https?://[!-~]+")


class SendResource(Resource):
    """POST and PUT send; OPTIONS reports which methods a token allows.

    Args:
        unit: parses hosts and paths.
        validator: validates tokens.
        broker: takes the messages.
        is_full: whether the hub's queues are full; then sends are refused.
        now: the time of day, in seconds since the epoch. Expiry is measured by it.
        trust_via: whether ``X-Personium-Via`` determines the sender.
    """

    isLeaf = True

    def __init__(
        self,
        unit: Unit,
        validator: TokenValidator,
        broker: Broker,
        is_full: Callable[[], bool],
        now: Callable[[], float],
        trust_via: bool,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._unit = unit
        self._broker = broker
        self._is_full = is_full
        self._now = now
        self.configure(validator, trust_via)
        self._in_flight: dict[Deferred[Any], None] = {}
        self._all_answered: Deferred[None] | None = None
        self._is_cancelling = False

    def configure(self, validator: TokenValidator, trust_via: bool) -> None:
        """Apply new settings to requests that arrive from now on."""
        self._validator = validator
        self._trust_via = trust_via

    def all_answered(self) -> Deferred[None]:
        """Fires when no request is in progress any more."""
        if not self._in_flight:
            return succeed(None)
        if self._all_answered is None:
            self._all_answered = Deferred()
        return self._all_answered

    def cancel_pending(self) -> None:
        """Respond with 503 to requests in progress, without waiting for validator or broker."""
        self._is_cancelling = True
        for processing in tuple(self._in_flight):
            processing.cancel()

    def render(self, request: TopicRequest) -> bytes | int:
        """See `twisted.web.resource.IResource`."""
        request.setHeader(b"access-control-allow-origin", b"*")
        try:
            hosts = request.requestHeaders.getRawHeaders(b"host")
            topic = self._unit.send_topic(hosts, request.path)
        except HostRefused as error:
            return respond(request, responses.BAD_HOST, str(error))
        except PathRefused:
            return respond(request, responses.NOT_FOUND, url_of(request))
        token = _bearer(request)
        if request.method == b"OPTIONS":
            request.setHeader(b"access-control-allow-methods", _ALLOWED)
            request.setHeader(b"access-control-allow-headers", b"Authorization, Content-Type")
            request.setHeader(b"access-control-max-age", _PREFLIGHT_MAX_AGE)
            if token is None:
                request.setHeader(b"allow", _ALL_METHODS)
                return b""
        elif request.method not in SEND_METHODS:
            return respond(request, responses.METHOD_NOT_ALLOWED, headers={b"allow": _ALLOWED})
        if token is None:
            return self._refuse(request, topic, responses.NO_TOKEN)
        if not _TOKEN.fullmatch(token):
            return self._token_inactive(request, topic)
        if len(self._in_flight) >= MAX_IN_FLIGHT:
            return respond(request, responses.TOO_MANY_REQUESTS)
        processing = self._process(request, topic, token)
        self._in_flight[processing] = None
        request.notifyFinish().addErrback(lambda _: processing.cancel())
        processing.addErrback(self._respond_to_failure, request, topic)
        processing.addCallbacks(request.finish_with, lambda failure: _fail(request, failure))
        processing.addBoth(self._finished, processing)
        return NOT_DONE_YET

    @inlineCallbacks
    def _process(
        self, request: TopicRequest, topic: TopicAddress, token: str
    ) -> Generator[Deferred[Any], Any, bytes]:
        """Validate the token and carry out `request`; the result is the response's body."""
        grant: Grant = yield request.quota.validate(self._validator, token, topic)
        if grant.is_expired(self._now()):
            raise TokenInactive("expired")
        if request.method == b"OPTIONS":
            request.setHeader(b"allow", _methods(grant))
            return b""
        if not grant.may_send:
            return respond(request, responses.NO_PRIVILEGE)
        if self._is_full():
            return respond(request, responses.TOO_MANY_REQUESTS)
        body = json_text(request.content.read())
        sender = self._sender(request, grant) or self._unit.cell_url(topic.cell)
        yield maybeDeferred(self._broker.publish, Message(topic, sender, body))
        return b""

    def _finished(self, result: Any, processing: Deferred[Any]) -> Any:
        del self._in_flight[processing]
        if not self._in_flight and self._all_answered is not None:
            all_answered, self._all_answered = self._all_answered, None
            all_answered.callback(None)
        return result

    def _sender(self, request: TopicRequest, grant: Grant) -> str | None:
        """Return the URL of the sending cell, from a trusted header or the token's subject."""
        if self._trust_via:
            via = request.requestHeaders.getRawHeaders(_VIA, [b""])[0].decode("latin-1")
            # Each relaying cell appends itself, so the first is the origin.
            first = via.partition(",")[0].strip()
            if _is_cell_url(first):
                return first
        cell_url = (grant.subject or "").rsplit("#", 1)[0]
        return cell_url if _is_cell_url(cell_url) else None

    def _respond_to_failure(
        self, failure: Failure, request: TopicRequest, topic: TopicAddress
    ) -> bytes:
        """Respond to a request that is refused or cannot be served now."""
        if self._is_cancelling and failure.check(CancelledError):
            return respond(request, responses.UNAVAILABLE)
        kind = failure.trap(TokenInactive, InvalidBody, Unavailable)
        if kind is InvalidBody:
            return respond(request, responses.NOT_JSON)
        if isinstance(failure.value, TooManyFailedTokens):
            return respond_too_many_failed_tokens(request, failure.value.seconds)
        if kind is Unavailable:
            return respond(request, responses.UNAVAILABLE)
        if failure.check(TopicNotFound):
            return respond(request, responses.NOT_FOUND, url_of(request))
        return self._token_inactive(request, topic)

    def _token_inactive(self, request: TopicRequest, topic: TopicAddress) -> bytes:
        if request.method == b"OPTIONS":
            request.setHeader(b"allow", b"OPTIONS")
            return b""
        return self._refuse(request, topic, responses.TOKEN_INACTIVE)

    def _refuse(self, request: TopicRequest, topic: TopicAddress, error: ApiError) -> bytes:
        realm = self._unit.cell_url(topic.cell).encode("ascii")
        return respond(request, error, headers={b"www-authenticate": b'Bearer realm="%s"' % realm})


def _fail(request: TopicRequest, failure: Failure) -> None:
    """Report an internal error; a cancelled request's client has disconnected."""
    if not failure.check(CancelledError):
        request.processingFailed(failure)


def _bearer(request: TopicRequest) -> str | None:
    """Return the bearer token, well-formed or not (RFC 6750, section 2.1); None: none."""
    values = request.requestHeaders.getRawHeaders(b"authorization", [])
    match = _BEARER.fullmatch(values[0].decode("latin-1")) if len(values) == 1 else None
    return None if match is None else match[1].strip()


def _methods(grant: Grant) -> bytes:
    allowed = [b"OPTIONS"]
    if grant.may_send:
        allowed += SEND_METHODS
    if grant.may_receive:
        allowed.append(b"GET")
    return b", ".join(allowed)


def _is_cell_url(text: str) -> bool:
    return _CELL_URL.fullmatch(text) is not None

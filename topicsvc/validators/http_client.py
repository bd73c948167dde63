"""Sends one HTTP request and reads its response.

No redirect is followed, no cookie is kept, no content encoding is accepted, and at most
`MAX_BODY` bytes are kept. There is no timeout here: the caller cancels the Deferred.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections import deque
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from typing import Any
from typing import Protocol as TypingProtocol
from urllib.parse import quote_plus

import idna
from hyperlink import URL
from treq.client import HTTPClient
from treq.cookies import IndexableCookieJar
from twisted.internet.defer import CancelledError, Deferred, inlineCallbacks, succeed
from twisted.internet.interfaces import IConsumer
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from twisted.web.client import ResponseDone
from twisted.web.http import PotentialDataLoss
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgent, IBodyProducer, IResponse
from zope.interface import implementer

from topicsvc.errors import TokenInactive, ValidatorUnavailable
from topicsvc.explain import explain_http_error
from topicsvc.refusals import Refusal, RefusalReason
from topicsvc.scheduling.work_budget import WorkBudget

__all__ = [
    "MAX_BODY",
    "AsciiUrl",
    "BodyReader",
    "HttpClient",
    "Response",
    "basic",
    "bearer",
    "is_host_name",
]

MAX_BODY = 262144
"""Most bytes of a response body; the longest valid one is a few KiB."""

_PIECE = 16384
"""Bytes that a `BodyReader` gets at once."""

_VISIBLE_ASCII = re.compile(r"[!-~]+")


@dataclass(frozen=True, slots=True)
class Response:
    """A whole response.

    Attributes:
        status: HTTP status.
        headers: all headers.
        body: all bytes of the body.
    """

    status: int
    headers: Headers
    body: bytes

    def header(self, name: str) -> str:
        """The values of a header, joined by commas (RFC 9110, section 5.3).

        Bytes beyond ASCII are opaque (section 5.5): each becomes one character.
        """
        return _values(self.headers, name).decode("latin-1")


def _values(headers: Headers, name: str) -> bytes:
    return b", ".join(headers.getRawHeaders(name.encode("ascii"), []))


def bearer(token: str) -> str:
    """The value of ``Authorization`` with a client's token (RFC 6750, section 2.1).

    Raises:
        TokenInactive: the token has characters that no header can carry. No valid one has.
    """
    if not _VISIBLE_ASCII.fullmatch(token):
        raise TokenInactive(Refusal(RefusalReason.MALFORMED, "not visible ASCII"))
    return f"Bearer {token}"


def is_host_name(name: str) -> bool:
    """Whether a host can have this name (RFC 5891); the grammar of cells allows more names."""
    try:
        idna.encode(name)
    except idna.IDNAError:
        return False
    return True


def basic(username: str, password: str) -> str:
    """The value of ``Authorization`` with the service's own credentials.

    Both parts are form-urlencoded first (RFC 6749, section 2.3.1), so that either may have a
    colon or a letter outside ASCII.
    """
    pair = f"{quote_plus(username)}:{quote_plus(password)}".encode("ascii")
    return f"Basic {b64encode(pair).decode('ascii')}"


class BodyReader(TypingProtocol):
    """Reads a long body while it arrives, so that it is not kept as a whole."""

    def feed(self, data: bytes) -> None:
        """Read the next bytes.

        Raises:
            ValidatorUnavailable: the body is not accepted, or too long.
        """
        ...


class HttpClient:
    """An HTTP client for small responses, and for long ones that are read while they arrive.

    Args:
        agent: sends the requests.
        budget: the time for reading long bodies in one reactor iteration; None: no limit.
    """

    def __init__(self, agent: IAgent, budget: WorkBudget | None = None) -> None:
        self._client = HTTPClient(_IdentityAgent(agent), _NoCookies(), _BodyProducer)
        self._budget = budget

    @inlineCallbacks
    def request(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        form: Mapping[str, str] | None = None,
        body: bytes | None = None,
        read_body: Callable[[Response], BodyReader | None] | None = None,
    ) -> Generator[Deferred[Any], Any, Response]:
        """Send one request and read the whole response, with any status.

        Args:
            method: of the request.
            url: in ASCII.
            headers: of the request.
            form: is sent as the body; None: no form.
            body: is sent as it is, if there is no form; None: no body.
            read_body: is called with the response before its body arrives. It returns what reads
                the body, which is then missing in the response; None: the response has it.

        Fails with:
            ValidatorUnavailable: there was no response, or one that is not accepted. The text
                names the kind of error, and quotes nothing that either side has sent.
        """
        try:
            response = yield self._client.request(
                method,
                AsciiUrl.from_text(url),
                headers=Headers({name: [value] for name, value in headers.items()}),
                data=body if form is None else dict(form),
                allow_redirects=False,
                unbuffered=True,
            )
            reader = None
            if read_body is not None:
                reader = read_body(Response(response.code, response.headers, b""))
            body = yield _read(response, reader, self._budget)
        except (CancelledError, ValidatorUnavailable):
            raise
        except Exception as error:
            reason = explain_http_error(error)
        else:
            return Response(response.code, response.headers, body)
        # Outside of the handler: otherwise the context of the exception holds what was sent.
        raise ValidatorUnavailable(f"{method}: {reason}")


class AsciiUrl(URL):
    """A URL of ASCII only, which treq does not encode: it fails with an IPv6 address."""

    def to_uri(self) -> URL:
        return self


def _read(
    response: IResponse, reader: BodyReader | None = None, budget: WorkBudget | None = None
) -> Deferred[bytes]:
    """Read a body; cancelling closes the connection. Fires with the bytes that are kept."""
    if response.length == 0:
        return succeed(b"")
    collector = _Collector() if reader is None else _Feeder(reader, budget)
    response.deliverBody(collector)
    return collector.body


class _Collector(Protocol):
    """Keeps a body of at most `MAX_BODY` bytes."""

    transport: Any

    def __init__(self) -> None:
        self.body: Deferred[bytes] = Deferred(lambda _: self._abort())
        self._parts: deque[bytes] = deque()
        self._remaining = MAX_BODY

    def dataReceived(self, data: bytes) -> None:
        self._remaining -= len(data)
        if self._remaining >= 0:
            self._parts.append(data)
        else:
            self._fail(ValidatorUnavailable(f"a body of more than {MAX_BODY} bytes"))

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self.body.called:
            return
        # Without a length the end of the connection is the end of the body.
        if reason.check(ResponseDone, PotentialDataLoss):
            self.body.callback(b"".join(self._parts))
        else:
            self.body.errback(reason)

    def _fail(self, error: ValidatorUnavailable) -> None:
        if not self.body.called:
            self._abort()
            self.body.errback(error)

    def _abort(self) -> None:
        self._parts.clear()
        if self.transport is not None:
            self.transport.loseConnection()


class _Feeder(_Collector):
    """Passes a body to a `BodyReader`, in pieces, as far as the budget of an iteration allows."""

    def __init__(self, reader: BodyReader, budget: WorkBudget | None) -> None:
        super().__init__()
        self._reader = reader
        self._budget = budget
        self._is_deferred = False
        self._end: Failure | None = None

    def dataReceived(self, data: bytes) -> None:
        self._parts.extend(data[at : at + _PIECE] for at in range(0, len(data), _PIECE))
        if not self._is_deferred:
            self._feed()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._end = reason
        if not self._is_deferred:
            super().connectionLost(reason)

    def _feed(self) -> None:
        """Read what has arrived; if the budget is spent, read no more from the connection."""
        budget = self._budget
        while self._parts and not self.body.called:
            if budget is not None and budget.is_spent:
                if not self._is_deferred and self.transport is not None:
                    self.transport.pauseProducing()
                self._is_deferred = True
                budget.defer(self._feed)
                return
            since = 0.0 if budget is None else budget.now()
            try:
                self._reader.feed(self._parts.popleft())
            except ValidatorUnavailable as error:
                self._fail(error)
            if budget is not None:
                budget.spend(since)
        was_deferred, self._is_deferred = self._is_deferred, False
        if self._end is not None:
            super().connectionLost(self._end)
        elif was_deferred and self.transport is not None and not self.body.called:
            self.transport.resumeProducing()


@implementer(IAgent)
class _IdentityAgent:
    """Requests responses without content encoding, and accepts no other.

    It is below treq, which would offer to decompress, without a limit on the result.
    """

    def __init__(self, agent: IAgent) -> None:
        self._agent = agent

    def request(
        self,
        method: bytes,
        uri: bytes,
        headers: Headers | None = None,
        bodyProducer: IBodyProducer | None = None,
    ) -> Deferred[IResponse]:
        """See `twisted.web.iweb.IAgent`."""
        headers = Headers() if headers is None else headers.copy()
        headers.setRawHeaders("accept-encoding", ["identity"])
        response = self._agent.request(method, uri, headers, bodyProducer)
        return response.addCallback(self._refuse_encoded)

    def _refuse_encoded(self, response: IResponse) -> IResponse | Deferred[IResponse]:
        encodings = _values(response.headers, "content-encoding")
        if encodings.strip().lower() in (b"", b"identity"):
            return response
        # The body is not read, so the connection cannot be used again.
        body: Deferred[bytes] = _read(response)
        body.addErrback(lambda _: None)
        body.cancel()
        raise ValidatorUnavailable("an encoded response")


class _NoCookies(IndexableCookieJar):
    """A cookie jar that keeps nothing."""

    def extract_cookies(self, response: object, request: object) -> None:
        """Ignore the server's cookies."""


@implementer(IBodyProducer)
class _BodyProducer:
    """Produces the body of a request, any number of times."""

    def __init__(self, body: bytes) -> None:
        self._body = body
        self.length = len(body)

    def startProducing(self, consumer: IConsumer) -> Deferred[None]:
        consumer.write(self._body)
        return succeed(None)

    def pauseProducing(self) -> None:
        """Do nothing: the form is written at once."""

    def resumeProducing(self) -> None:
        """Do nothing: the form is written at once."""

    def stopProducing(self) -> None:
        """Do nothing: the form is written at once."""

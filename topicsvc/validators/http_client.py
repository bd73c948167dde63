"""Adapter: one question over HTTP: where to, what came back, and nothing in between.

No redirect is followed, no cookie kept, no encoding accepted, and no more read than
`MAX_BODY`. The time that a question may take is its http's: cancelling the Deferred ends it.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import Any
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

__all__ = [
    "MAX_BODY",
    "AsciiUrl",
    "HttpClient",
    "Response",
    "basic",
    "bearer",
    "is_host_name",
]

MAX_BODY = 262144
"""Most bytes of an answer's body; the longest good one is a few KiB."""

_TOKEN = re.compile(r"[!-~]+")


@dataclass(frozen=True, slots=True)
class Response:
    """What came back.

    Attributes:
        status: HTTP status.
        headers: all headers.
        body: the whole body.
    """

    status: int
    headers: Headers
    body: bytes

    def header(self, name: str) -> str:
        """The values of a header, joined by commas (RFC 9110, section 5.3).

        Bytes beyond ASCII are opaque (section 5.5): each becomes a character of its own.
        """
        return _values(self.headers, name).decode("latin-1")


def _values(headers: Headers, name: str) -> bytes:
    return b", ".join(headers.getRawHeaders(name.encode("ascii"), []))


def bearer(token: str) -> str:
    """The ``Authorization`` that shows a client's token (RFC 6750, section 2.1).

    Raises:
        TokenInactive: it holds what no header can; no token does.
    """
    if not _TOKEN.fullmatch(token):
        raise TokenInactive("not visible ASCII")
    return f"Bearer {token}"


def is_host_name(name: str) -> bool:
    """Whether a host can have this name (RFC 5891): a cell's grammar allows for more."""
    try:
        idna.encode(name)
    except idna.IDNAError:
        return False
    return True


def basic(name: str, password: str) -> str:
    """The ``Authorization`` that shows our own credentials.

    Both parts are form-urlencoded first (RFC 6749, section 2.3.1), so that a colon or a
    letter outside ASCII may stand in either.
    """
    pair = f"{quote_plus(name)}:{quote_plus(password)}".encode("ascii")
    return f"Basic {b64encode(pair).decode('ascii')}"


class HttpClient:
    """Asks.

    Args:
        agent: what carries the requests.
    """

    def __init__(self, agent: IAgent) -> None:
        self._client = HTTPClient(_Plain(agent), _NoCookies(), _Form)

    @inlineCallbacks
    def ask(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        form: Mapping[str, str] | None = None,
    ) -> Generator[Deferred[Any], Any, Response]:
        """Send one request and read its whole answer, whatever its status.

        Fails with:
            ValidatorUnavailable: no answer came, or none that could be taken. The text
                tells the kind of fault, and nothing that either side has sent.
        """
        try:
            response = yield self._client.request(
                method,
                AsciiUrl.from_text(url),
                headers=Headers({name: [value] for name, value in headers.items()}),
                data=None if form is None else dict(form),
                allow_redirects=False,
                unbuffered=True,
            )
            body = yield _read(response)
        except (CancelledError, ValidatorUnavailable):
            raise
        except Exception as error:
            fault = explain_http_error(error)
        else:
            return Response(response.code, response.headers, body)
        # Outside of the handler, so that the exception does not drag along what was sent.
        raise ValidatorUnavailable(f"{method}: {fault}")


class AsciiUrl(URL):
    """A URL of ASCII alone, which treq would only spoil: an IPv6 address is no name to it."""

    def to_uri(self) -> URL:
        return self


def _read(response: IResponse) -> Deferred[bytes]:
    """Read a body of at most `MAX_BODY` bytes; cancelling ends its connection."""
    collector = _Collector()
    if response.length == 0:
        return succeed(b"")
    response.deliverBody(collector)
    return collector.body


class _Collector(Protocol):
    """Takes a body while it arrives."""

    def __init__(self) -> None:
        self.body: Deferred[bytes] = Deferred(lambda _: self._leave())
        self._parts: list[bytes] = []
        self._room = MAX_BODY

    def dataReceived(self, data: bytes) -> None:
        self._room -= len(data)
        if self._room >= 0:
            self._parts.append(data)
        elif not self.body.called:
            self._leave()
            self.body.errback(ValidatorUnavailable(f"more than {MAX_BODY} bytes"))

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self.body.called:
            return
        # Without a length the end of the connection is the end of the body.
        if reason.check(ResponseDone, PotentialDataLoss):
            self.body.callback(b"".join(self._parts))
        else:
            self.body.errback(reason)

    def _leave(self) -> None:
        self._parts.clear()
        if self.transport is not None:
            self.transport.loseConnection()


@implementer(IAgent)
class _Plain:
    """Asks for an answer that is not encoded, and takes no other.

    It stands below treq, which would offer to decompress and does so without bound.
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
        asked = self._agent.request(method, uri, headers, bodyProducer)
        return asked.addCallback(self._take)

    def _take(self, response: IResponse) -> IResponse | Deferred[IResponse]:
        encodings = _values(response.headers, "content-encoding")
        if encodings.strip().lower() in (b"", b"identity"):
            return response
        # Its body is not read: the connection is of no more use.
        refused: Deferred[bytes] = _read(response)
        refused.addErrback(lambda _: None)
        refused.cancel()
        raise ValidatorUnavailable("an encoded answer")


class _NoCookies(IndexableCookieJar):
    """Keeps nothing."""

    def extract_cookies(self, response: object, request: object) -> None:
        """Forget what the server sets."""


@implementer(IBodyProducer)
class _Form:
    """A form that can be sent more than once."""

    def __init__(self, form: bytes) -> None:
        self._form = form
        self.length = len(form)

    def startProducing(self, consumer: IConsumer) -> Deferred[None]:
        consumer.write(self._form)
        return succeed(None)

    def pauseProducing(self) -> None:
        """All is written at once."""

    def resumeProducing(self) -> None:
        """All is written at once."""

    def stopProducing(self) -> None:
        """All is written at once."""

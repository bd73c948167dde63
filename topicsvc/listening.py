"""Adapter: the endpoints of the settings: what listens on them, and certificates read anew.

Twisted reads the certificate of an endpoint once. A `Rehearsal` reads one without listening:
it shows the certificate that a client would see, and makes the factory that a port which
listens already can go on with.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509.oid import ExtensionOID
from OpenSSL import SSL, crypto
from service_identity import VerificationError
from twisted.application import strports
from twisted.application.internet import StreamServerEndpointService
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred, maybeDeferred, succeed
from twisted.internet.endpoints import serverFromString
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import (
    IListeningPort,
    IProtocolFactory,
    IReactorSSL,
    IReactorTCP,
    IStreamServerEndpoint,
)
from twisted.internet.protocol import Factory, Protocol
from twisted.protocols.tls import BufferingTLSTransport, TLSMemoryBIOFactory
from twisted.python.failure import Failure
from twisted.python.filepath import UnlistableError
from zope.interface import implementer

from topicsvc.proxied import PREFIX, ProxiedEndpoint

__all__ = [
    "Listener",
    "Rehearsal",
    "endpoint_problem",
    "is_proxied",
    "is_systemd",
    "is_tls",
    "parser_s_reason",
    "reason_of",
]

_PORT = re.compile(r"(?:^(?:haproxy:)?(?:tcp6?|ssl):|:port=)(-?\d+)")
_TLS = re.compile(r"(?:haproxy:)*(?:ssl|tls):")
_SYSTEMD = re.compile(r"(?:haproxy:)*systemd:")
_TLS_DIRECTORY = re.compile(r"(?:haproxy:)*tls:((?:\\.|[^:\\])+)")
_KEY = re.compile(
    rb"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?-----END [A-Z ]*PRIVATE KEY-----", re.DOTALL
)
_ROUNDS = 10
"""More flights than a handshake has."""


def is_tls(text: str) -> bool:
    """Whether an endpoint string is one with a certificate."""
    return _TLS.match(text) is not None


def is_proxied(text: str) -> bool:
    """Whether an endpoint string is one that takes the PROXY protocol."""
    return text.startswith("haproxy:")


def is_systemd(text: str) -> bool:
    """Whether an endpoint string names a socket that systemd opens."""
    return _SYSTEMD.match(text) is not None


def endpoint_problem(text: str, reactor: Any, is_start: bool) -> str | None:
    """What keeps an endpoint string from being listened on, as far as can be told beforehand.

    Args:
        text: the endpoint string.
        reactor: what it would be listened on with.
        is_start: whether that will be done now; before, a socket of systemd's is not missed.
    """
    if is_systemd(text) and not is_start:
        return None
    try:
        _look(text, reactor)
    except ValueError as error:
        return str(error)
    return None


class Listener:
    """One endpoint of the settings and what listens on it.

    Args:
        setting: its key.
        text: the endpoint string.
        factory: makes a protocol for each connection.
        reactor: listens.

    Attributes:
        port: what listens; None: nothing yet, or nothing any more.

    Raises:
        ValueError: the endpoint cannot be used; the text says why.
    """

    def __init__(self, setting: str, text: str, factory: IProtocolFactory, reactor: Any) -> None:
        self.setting = setting
        self.text = text
        self.port: IListeningPort | None = None
        self._factory = factory
        self._is_bound = False
        endpoint = _look(text, reactor)
        self._service: StreamServerEndpointService = strports.service(text, factory, reactor)
        self._service.endpoint = _Noting(endpoint, self)

    def bind(self) -> None:
        """Listen.

        Raises:
            Exception: whatever an endpoint raises.
        """
        self._is_bound = True
        self._service.privilegedStartService()

    def start(self) -> None:
        """Listen, if that has not begun."""
        self._is_bound = True
        self._service.startService()

    def stop(self) -> Deferred[None]:
        """Listen no more; connections stay. Fires when the port is closed."""
        if not self._is_bound:
            return succeed(None)
        self._is_bound = False
        self.port = None
        return maybeDeferred(self._service.stopService)

    def reread(self) -> Callable[[], str] | None:
        """Read its certificates again; returns what puts them in place. None: it has none.

        What does that says which certificate it is. Who is connected stays so, under the old one.

        Raises:
            ValueError: they cannot be used; the text says why.
        """
        if not is_tls(self.text):
            return None
        rehearsal = Rehearsal(self.text)
        certificate = rehearsal.certificate()

        def replace() -> str:
            port: Any = self.port
            if port is not None:
                factory = rehearsal.factory(self._factory)
                # The new one first: a site without a port would take itself for stopped.
                factory.doStart()
                port.factory, before = factory, port.factory
                _free_when_lost(port)
                before.doStop()
            return (
                f"the certificate of {self.text} (serial {certificate.serial_number:x}, "
                f"until {certificate.not_valid_after_utc:%Y-%m-%d})"
            )

        return replace


@implementer(IStreamServerEndpoint)
class _Noting:
    """An endpoint that remembers its port."""

    def __init__(self, endpoint: IStreamServerEndpoint, listener: Listener) -> None:
        self._endpoint = endpoint
        self._listener = listener

    def listen(self, factory: IProtocolFactory) -> Deferred[IListeningPort]:
        def note(port: IListeningPort) -> IListeningPort:
            self._listener.port = port
            _free_when_lost(port)
            return port

        return self._endpoint.listen(factory).addCallback(note)


class _FreedTransport(BufferingTLSTransport):
    """A TLS connection that is freed when it is lost.

    When one ends in a fault, as most do, Twisted keeps the fault in a local variable of a frame
    of its own traceback. That is a cycle, with the connection and a buffer of 32 KiB in it. The
    garbage collector, which is kept rare, comes for it late: 1,000 of them were 25 MB.
    """

    def _tlsShutdownFinished(self, reason: Failure | None) -> None:
        if reason is not None:
            reason.cleanFailure()
        super()._tlsShutdownFinished(reason)  # type: ignore[no-untyped-call]


def _free_when_lost(port: Any) -> None:
    """See to it that the connections of `port` are freed when they are lost, if it has TLS."""
    if isinstance(getattr(port, "factory", None), TLSMemoryBIOFactory):
        port.factory.protocol = _FreedTransport


class Rehearsal:
    """An endpoint with a certificate, read and not listened on.

    Args:
        text: the endpoint string.

    Raises:
        ValueError: it cannot be used; the text says why.
    """

    def __init__(self, text: str) -> None:
        _look_into_directory(text)
        self._stage = _Stage()
        self._endpoint = _parse(text, self._stage)

    def factory(self, factory: IProtocolFactory) -> Any:
        """What would listen: `factory` under TLS."""
        self._endpoint.listen(factory)
        return self._stage.factory

    def certificate(self, host: str = "") -> x509.Certificate:
        """The certificate that a client is shown who asks for `host`, or for nobody.

        Raises:
            ValueError: there is none, or it does not fit its key.
        """
        wire = _Wire()
        context = SSL.Context(SSL.TLS_CLIENT_METHOD)
        client = SSL.Connection(context)
        if host:
            client.set_tlsext_host_name(host.encode("ascii"))
        client.set_connect_state()
        server: Any = None
        try:
            server = self.factory(Factory.forProtocol(Protocol)).buildProtocol(wire.getPeer())
            server.makeConnection(wire)
            for _ in range(_ROUNDS):
                if _is_shaken(client):
                    break
                server.dataReceived(client.bio_read(65536))
                client.bio_write(wire.take())
            shown = client.get_peer_certificate(as_cryptography=True)
        except Exception as error:  # whatever OpenSSL or a reader of files raises
            raise ValueError(
                f"no TLS handshake is possible, {reason_of(error)}: "
                "is there a certificate, with its own key?"
            ) from error
        if shown is None:
            raise ValueError("no certificate is shown")
        return shown


def _is_shaken(client: SSL.Connection) -> bool:
    try:
        client.do_handshake()
    except SSL.WantReadError:
        return False
    return True


@implementer(IReactorTCP, IReactorSSL)
class _Stage:
    """A reactor on which nothing listens: it keeps the factory that would."""

    factory: Any = None

    def listenTCP(
        self, port: int, factory: Any, backlog: int = 50, interface: str = ""
    ) -> IListeningPort:
        """See `IReactorTCP`."""
        self.factory = factory
        return None  # type: ignore[return-value]

    def listenSSL(
        self,
        port: int,
        factory: Any,
        contextFactory: Any,
        backlog: int = 50,
        interface: str = "",
    ) -> IListeningPort:
        """See `IReactorSSL`."""
        return self.listenTCP(port, TLSMemoryBIOFactory(contextFactory, False, factory))

    def connectTCP(self, *_: Any, **__: Any) -> Any:
        """See `IReactorTCP`; a server's endpoint asks for no such thing."""
        raise NotImplementedError

    connectSSL = connectTCP


class _Wire:
    """What a protocol in memory writes to."""

    disconnecting = False

    def __init__(self) -> None:
        self._written = bytearray()

    def take(self) -> bytes:
        taken, self._written = bytes(self._written), bytearray()
        return taken

    def write(self, data: bytes) -> None:
        self._written += data

    def loseConnection(self) -> None:
        self.disconnecting = True

    abortConnection = loseConnection

    def getPeer(self) -> IPv4Address:
        return IPv4Address("TCP", "127.0.0.1", 0)

    getHost = getPeer


def _look(text: str, reactor: Any) -> IStreamServerEndpoint:
    """Look at what Twisted would find out too late; returns the endpoint.

    Raises:
        ValueError: it cannot be used; the text says why.
    """
    for found in _PORT.finditer(text):
        if not 0 <= int(found[1]) <= 65535:
            raise ValueError(f"{found[1]} is no port, 0 to 65535")
    endpoint = _parse(text, reactor)
    if is_tls(text):
        Rehearsal(text).certificate()
    return endpoint


def _look_into_directory(text: str) -> None:
    """Look for what Twisted would leave out of a directory and say nothing.

    Raises:
        ValueError: a certificate without its key, or no certificate at all.
    """
    directory = _TLS_DIRECTORY.match(text)
    if directory is None:
        return
    path = Path(directory[1].replace("\\:", ":"))
    files = sorted(path.glob("**/*.pem"))
    if not files:
        raise ValueError(f"no .pem file in {path}")
    keys: list[Any] = []
    certificates: list[tuple[Path, x509.Certificate]] = []
    for file in files:
        content = file.read_bytes()
        try:
            keys += [load_pem_private_key(key, None).public_key() for key in _KEY.findall(content)]
            if b"-----BEGIN CERTIFICATE-----" in content:
                found = x509.load_pem_x509_certificates(content)
                certificates += [(file, each) for each in found]
        except (ValueError, TypeError, UnsupportedAlgorithm):
            return  # whoever reads it for use says what is wrong
    for file, certificate in certificates:
        # One of an authority has no names of hosts, and its key is elsewhere.
        names = certificate.extensions
        has_names = any(each.oid == ExtensionOID.SUBJECT_ALTERNATIVE_NAME for each in names)
        if has_names and certificate.public_key() not in keys:
            raise ValueError(f"{file}: its key is in no .pem file of {path}")


def _parse(text: str, reactor: Any) -> IStreamServerEndpoint:
    try:
        return _endpoint(text, reactor)
    except Exception as error:  # whatever a parser of endpoints raises
        if is_systemd(text) and isinstance(error, LookupError):
            raise ValueError(
                "systemd has passed no such socket: start the .socket unit, not the service alone"
            ) from error
        raise ValueError(parser_s_reason(error)) from error


def _endpoint(text: str, reactor: Any) -> IStreamServerEndpoint:
    if text.startswith(PREFIX):
        return ProxiedEndpoint(_endpoint(text.removeprefix(PREFIX), reactor))
    endpoint: IStreamServerEndpoint = serverFromString(reactor, text)
    return endpoint


_COLONS = r"; a colon that belongs to a value is written \\:"
_PYTHON_S_WORDS = [
    (re.compile(pattern), words)
    for pattern, words in (
        (r"invalid literal for int\(\) with base \d+: (.*)", r"\1 is no number"),
        (r".*got an unexpected keyword argument '(\w+)'", r"there is no \1= for it"),
        (r"\('unrecognized keyword arguments present', \['(\w+)'.*", r"there is no \1= for it"),
        (r".* missing \d+ required positional arguments?: '(\w+)'.*", r"\1= is missing"),
        (r".*got multiple values for argument '(\w+)'", rf"\1= stands there twice{_COLONS}"),
        (r".* takes .* positional arguments? but \d+ were given", f"too many parts{_COLONS}"),
    )
]
"""What a parser of endpoints says to a wrong one is meant for programmers."""


def parser_s_reason(error: BaseException) -> str:
    """Why an endpoint string cannot be parsed, for those who have written it."""
    reason = reason_of(error)
    for pattern, words in _PYTHON_S_WORDS:
        found = pattern.fullmatch(reason)
        if found is not None:
            return found.expand(words)
    return reason


def reason_of(error: BaseException) -> str:
    """An exception's reason, in words where it has some."""
    reasons = getattr(error, "reasons", None)
    while reasons:  # an HTTP client's, around what was wrong
        error = reasons[0].value
        reasons = getattr(error, "reasons", None)
    if isinstance(error, CannotListenError):
        error = error.socketError
    if isinstance(error, UnlistableError):
        error = error.originalException
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    if isinstance(error, VerificationError):
        return "its certificate is for another name"
    is_tls = isinstance(error, (SSL.Error, crypto.Error))
    if is_tls and error.args and isinstance(error.args[0], (list, tuple)):
        reasons = [str(entry[-1]) for entry in error.args[0] if entry]
        return "; ".join(reasons) or "OpenSSL does not say why"
    return str(error) or type(error).__name__

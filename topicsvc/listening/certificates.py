"""Adapter: an endpoint with a certificate, read and not listened on.

Twisted reads the certificate of an endpoint once. A `EndpointPreview` shows the certificate that a
client would see, and makes the factory that a port which listens already can go on with.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509.oid import ExtensionOID
from OpenSSL import SSL
from twisted.internet.address import IPv4Address
from twisted.internet.interfaces import (
    IListeningPort,
    IProtocolFactory,
    IReactorSSL,
    IReactorTCP,
)
from twisted.internet.protocol import Factory, Protocol
from twisted.protocols.tls import TLSMemoryBIOFactory
from zope.interface import implementer

from topicsvc.explain import explain
from topicsvc.listening.endpoints import parse, unproxied

__all__ = ["EndpointPreview"]

_TLS_DIRECTORY = re.compile(r"tls:((?:\\.|[^:\\])+)")
_KEY = re.compile(
    rb"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?-----END [A-Z ]*PRIVATE KEY-----", re.DOTALL
)
_ROUNDS = 10
"""More flights than a handshake has."""


class EndpointPreview:
    """An endpoint with a certificate, read and not listened on.

    Args:
        text: the endpoint string.

    Raises:
        ValueError: it cannot be used; the text says why.
    """

    def __init__(self, text: str) -> None:
        _look_into_directory(text)
        self._recorder = _RecordingReactor()
        self._endpoint = parse(text, self._recorder)

    def factory(self, factory: IProtocolFactory) -> Any:
        """What would listen: `factory` under TLS."""
        self._endpoint.listen(factory)
        return self._recorder.factory

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
                f"no TLS handshake is possible, {explain(error)}: "
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
class _RecordingReactor:
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


def _look_into_directory(text: str) -> None:
    """Look for what Twisted would leave out of a directory and say nothing.

    Raises:
        ValueError: a certificate without its key, or no certificate at all.
    """
    directory = _TLS_DIRECTORY.match(unproxied(text))
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

"""Reads the certificates of a TLS endpoint without listening on it.

Twisted reads the certificates of an endpoint once. An `EndpointPreview` reads them again: it
returns the certificate that a client would see, and a new factory for a port that listens already.
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
_MAX_FLIGHTS = 10
"""More flights than a TLS handshake needs."""


class EndpointPreview:
    """A TLS endpoint whose certificates are read, but which does not listen.

    Args:
        text: the endpoint string.

    Raises:
        ValueError: the endpoint cannot be used; the text says why.
    """

    def __init__(self, text: str) -> None:
        _check_directory(text)
        self._recorder = _RecordingReactor()
        self._endpoint = parse(text, self._recorder)

    def factory(self, factory: IProtocolFactory) -> Any:
        """The factory that would listen: `factory` wrapped in TLS."""
        self._endpoint.listen(factory)
        return self._recorder.factory

    def certificate(self, host: str = "") -> x509.Certificate:
        """The certificate that a client sees.

        Args:
            host: the server name that the client requests (SNI); empty: none.

        Raises:
            ValueError: there is no certificate, or its key is another one.
        """
        transport = _MemoryTransport()
        context = SSL.Context(SSL.TLS_CLIENT_METHOD)
        client = SSL.Connection(context)
        if host:
            client.set_tlsext_host_name(host.encode("ascii"))
        client.set_connect_state()
        server: Any = None
        try:
            server = self.factory(Factory.forProtocol(Protocol)).buildProtocol(transport.getPeer())
            server.makeConnection(transport)
            for _ in range(_MAX_FLIGHTS):
                if _finish_handshake(client):
                    break
                server.dataReceived(client.bio_read(65536))
                client.bio_write(transport.take_written())
            shown = client.get_peer_certificate(as_cryptography=True)
        except Exception as error:  # of many types, from OpenSSL or from reading files
            raise ValueError(
                f"the TLS handshake fails ({explain(error)}): check the certificate and its key"
            ) from error
        if shown is None:
            raise ValueError("the endpoint shows no certificate")
        return shown


def _finish_handshake(client: SSL.Connection) -> bool:
    """Continue the handshake; returns whether it is complete."""
    try:
        client.do_handshake()
    except SSL.WantReadError:
        return False
    return True


@implementer(IReactorTCP, IReactorSSL)
class _RecordingReactor:
    """A reactor on which nothing listens; it records the factory that would."""

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
        """See `IReactorTCP`; an endpoint of a server does not call this."""
        raise NotImplementedError

    connectSSL = connectTCP


class _MemoryTransport:
    """Keeps what a protocol writes."""

    disconnecting = False

    def __init__(self) -> None:
        self._written = bytearray()

    def take_written(self) -> bytes:
        """Return the bytes that were written since the last call."""
        written, self._written = bytes(self._written), bytearray()
        return written

    def write(self, data: bytes) -> None:
        self._written += data

    def loseConnection(self) -> None:
        self.disconnecting = True

    abortConnection = loseConnection

    def getPeer(self) -> IPv4Address:
        return IPv4Address("TCP", "127.0.0.1", 0)

    getHost = getPeer


def _check_directory(text: str) -> None:
    """Report files of a ``tls:`` directory that Twisted would ignore silently.

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
            return  # Loading the endpoint reports this problem.
    for file, certificate in certificates:
        # An authority's certificate has no host names, and its key is not needed.
        names = certificate.extensions
        has_names = any(each.oid == ExtensionOID.SUBJECT_ALTERNATIVE_NAME for each in names)
        if has_names and certificate.public_key() not in keys:
            raise ValueError(f"{file}: no .pem file in {path} holds its key")

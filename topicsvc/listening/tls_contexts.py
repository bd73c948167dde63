"""TLS contexts for certificates, by server name."""

from __future__ import annotations

import os
import weakref
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from OpenSSL import SSL
from twisted.internet.ssl import CertificateOptions

from topicsvc.explain import explain
from topicsvc.files import explain_file_error, read_file, shown
from topicsvc.listening.certificates import ServerCertificate

try:
    from OpenSSL._util import ffi as _ffi
    from OpenSSL._util import lib as _lib

    _set_alpn_callback = _lib.SSL_CTX_set_alpn_select_cb
except (ImportError, AttributeError):  # a pyOpenSSL with other internals
    _ffi = None

__all__ = ["ALPN", "ContextSet"]

ALPN = b"http/1.1"
"""The only protocol that is served. Over HTTP/2 a connection cannot become a WebSocket."""

_MAX_FLIGHTS = 10
"""More flights than a TLS handshake needs."""


class ContextSet:
    """The TLS contexts of an endpoint's certificates. Each has made a handshake in memory.

    Args:
        certificates: at least one. The first for IP addresses, else the first one, is the default.
        parameters: a file with Diffie-Hellman parameters; None: no such key exchange.

    Attributes:
        default: the certificate for clients without a server name, or with an unknown one.
        earliest_expiry: when the first of the certificates that clients see expires, in seconds
            since the epoch.

    Raises:
        ValueError: a certificate cannot be used; the text names its file.
    """

    def __init__(
        self, certificates: Sequence[ServerCertificate], parameters: Path | None = None
    ) -> None:
        client = SSL.Context(SSL.TLS_CLIENT_METHOD)
        if parameters is not None:
            _check_parameters(parameters)
        self.default = ([each for each in certificates if each.is_for_addresses] or certificates)[0]
        by_age = sorted(certificates, key=lambda each: each.certificate.not_valid_before_utc)
        self._by_name = {name: each for each in by_age for name in each.names}
        # A certificate that was replaced for each of its names has no context.
        used = {id(each): each for each in [self.default, *self._by_name.values()]}
        self.earliest_expiry = min(
            each.certificate.not_valid_after_utc.timestamp() for each in used.values()
        )
        # Weak, so that there is no reference cycle and replaced contexts are freed at once.
        self._selector = _Selector(weakref.ref(self))
        self._contexts = {key: _make_context(each, parameters) for key, each in used.items()}
        for context in self._contexts.values():
            context.set_tlsext_servername_callback(self._selector.select)
        names = {id(each): name for name, each in self._by_name.items()}
        for key, each in used.items():
            name = None if each is self.default else names[key]
            _rehearse(each, name, self.context(None), client)

    def select(self, name: bytes | None) -> ServerCertificate:
        """The certificate for a server name; names have no case (RFC 6066, section 3)."""
        if name:
            name = name.lower().removesuffix(b".")
            wildcard = b"*." + name.partition(b".")[2]
            found = self._by_name.get(name) or self._by_name.get(wildcard)
            if found is not None:
                return found
        return self.default

    def context(self, name: bytes | None) -> SSL.Context:
        """The context of the certificate that `select` returns."""
        return self._contexts[id(self.select(name))]

    def replaced_by(self, other: ContextSet) -> None:
        """Let connections that have not yet sent a server name get one of the other contexts."""
        self._selector.contexts = weakref.ref(other)


class _Selector:
    """Selects the context of a connection when the client has sent a server name.

    Args:
        contexts: returns the contexts; None: they are no longer used.
    """

    def __init__(self, contexts: weakref.ref[ContextSet]) -> None:
        self.contexts = contexts

    def select(self, connection: SSL.Connection) -> None:
        contexts = self.contexts()
        if contexts is not None:
            context = contexts.context(connection.get_servername())
            if context is not connection.get_context():
                connection.set_context(context)


class _Defaults(NamedTuple):
    """Twisted's settings of TLS."""

    options: int
    mode: int
    ciphers: bytes


@cache
def _defaults() -> _Defaults:
    """Read Twisted's settings from a context of its own.

    Twisted's contexts themselves are not used: each is part of a reference cycle.
    """
    context = CertificateOptions().getContext()
    options, mode = context.set_options(0), context.set_mode(0)
    ciphers = SSL.Connection(context).get_cipher_list()
    older = [each for each in ciphers if not each.startswith("TLS_")]  # not those of TLS 1.3
    return _Defaults(options, mode, ":".join(older).encode("ascii"))


def _make_context(certificate: ServerCertificate, parameters: Path | None) -> SSL.Context:
    defaults = _defaults()
    context = SSL.Context(SSL.TLS_METHOD)
    context.set_options(defaults.options)
    context.set_mode(defaults.mode)
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    context.set_session_id(os.urandom(16))
    try:
        context.use_certificate(certificate.certificate)
        context.use_privatekey(certificate.key)
        for each in certificate.chain:
            context.add_extra_chain_cert(each)
        context.check_privatekey()
        if parameters is not None:
            context.load_tmp_dh(os.fsencode(parameters))
    except (SSL.Error, ValueError) as error:
        raise ValueError(
            f"{shown(certificate.path)}: OpenSSL refuses it ({explain(error)}): "
            "issue another certificate"
        ) from error
    _restrict_protocols(context)
    context.set_cipher_list(defaults.ciphers)
    return context


def _restrict_protocols(context: Any) -> None:
    """Let `context` select `ALPN`, or send alert 120, no_application_protocol (RFC 7301).

    pyOpenSSL's method makes a reference cycle for each context, so OpenSSL's function is called
    as pyOpenSSL calls it. If pyOpenSSL's internals are not as expected, its method is used.
    """
    if _has_known_internals(context):
        _set_alpn_callback(context._context, _alpn_callback, _ffi.NULL)
    else:
        context.set_alpn_select_callback(_select_protocol)


def _has_known_internals(context: Any) -> bool:
    """Whether OpenSSL's object for a context is accessible."""
    try:
        return bool(_ffi.typeof(context._context).cname == "SSL_CTX *")
    except (AttributeError, TypeError):
        return False


def _select_protocol(_: SSL.Connection, offered: Sequence[bytes]) -> bytes:
    if ALPN not in offered:
        # As the type is that of OpenSSL's own errors, the connection ends as after these.
        raise SSL.Error([("SSL routines", "", "no application protocol")])
    return ALPN


if _ffi is not None:
    _alpn = _ffi.new("unsigned char[]", ALPN)

    @_ffi.callback(  # type: ignore[untyped-decorator]
        "int(SSL *, unsigned char **, unsigned char *, const unsigned char *, unsigned, void *)",
        error=_lib.SSL_TLSEXT_ERR_ALERT_FATAL,
    )
    def _alpn_callback(_: Any, out: Any, out_size: Any, data: Any, size: int, __: Any) -> int:
        """See SSL_CTX_set_alpn_select_cb(3). OpenSSL has checked the list's form."""
        rest = bytes(_ffi.buffer(data, size))
        while rest:
            end = rest[0] + 1
            if rest[1:end] == ALPN:
                out[0], out_size[0] = _alpn, len(ALPN)
                return int(_lib.SSL_TLSEXT_ERR_OK)
            rest = rest[end:]
        return int(_lib.SSL_TLSEXT_ERR_ALERT_FATAL)


def _check_parameters(path: Path) -> None:
    """Check a file with Diffie-Hellman parameters.

    Raises:
        ValueError: it cannot be used; the text names it.
    """
    try:
        read_file(path)  # OpenSSL reads it by its name, and would wait for a FIFO
        SSL.Context(SSL.TLS_SERVER_METHOD).load_tmp_dh(os.fsencode(path))
    except (OSError, ValueError) as error:
        raise ValueError(explain_file_error(path, error)) from error
    except SSL.Error as error:
        raise ValueError(
            f"{shown(path)}: {explain(error)}: it needs Diffie-Hellman parameters in PEM"
        ) from error


def _rehearse(
    certificate: ServerCertificate, name: bytes | None, context: SSL.Context, client: SSL.Context
) -> None:
    """Make a handshake in memory, which uses the key.

    Args:
        certificate: the certificate that the client must see.
        name: the server name that the client sends.
        context: the context of new connections.
        client: the context of the client.

    Raises:
        ValueError: a client of TLS 1.2 or 1.3 could not connect.
    """
    ends = SSL.Connection(client), SSL.Connection(context)
    ends[0].set_connect_state()
    ends[1].set_accept_state()
    if name is not None:
        ends[0].set_tlsext_host_name(name)
    try:
        for _ in range(_MAX_FLIGHTS):
            steps = [_step(one, other) for one, other in (ends, ends[::-1])]
            if all(steps):
                break
        else:
            raise ValueError("the handshake does not end")
        seen = ends[0].get_peer_certificate(as_cryptography=True)
    except Exception as error:  # of many types, from OpenSSL
        raise ValueError(
            f"{shown(certificate.path)}: the TLS handshake fails ({explain(error)}): "
            "check the certificate and its key"
        ) from error
    if seen is None or seen != certificate.certificate:
        raise ValueError(f"{shown(certificate.path)}: OpenSSL shows another certificate")


def _step(one: SSL.Connection, other: SSL.Connection) -> bool:
    """Continue the handshake of `one`, and give its bytes to `other`; whether it is complete."""
    is_complete = True
    try:
        one.do_handshake()
    except SSL.WantReadError:
        is_complete = False
    with suppress(SSL.WantReadError):  # it has no bytes
        other.bio_write(one.bio_read(65536))
    return is_complete

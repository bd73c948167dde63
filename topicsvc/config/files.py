"""Composition: secrets, which stand in files of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from OpenSSL.crypto import Error as CryptoError
from twisted.internet.ssl import Certificate, trustRootFromCertificates

__all__ = ["read_authorities", "read_line", "read_secret"]


def read_secret(path: Path) -> str:
    """Read a secret: the text of a file, without the newline that closes it.

    Raises:
        OSError: the file cannot be read.
        ValueError: there is no secret in it.
    """
    try:
        text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError:
        raise ValueError("not UTF-8") from None
    secret = text.removesuffix("\n").removesuffix("\r")
    if not secret:
        raise ValueError("it is empty")
    return secret


def read_line(path: Path) -> str:
    """Read a secret that goes into a header: see `read_secret`; it is one line."""
    secret = read_secret(path)
    if not secret.isprintable():
        raise ValueError("not one line of printable text")
    return secret


_PEM_END = b"-----END CERTIFICATE-----"


def read_authorities(path: Path) -> Any:
    """Read the certificates, in PEM, of the authorities to trust instead of the system's.

    Raises:
        OSError: the file cannot be read.
        ValueError: there is no certificate in it.
    """
    *blocks, _ = path.read_bytes().split(_PEM_END)
    try:
        certificates = [Certificate.loadPEM(block + _PEM_END + b"\n") for block in blocks]
    except (CryptoError, ValueError):
        raise ValueError("a certificate in it cannot be read") from None
    if not certificates:
        raise ValueError("no certificate in PEM is in it")
    return trustRootFromCertificates(certificates)

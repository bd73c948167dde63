"""Reads the files that settings name: secrets and certificates of authorities."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from OpenSSL.crypto import Error as CryptoError
from twisted.internet.ssl import Certificate, trustRootFromCertificates

__all__ = ["read_authorities", "read_bearer_token", "read_line", "read_secret"]


def read_secret(path: Path) -> str:
    """Read a secret: the content of a file in UTF-8, without one newline at its end.

    Raises:
        OSError: the file cannot be read.
        ValueError: the file is empty or not UTF-8.
    """
    try:
        text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError:
        raise ValueError("not UTF-8") from None
    secret = text.removesuffix("\n").removesuffix("\r")
    if not secret:
        raise ValueError("the file is empty")
    return secret


def read_line(path: Path) -> str:
    """Read a secret that is sent in a header, and so must be one line.

    Raises:
        OSError: the file cannot be read.
        ValueError: as `read_secret`, or the content is not one printable line.
    """
    secret = read_secret(path)
    if not secret.isprintable():
        raise ValueError("not one line of printable text")
    return secret


_BEARER_TOKEN = re.compile(r"[!-~]{1,4096}")


def read_bearer_token(path: Path) -> str:
    """Read a token that clients send as ``Authorization: Bearer``.

    Raises:
        OSError: the file cannot be read.
        ValueError: as `read_secret`, or the content is not one word in ASCII.
    """
    token = read_secret(path)
    if not _BEARER_TOKEN.fullmatch(token):
        raise ValueError("not one word of printable ASCII characters, at most 4096")
    return token


_PEM_END = b"-----END CERTIFICATE-----"


def read_authorities(path: Path) -> Any:
    """Read certificates of authorities, in PEM, that replace the system's trusted authorities.

    Raises:
        OSError: the file cannot be read.
        ValueError: the file has no certificate, or one that cannot be parsed.
    """
    *blocks, _ = path.read_bytes().split(_PEM_END)
    try:
        certificates = [Certificate.loadPEM(block + _PEM_END + b"\n") for block in blocks]
    except (CryptoError, ValueError):
        raise ValueError("a certificate in it cannot be parsed") from None
    if not certificates:
        raise ValueError("it contains no certificate in PEM")
    return trustRootFromCertificates(certificates)

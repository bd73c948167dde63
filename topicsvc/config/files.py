"""Reads the settings' file, and the files that it names: secrets, certificates of authorities."""

from __future__ import annotations

import os
import re
import select
import stat
import time
from pathlib import Path
from typing import Any

from OpenSSL.crypto import Error as CryptoError
from twisted.internet.ssl import Certificate, trustRootFromCertificates

from topicsvc.files import MAX_SIZE, read_file

__all__ = [
    "PIPE_TIMEOUT",
    "read_authorities",
    "read_bearer_token",
    "read_line",
    "read_secret",
    "read_settings_file",
]

PIPE_TIMEOUT = 2.0
"""Seconds for a pipe to deliver the whole settings."""


def read_settings_file(path: Path) -> str:
    """Read the settings' file, in UTF-8. It may be a pipe, as in ``topicsvc check /dev/stdin``.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not UTF-8, is too big or incomplete, or is neither a file nor a pipe.
    """
    is_pipe = stat.S_ISFIFO(os.stat(path).st_mode)
    try:
        return (_read_pipe(path) if is_pipe else read_file(path)).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError("not UTF-8") from None


def _read_pipe(path: Path) -> bytes:
    deadline = time.monotonic() + PIPE_TIMEOUT
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        data = bytearray()
        while len(data) <= MAX_SIZE:
            try:
                piece = os.read(descriptor, MAX_SIZE)
            except BlockingIOError:
                left = deadline - time.monotonic()
                if left <= 0 or not poll.poll(left * 1000):
                    break
                continue
            if not piece and data:
                return bytes(data)
            if not piece:
                raise ValueError("the pipe delivered nothing")
            data += piece
        else:
            raise ValueError(f"it has more than {MAX_SIZE} bytes")
        raise ValueError(f"the pipe did not deliver the settings within {PIPE_TIMEOUT:g} s")
    finally:
        os.close(descriptor)


def read_secret(path: Path) -> str:
    """Read a secret: the content of a file in UTF-8, without one newline at its end.

    Raises:
        OSError: the file cannot be read.
        ValueError: the file is empty or not UTF-8.
    """
    try:
        text = read_file(path).decode("utf-8-sig")
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
    *blocks, _ = read_file(path).split(_PEM_END)
    try:
        certificates = [Certificate.loadPEM(block + _PEM_END + b"\n") for block in blocks]
    except (CryptoError, ValueError):
        raise ValueError("a certificate in it cannot be parsed") from None
    if not certificates:
        raise ValueError("it contains no certificate in PEM")
    return trustRootFromCertificates(certificates)

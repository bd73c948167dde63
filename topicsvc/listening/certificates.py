"""Finds the certificates of a TLS endpoint, their keys and their chains."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from topicsvc.files import explain_file_error, shown
from topicsvc.listening.pem import Key, PemFile, read_pem

__all__ = ["MAX_CERTIFICATES", "ServerCertificate", "read_directory", "read_pair"]

MAX_CERTIFICATES = 1000
"""The most certificates with a key in one directory. Reading 1,000 takes about 2 s."""

_MAX_ENTRIES = 10_000
"""The most entries of a directory, subdirectories included."""

_MAX_SIZE = 32 * 1024 * 1024
"""The most bytes of the ``.pem`` files of a directory together."""

_MAX_NAME = 253
"""The most characters of a host name."""

_MAX_CHAIN = 10
"""The most certificates of authorities that are sent with one certificate."""


@dataclass(frozen=True, slots=True)
class ServerCertificate:
    """A certificate that clients see.

    Attributes:
        path: the file that it is in.
        key: its private key.
        certificate: the certificate.
        chain: the authorities that clients need to verify it, each issued by the next.
        names: the server names that it is valid for, in lower case.
        is_for_addresses: whether it is valid for an IP address.
    """

    path: Path
    key: Key
    certificate: x509.Certificate
    chain: tuple[x509.Certificate, ...]
    names: frozenset[bytes]
    is_for_addresses: bool


def read_pair(key: Path, certificate: Path, chain: Path | None) -> list[ServerCertificate]:
    """Read one certificate, as `read_directory` does.

    Args:
        key: the file with its private key.
        certificate: the file with the certificate, and perhaps with its chain.
        chain: a file with further certificates of the chain; None: there is no such file.

    Raises:
        ValueError: a file cannot be used; the text names it and says what to do.
    """
    key_file, certificate_file = read_pem(key), read_pem(certificate)
    others = () if chain is None else read_pem(chain).certificates
    if not key_file.keys:
        raise ValueError(f"{shown(key)}: it holds no private key")
    if not certificate_file.certificates:
        raise ValueError(f"{shown(certificate)}: it holds no certificate")
    if chain is not None and not others:
        raise ValueError(f"{shown(chain)}: it holds no certificate")
    keys = {_public_bytes(each.public_key()): each for each in reversed(key_file.keys)}
    found = [each for each in certificate_file.certificates if _public_key(each) in keys][:1]
    if not found:
        raise ValueError(
            f"{shown(certificate)} and {shown(key)} do not match: "
            "the key is that of another certificate"
        )
    near = [*certificate_file.certificates, *others]
    return [_served(certificate, each, keys[_public_key(each)], near, {}) for each in found]


def read_directory(path: Path) -> list[ServerCertificate]:
    """Read the certificates in the ``.pem`` files of a directory and of its subdirectories.

    A key and its certificate may be in different files. If a file or directory has a name that
    begins with a dot, it is ignored.

    Returns:
        At least one certificate, in the order of the files' paths.

    Raises:
        ValueError: a file cannot be used; the text names it and says what to do.
    """
    files = _read_files(path)
    if not files:
        raise ValueError(f"no .pem file in {shown(path)}: let the files' names end in .pem")
    keys = {_public_bytes(key.public_key()): key for file in files for key in file.keys}
    found: dict[bytes, tuple[PemFile, x509.Certificate]] = {}
    for file in files:
        for each in file.certificates:
            if _public_key(each) in keys:
                found.setdefault(each.public_bytes(Encoding.DER), (file, each))
            elif not _is_authority(each) and any(_names(each)):
                raise ValueError(f"{shown(file.path)}: no .pem file in {shown(path)} holds its key")
    if not found:
        raise ValueError(
            f"no .pem file in {shown(path)} holds a certificate whose key is there too: add both"
        )
    if len(found) > MAX_CERTIFICATES:
        raise ValueError(f"{shown(path)} holds more than {MAX_CERTIFICATES} certificates")
    by_subject: dict[bytes, list[x509.Certificate]] = defaultdict(list)
    for file in files:
        for each in file.certificates:
            by_subject[each.subject.public_bytes()].append(each)
    return [
        _served(file.path, each, keys[_public_key(each)], file.certificates, by_subject)
        for file, each in found.values()
    ]


def _served(
    path: Path,
    certificate: x509.Certificate,
    key: Key,
    near: Sequence[x509.Certificate],
    by_subject: Mapping[bytes, Sequence[x509.Certificate]],
) -> ServerCertificate:
    dns, has_addresses = _names(certificate)
    if not dns and not has_addresses:
        raise ValueError(
            f"{shown(path)}: the certificate is valid for no host, as clients ignore the "
            "common name (CN); issue it with a subjectAltName"
        )
    chain = tuple(_chain(certificate, near, by_subject))
    return ServerCertificate(path, key, certificate, chain, dns, has_addresses)


def _chain(
    certificate: x509.Certificate,
    near: Sequence[x509.Certificate],
    by_subject: Mapping[bytes, Sequence[x509.Certificate]],
) -> Iterator[x509.Certificate]:
    """The issuers of a certificate, as far as they are known, without a root.

    Clients have the roots. A certificate that occurs twice ends the chain: authorities can have
    certified one another.

    Args:
        certificate: the certificate of a server.
        near: the certificates of its file, which are preferred: they may be the chain that the
            issuer recommends.
        by_subject: the certificates of all files.
    """
    seen = {certificate.public_bytes(Encoding.DER)}
    for _ in range(_MAX_CHAIN):
        name = certificate.issuer
        candidates = [each for each in near if each.subject == name]
        candidates += by_subject.get(name.public_bytes(), ())
        for issuer in candidates:
            is_root = issuer.issuer == issuer.subject
            if not is_root and _has_signed(issuer, certificate):
                break
        else:
            return
        encoded = issuer.public_bytes(Encoding.DER)
        if encoded in seen:
            return
        seen.add(encoded)
        yield issuer
        certificate = issuer


def _has_signed(issuer: x509.Certificate, certificate: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _names(certificate: x509.Certificate) -> tuple[frozenset[bytes], bool]:
    """The server names that a certificate is valid for, and whether it is for an address too."""
    try:
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
        names = extension.value.get_values_for_type(x509.DNSName)
        addresses = extension.value.get_values_for_type(x509.IPAddress)
    except x509.ExtensionNotFound:
        return frozenset(), False
    return (
        frozenset(each.lower().encode("utf-8") for each in names if len(each) <= _MAX_NAME),
        bool(addresses),
    )


def _is_authority(certificate: x509.Certificate) -> bool:
    try:
        extension = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    except x509.ExtensionNotFound:
        return False
    return extension.value.ca


def _public_key(certificate: x509.Certificate) -> bytes:
    return _public_bytes(certificate.public_key())


def _public_bytes(key: Any) -> bytes:
    encoded: bytes = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return encoded


def _read_files(path: Path) -> list[PemFile]:
    files: list[PemFile] = []
    size = 0
    for each in _pem_files(path):
        files.append(read_pem(each))
        size += files[-1].size
        if size > _MAX_SIZE:
            raise ValueError(f"{shown(path)}: the .pem files have more than {_MAX_SIZE} bytes")
    return files


def _pem_files(path: Path) -> list[Path]:
    """The files below a directory whose names end in ``.pem``, sorted.

    Links are followed. A directory that was seen already is not read again, so loops of links
    end.
    """
    found: list[Path] = []
    seen: set[tuple[int, int]] = set()
    directories = [path]
    count = 0
    while directories:
        directory = directories.pop()
        try:
            status = os.stat(directory)
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(directory) as entries:
                for entry in entries:
                    count += 1
                    if count > _MAX_ENTRIES:
                        raise ValueError(
                            f"more than {_MAX_ENTRIES} files are below it: "
                            "name a directory of certificates only"
                        )
                    if entry.name.startswith("."):
                        continue
                    if entry.name.endswith(".pem"):
                        found.append(Path(entry.path))
                    elif entry.is_dir():
                        directories.append(Path(entry.path))
        except OSError as error:
            raise ValueError(explain_file_error(directory, error)) from error
        except ValueError as error:
            raise ValueError(explain_file_error(path, error)) from error
    return sorted(found)

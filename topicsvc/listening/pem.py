"""Reads keys and certificates in PEM (RFC 7468). No input makes OpenSSL ask for a passphrase."""

from __future__ import annotations

import codecs
import re
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from topicsvc.files import explain_file_error, read_file

__all__ = ["MAX_RSA_BITS", "Key", "PemFile", "read_pem"]

MAX_RSA_BITS = 8192
"""A longer key costs more than 50 ms of processor time for each handshake."""

Key = (
    rsa.RSAPrivateKey
    | ec.EllipticCurvePrivateKey
    | ed25519.Ed25519PrivateKey
    | ed448.Ed448PrivateKey
)
"""The private keys that can serve TLS."""

# A file without a newline at its end may have been joined with another one.
_BLOCK = re.compile(rb"(?:^|(?<=-----))-----BEGIN ([^\r\n]*?)-----[ \t]*\r?$", re.MULTILINE)
_CERTIFICATES = (b"CERTIFICATE", b"X509 CERTIFICATE")
_KEYS = (b"PRIVATE KEY", b"RSA PRIVATE KEY", b"EC PRIVATE KEY")
_REMEDIES = {
    b"TRUSTED CERTIFICATE": "it holds OpenSSL's TRUSTED CERTIFICATE; "
    "write a plain one: openssl x509 -in FILE -out NEW",
    b"OPENSSH PRIVATE KEY": "its key has OpenSSH's format; "
    "convert it: ssh-keygen -p -m PEM -f FILE",
    b"DSA PRIVATE KEY": "a DSA key cannot serve TLS; issue a certificate for an EC or RSA key",
    b"PKCS7": "it holds PKCS#7; convert it: openssl pkcs7 -print_certs -in FILE -out NEW",
}
"""Blocks that look usable but are not, and what to do. Blocks of other kinds are ignored."""

_ENCRYPTED = (
    "its private key is encrypted, and a service cannot ask for the passphrase; "
    "write the key without one: openssl pkey -in FILE -out NEW"
)


@dataclass(frozen=True, slots=True)
class PemFile:
    """The keys and certificates of one file, in their order, and its size in bytes."""

    path: Path
    size: int
    keys: tuple[Key, ...]
    certificates: tuple[x509.Certificate, ...]


def read_pem(path: Path) -> PemFile:
    """Read the keys and certificates of a file.

    Raises:
        ValueError: the file cannot be used; the text names it and says what to do.
    """
    try:
        return _parse(path, read_file(path))
    except (OSError, ValueError) as error:
        raise ValueError(explain_file_error(path, error)) from error


def _parse(path: Path, content: bytes) -> PemFile:
    _check_encoding(content)
    keys: list[Key] = []
    certificates: list[x509.Certificate] = []
    starts = list(_BLOCK.finditer(content))
    if not starts:
        raise ValueError("it holds no PEM: no line begins with -----BEGIN")
    for start in starts:
        label = start[1]
        line = content.count(b"\n", 0, start.start()) + 1
        remedy = _REMEDIES.get(label)
        if remedy is not None:
            raise ValueError(remedy)
        if label == b"ENCRYPTED PRIVATE KEY":
            raise ValueError(_ENCRYPTED)
        if label not in _CERTIFICATES + _KEYS:
            continue
        end = re.compile(rb"^-----END " + re.escape(label) + rb"-----", re.MULTILINE).search(
            content, start.end()
        )
        following = _BLOCK.search(content, start.end())
        if end is None or (following is not None and following.start() < end.start()):
            raise ValueError(f"the PEM block in line {line} has no end: the file is not complete")
        block = content[start.start() : end.end()].replace(b"\r\n", b"\n") + b"\n"
        if label in _KEYS:
            keys.append(_key(block, line))
        else:
            certificates.append(_certificate(block, line))
    return PemFile(path, len(content), tuple(keys), tuple(certificates))


def _check_encoding(content: bytes) -> None:
    if not content.strip():
        raise ValueError("it is empty")
    if content.startswith((codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise ValueError("it begins with a byte order mark (BOM); save it as plain ASCII")
    if content[0] == 0x30 and b"-----BEGIN" not in content:
        raise ValueError(
            "it holds DER, not PEM; convert it: openssl x509 (or pkey) -inform der -in FILE "
            "-out NEW, or openssl pkcs12 -nodes -in FILE -out NEW"
        )


def _key(block: bytes, line: int) -> Key:
    if b"ENCRYPTED" in block[: block.index(b"\n\n") if b"\n\n" in block else 0]:
        raise ValueError(_ENCRYPTED)
    try:
        # A test of the primes would take 50 ms and more. A handshake tests the key instead.
        key = load_pem_private_key(block, None, unsafe_skip_rsa_key_validation=True)
    except TypeError:
        raise ValueError(_ENCRYPTED) from None
    except (ValueError, UnsupportedAlgorithm):
        raise ValueError(f"the private key in line {line} cannot be parsed") from None
    if isinstance(key, dsa.DSAPrivateKey):
        raise ValueError(_REMEDIES[b"DSA PRIVATE KEY"])
    if not isinstance(key, Key):
        raise ValueError(f"the private key in line {line} is of a kind that cannot serve TLS")
    if isinstance(key, rsa.RSAPrivateKey) and key.key_size > MAX_RSA_BITS:
        raise ValueError(
            f"its RSA key has {key.key_size} bits, and each handshake would take too long; "
            f"use at most {MAX_RSA_BITS}"
        )
    return key


def _certificate(block: bytes, line: int) -> x509.Certificate:
    block = block.replace(b"X509 CERTIFICATE", b"CERTIFICATE")
    try:
        certificate = x509.load_pem_x509_certificate(block)
        certificate.public_key()
        _ = certificate.subject, certificate.issuer, certificate.extensions
    except (ValueError, UnsupportedAlgorithm, x509.DuplicateExtension):
        raise ValueError(f"the certificate in line {line} cannot be parsed") from None
    return certificate

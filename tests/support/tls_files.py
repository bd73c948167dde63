"""Keys, certificates and files for tests of TLS: everything that an operator can do wrong."""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import NameOID

NOW = datetime.datetime.now(datetime.UTC)

PASSPHRASE = b"secret"


def new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def key_pem(
    key: Any, form: PrivateFormat = PrivateFormat.PKCS8, passphrase: bytes | None = None
) -> bytes:
    protection = NoEncryption() if passphrase is None else BestAvailableEncryption(passphrase)
    encoded: bytes = key.private_bytes(Encoding.PEM, form, protection)
    return encoded


def certificate_pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.PEM)


@dataclass
class Party:
    """A name with a key, which can issue certificates."""

    name: str
    key: Any

    @classmethod
    def new(cls, name: str) -> Party:
        return cls(name, new_key())

    @property
    def subject(self) -> x509.Name:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, self.name)])

    def certify(
        self,
        other: Party,
        hosts: Sequence[str] = (),
        is_ca: bool = False,
        days_ago: float = 1,
        algorithm: Any = hashes.SHA256,
    ) -> x509.Certificate:
        """Issue a certificate for `other`, valid for 90 days from `days_ago` on."""
        begin = NOW - datetime.timedelta(days=days_ago)
        builder = (
            x509.CertificateBuilder()
            .subject_name(other.subject)
            .issuer_name(self.subject)
            .public_key(other.key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(begin)
            .not_valid_after(begin + datetime.timedelta(days=90))
            .add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
        )
        if hosts:
            names = x509.SubjectAlternativeName([general_name(host) for host in hosts])
            builder = builder.add_extension(names, critical=False)
        return builder.sign(self.key, None if algorithm is None else algorithm())


def general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def self_signed(*hosts: str, name: str = "server", **options: Any) -> bytes:
    """A key and its self-signed certificate, in one file."""
    party = Party.new(name)
    return key_pem(party.key) + certificate_pem(party.certify(party, hosts, **options))

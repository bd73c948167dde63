"""A certificate authority for one test run."""

from __future__ import annotations

import datetime
import ipaddress
import ssl
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

LIFETIME = datetime.timedelta(days=80)
"""Long enough, and short enough, for a TLS scanner to report nothing about it."""

REVOCATION_LIST = "http://localhost/revoked.crl"
"""The revocation list that each certificate names; no test fetches it."""


class Authority:
    """Issues certificates into a directory.

    Args:
        parent: the authority that issues the certificate of this one; None: it is a root.

    Attributes:
        ca_file: the certificate of the root, which a client trusts.
    """

    def __init__(
        self, directory: Path, name: str = "topicsvc test CA", parent: Authority | None = None
    ) -> None:
        self.directory = directory
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        certificate = (parent or self)._build(self._name, self._key, is_ca=True)
        encoded = certificate.public_bytes(serialization.Encoding.PEM)
        self._intermediates = b""
        if parent is None:
            self.ca_file = directory / "ca.pem"
            self.ca_file.write_bytes(encoded)
        else:
            self.ca_file = parent.ca_file
            self._intermediates = encoded + parent._intermediates

    def issue(
        self, *hosts: str, name: str = "server", lifetime: datetime.timedelta = LIFETIME
    ) -> tuple[Path, Path]:
        """Write a key and a certificate for `hosts`; return the paths of the two files.

        The certificates of the authorities below the root follow in the second file.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, hosts[0])])
        certificate = self._build(subject, key, hosts=hosts, lifetime=lifetime)
        key_file, cert_file = self.directory / f"{name}-key.pem", self.directory / f"{name}.pem"
        key_file.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        encoded = certificate.public_bytes(serialization.Encoding.PEM)
        cert_file.write_bytes(encoded + self._intermediates)
        return key_file, cert_file

    def client_context(self) -> ssl.SSLContext:
        """The TLS settings of a client that trusts only this authority."""
        return ssl.create_default_context(cafile=str(self.ca_file))

    def _build(
        self,
        subject: x509.Name,
        key: ec.EllipticCurvePrivateKey,
        hosts: tuple[str, ...] = (),
        is_ca: bool = False,
        lifetime: datetime.timedelta = LIFETIME,
    ) -> x509.Certificate:
        now = datetime.datetime.now(datetime.UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=2))
            .not_valid_after(now + lifetime)
            .add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
        )
        if hosts:
            names = x509.SubjectAlternativeName([_general_name(host) for host in hosts])
            builder = builder.add_extension(names, critical=False)
            location = x509.UniformResourceIdentifier(REVOCATION_LIST)
            points = [x509.DistributionPoint([location], None, None, None)]
            builder = builder.add_extension(x509.CRLDistributionPoints(points), critical=False)
        return builder.sign(self._key, hashes.SHA256())


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)

"""PEM files of every kind that an operator may give: each is read, or refused on one line."""

from __future__ import annotations

import builtins
import codecs
import os
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed448, ed25519, rsa, x25519
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.hazmat.primitives.serialization.pkcs12 import serialize_key_and_certificates
from twisted.trial.unittest import SynchronousTestCase

from tests.support.tls_files import PASSPHRASE, Party, certificate_pem, key_pem, self_signed
from topicsvc.listening import pem
from topicsvc.listening.pem import read_pem

EC_PARAMETERS = b"-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n"


class PemTestCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.directory = Path(self.mktemp()).absolute()
        self.directory.mkdir()
        self.path = self.directory / "a.pem"
        self.party = Party.new("unit1.example")
        self.certificate = self.party.certify(self.party, ["unit1.example"])

    def counts(self, content: bytes) -> tuple[int, int]:
        """The numbers of keys and certificates in `content`."""
        self.path.write_bytes(content)
        found = read_pem(self.path)
        return len(found.keys), len(found.certificates)

    def problem(self, content: bytes) -> str:
        self.path.write_bytes(content)
        text = str(self.assertRaises(ValueError, read_pem, self.path))
        self.assertTrue(text.startswith(f"{self.path}: "), text)
        self.assertNotIn("\n", text)
        return text.removeprefix(f"{self.path}: ")


class UsableFileTests(PemTestCase):
    def test_each_kind_of_key(self) -> None:
        for key in (
            *(ec.generate_private_key(curve()) for curve in (ec.SECP256R1, ec.SECP384R1)),
            rsa.generate_private_key(65537, 2048),
            ed25519.Ed25519PrivateKey.generate(),
            ed448.Ed448PrivateKey.generate(),
        ):
            self.assertEqual(self.counts(key_pem(key)), (1, 0))

    def test_each_format_of_a_key(self) -> None:
        for key in (self.party.key, rsa.generate_private_key(65537, 2048)):
            for form in (PrivateFormat.PKCS8, PrivateFormat.TraditionalOpenSSL):
                self.assertEqual(self.counts(key_pem(key, form)), (1, 0))

    def test_ec_parameters_before_the_key(self) -> None:
        """``openssl ecparam -genkey`` writes them."""
        key = key_pem(self.party.key, PrivateFormat.TraditionalOpenSSL)
        certificate = certificate_pem(self.certificate)
        self.assertEqual(self.counts(EC_PARAMETERS + key + certificate), (1, 1))

    def test_text_and_other_blocks_are_skipped(self) -> None:
        certificate = certificate_pem(self.certificate)
        for before in (
            b"Bag Attributes\n    friendlyName: x\n",
            b"Certificate:\n    Data:\n",
            b"-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n",
            b"-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n",
            b"-----BEGIN DH PARAMETERS-----\nAAAA\n-----END DH PARAMETERS-----\n",
            b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n",
            b"\n\n \n",
        ):
            self.assertEqual(self.counts(before + certificate + before), (0, 1))

    def test_line_ends_and_the_end_of_the_file(self) -> None:
        both = key_pem(self.party.key) + certificate_pem(self.certificate)
        for content in (
            both.replace(b"\n", b"\r\n"),
            both.rstrip(b"\n"),
            both.replace(b"-----\n", b"----- \n"),
            both.replace(b"-----\n-----", b"----------"),
            both.replace(b"BEGIN CERTIFICATE", b"BEGIN X509 CERTIFICATE").replace(
                b"END CERTIFICATE", b"END X509 CERTIFICATE"
            ),
        ):
            self.assertEqual(self.counts(content), (1, 1))


class UnusableFileTests(PemTestCase):
    def test_encrypted_keys_are_refused_and_nobody_is_asked(self) -> None:
        """OpenSSL's default asks on the terminal, and the process waits."""

        def ask(*_: Any) -> str:
            raise AssertionError("asked")

        self.patch(builtins, "input", ask)
        for key in (self.party.key, rsa.generate_private_key(65537, 2048)):
            for form in (PrivateFormat.PKCS8, PrivateFormat.TraditionalOpenSSL):
                for line_end in (b"\n", b"\r\n"):
                    content = key_pem(key, form, PASSPHRASE).replace(b"\n", line_end)
                    self.assertIn("openssl pkey -in FILE -out NEW", self.problem(content))

    def test_encodings(self) -> None:
        both = key_pem(self.party.key) + certificate_pem(self.certificate)
        for content in (
            codecs.BOM_UTF8 + both,
            both.decode().encode("utf-16"),
            both.decode().encode("utf-16-be").join([codecs.BOM_UTF16_BE, b""]),
        ):
            self.assertIn("byte order mark", self.problem(content))

    def test_der(self) -> None:
        pkcs12 = serialize_key_and_certificates(
            b"x", self.party.key, self.certificate, None, NoEncryption()
        )
        key = self.party.key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
        for content in (self.certificate.public_bytes(Encoding.DER), key, pkcs12):
            self.assertIn("DER, not PEM; convert it: openssl", self.problem(content))

    def test_files_without_pem(self) -> None:
        for content in (b"", b" \n\n"):
            self.assertEqual(self.problem(content), "it is empty")
        for content in (b"nonsense", b"\0" * 1000, b"----BEGIN CERTIFICATE----\n"):
            self.assertIn("no line begins with -----BEGIN", self.problem(content))

    def test_blocks_that_are_not_complete(self) -> None:
        certificate = certificate_pem(self.certificate)
        key = key_pem(self.party.key)
        for content, line in (
            (certificate[: len(certificate) // 2], 1),
            (b"\n\n" + certificate[:40] + b"\n" + certificate, 3),
            (key + certificate[:-5], key.count(b"\n") + 1),
            (b"-----BEGIN CERTIFICATE-----\nnonsense", 1),
        ):
            expected = f"the PEM block in line {line} has no end: the file is not complete"
            self.assertEqual(self.problem(content), expected)

    def test_blocks_that_cannot_be_parsed(self) -> None:
        certificate = certificate_pem(self.certificate)
        broken = certificate[:100] + b"AAAA" + certificate[104:]
        key = key_pem(self.party.key)
        for content, words in (
            (broken, "the certificate in line 1 cannot be parsed"),
            (
                key + broken,
                f"the certificate in line {key.count(bytes([10])) + 1} cannot be parsed",
            ),
            (certificate.replace(b"M", b"!"), "the certificate in line 1 cannot be parsed"),
            (key[:60] + b"AAAA" + key[64:], "the private key in line 1 cannot be parsed"),
        ):
            self.assertEqual(self.problem(content), words)

    def test_keys_that_cannot_serve_tls(self) -> None:
        self.assertIn("kind that", self.problem(key_pem(x25519.X25519PrivateKey.generate())))
        self.assertIn("DSA", self.problem(key_pem(dsa.generate_private_key(2048))))
        for label, words in (
            (b"OPENSSH PRIVATE KEY", "ssh-keygen"),
            (b"TRUSTED CERTIFICATE", "openssl x509"),
            (b"PKCS7", "openssl pkcs7"),
            (b"DSA PRIVATE KEY", "DSA"),
        ):
            block = b"-----BEGIN %s-----\nAAAA\n-----END %s-----\n" % (label, label)
            self.assertIn(words, self.problem(block))

    def test_an_rsa_key_that_would_take_too_long(self) -> None:
        self.patch(pem, "MAX_RSA_BITS", 2047)
        key = rsa.generate_private_key(65537, 2048)
        self.assertIn("2048 bits", self.problem(key_pem(key)))

    def test_what_is_no_file(self) -> None:
        os.mkfifo(self.path)
        text = str(self.assertRaises(ValueError, read_pem, self.path))
        self.assertEqual(text, f"{self.path}: it is a FIFO, not a regular file")

    def test_the_key_is_not_in_the_text(self) -> None:
        content = self_signed("unit1.example")
        lines = content.splitlines()
        lines[1] = lines[1][:-4]
        text = self.problem(b"\n".join(lines))
        self.assertNotIn(lines[2].decode(), text)

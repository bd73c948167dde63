"""Which certificates of a directory or a pair of files are served, with which keys and chains."""

from __future__ import annotations

import os
from itertools import pairwise
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from twisted.trial.unittest import SynchronousTestCase

from tests.support.tls_files import Party, certificate_pem, key_pem, self_signed
from topicsvc.listening import certificates
from topicsvc.listening.certificates import ServerCertificate, read_directory, read_pair


class CertificateTestCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.directory = Path(self.mktemp()).absolute()
        self.directory.mkdir()
        self.root = Party.new("root")
        self.authority = Party.new("authority")
        self.server = Party.new("server")
        self.root_certificate = self.root.certify(self.root, is_ca=True)
        self.intermediate = self.root.certify(self.authority, is_ca=True)
        self.leaf = self.authority.certify(self.server, ["unit1.example"])
        self.key = key_pem(self.server.key)

    def write(self, name: str, *parts: bytes | x509.Certificate) -> Path:
        path = self.directory / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(
            b"".join(
                certificate_pem(part) if isinstance(part, x509.Certificate) else part
                for part in parts
            )
        )
        return path

    def one(self) -> ServerCertificate:
        [found] = read_directory(self.directory)
        return found

    def problem(self, words: str) -> None:
        text = str(self.assertRaises(ValueError, read_directory, self.directory))
        self.assertIn(words, text)
        self.assertNotIn("\n", text)


class ChainTests(CertificateTestCase):
    def test_the_root_of_the_chain_is_left_out(self) -> None:
        """Twisted's own code would follow the root, which is its own issuer, for ever."""
        self.write("a.pem", self.key, self.leaf, self.intermediate, self.root_certificate)
        self.assertEqual(self.one().chain, (self.intermediate,))

    def test_a_self_signed_certificate(self) -> None:
        self.write("a.pem", self_signed("unit1.example"))
        self.assertEqual(self.one().chain, ())

    def test_a_self_signed_certificate_of_an_authority(self) -> None:
        """``openssl req -x509`` makes such certificates."""
        self.write("a.pem", self_signed("unit1.example", is_ca=True))
        self.assertEqual(self.one().chain, ())

    def test_authorities_that_certified_one_another(self) -> None:
        other = Party.new("other")
        loop = [
            other.certify(self.authority, is_ca=True),
            self.authority.certify(other, is_ca=True),
        ]
        self.write("a.pem", self.key, self.leaf, *loop)
        self.assertEqual(self.one().chain, tuple(loop))

    def test_a_loop_of_three(self) -> None:
        first, second, third = self.authority, Party.new("2"), Party.new("3")
        loop = [
            issuer.certify(subject, is_ca=True)
            for subject, issuer in ((first, second), (second, third), (third, first))
        ]
        self.write("a.pem", self.key, self.leaf, *loop)
        self.assertEqual(self.one().chain, tuple(loop))

    def test_an_authority_that_was_certified_by_a_root_and_by_an_older_root(self) -> None:
        old = Party.new("old root")
        crossed = old.certify(self.root, is_ca=True)
        parts = (self.root_certificate, crossed, self.intermediate, old.certify(old, is_ca=True))
        self.write("a.pem", self.key, self.leaf, *parts)
        self.assertEqual(self.one().chain, (self.intermediate, crossed))

    def test_an_authority_of_the_same_name_with_another_key(self) -> None:
        same_name = Party.new("authority")
        wrong = self.root.certify(same_name, is_ca=True)
        self.write("a.pem", self.key, self.leaf, wrong, self.intermediate)
        self.assertEqual(self.one().chain, (self.intermediate,))

    def test_the_order_in_the_file_does_not_matter(self) -> None:
        self.write("a.pem", self.root_certificate, self.intermediate, self.leaf, self.key)
        found = self.one()
        self.assertEqual((found.certificate, found.chain), (self.leaf, (self.intermediate,)))

    def test_a_chain_in_other_files(self) -> None:
        """The directory of a lineage of certbot."""
        self.write("cert.pem", self.leaf)
        self.write("chain.pem", self.intermediate)
        self.write("fullchain.pem", self.leaf, self.intermediate)
        self.write("privkey.pem", self.key)
        found = self.one()
        self.assertEqual(found.certificate, self.leaf)
        self.assertEqual(found.chain, (self.intermediate,))

    def test_the_length_of_a_chain_is_bounded(self) -> None:
        parties = [self.authority, *(Party.new(str(number)) for number in range(30))]
        links = [issuer.certify(subject, is_ca=True) for subject, issuer in pairwise(parties)]
        self.write("a.pem", self.key, self.leaf, *links)
        self.assertEqual(self.one().chain, tuple(links[:10]))


class DirectoryTests(CertificateTestCase):
    def test_each_certificate_has_its_key(self) -> None:
        for number, key in enumerate(
            (
                ec.generate_private_key(ec.SECP384R1()),
                rsa.generate_private_key(65537, 2048),
                ed25519.Ed25519PrivateKey.generate(),
            )
        ):
            party = Party(f"server{number}", key)
            signed = self.authority.certify(party, [f"unit{number}.example"])
            self.write(f"{number}.pem", key_pem(key), signed)
            self.assertEqual(read_directory(self.directory)[number].certificate, signed)

    def test_only_pem_files_are_read_and_subdirectories_too(self) -> None:
        self.write("sub/a.pem", self.key, self.leaf)
        self.write("README", b"nonsense")
        self.write(".hidden.pem", b"nonsense")
        self.write(".git/a.pem", b"nonsense")
        self.assertEqual(self.one().path, self.directory / "sub/a.pem")

    def test_links_to_directories_and_their_loops(self) -> None:
        """The volume of a Kubernetes secret is a set of links."""
        self.write("..2026/tls.pem", self.key, self.leaf)
        (self.directory / "..data").symlink_to("..2026")
        (self.directory / "tls.pem").symlink_to("..data/tls.pem")
        (self.directory / "loop").symlink_to(self.directory)
        (self.directory / "loops").mkdir()
        (self.directory / "loops/up").symlink_to("..")
        self.assertEqual(self.one().path, self.directory / "tls.pem")

    def test_what_is_no_file(self) -> None:
        self.write("a.pem", self.key, self.leaf)
        other = self.directory / "b.pem"
        other.mkdir()
        self.problem(f"{other}: it is a directory, not a regular file")
        other.rmdir()
        os.mkfifo(other)
        self.problem(f"{other}: it is a FIFO, not a regular file")
        other.unlink()
        other.symlink_to("nowhere")
        self.problem(f"{other}: No such file or directory: it is a link to nowhere")
        other.unlink()
        other.symlink_to("/dev/zero")
        self.problem(f"{other}: it is a device")

    def test_a_directory_that_is_missing_or_a_file(self) -> None:
        self.directory.rmdir()
        self.problem(f"{self.directory}: No such file or directory")
        self.directory.write_bytes(b"")
        self.problem(f"{self.directory}: Not a directory")

    def test_an_empty_directory(self) -> None:
        self.problem(f"no .pem file in {self.directory}: let the files' names end in .pem")

    def test_a_certificate_without_its_key_and_a_key_without_certificate(self) -> None:
        self.write("a.pem", self.leaf)
        self.problem(f"a.pem: no .pem file in {self.directory} holds its key")
        self.write("a.pem", key_pem(Party.new("x").key), self.leaf)
        self.problem(f"a.pem: no .pem file in {self.directory} holds its key")
        self.write("a.pem", self.key)
        self.problem("holds a certificate whose key is there too: add both")
        self.write("a.pem", self.intermediate)
        self.problem("holds a certificate whose key is there too: add both")

    def test_one_unusable_file_beside_a_good_one(self) -> None:
        self.write("a.pem", self.key, self.leaf)
        for content in (b"", b"nonsense", self.key[:-40]):
            self.write("b.pem", content)
            self.problem(f"{self.directory}/b.pem: ")

    def test_unused_keys_and_other_files_are_no_problem(self) -> None:
        self.write("a.pem", self.key, self.leaf)
        self.write("account.pem", key_pem(Party.new("x").key))
        self.write("root.pem", self.root_certificate)
        self.assertEqual(self.one().certificate, self.leaf)

    def test_names(self) -> None:
        signed = self.authority.certify(
            self.server, ["Unit1.Example", "*.UNIT1.example", "192.0.2.1", "x" * 300]
        )
        self.write("a.pem", self.key, signed)
        found = self.one()
        self.assertEqual(found.names, {b"unit1.example", b"*.unit1.example"})
        self.assertTrue(found.is_for_addresses)

    def test_addresses_only_and_a_common_name_only(self) -> None:
        for hosts, is_good in ((["192.0.2.1"], True), (["2001:db8::1"], True), ([], False)):
            path = self.write("a.pem", self.key, self.authority.certify(self.server, hosts))
            if is_good:
                self.assertTrue(self.one().is_for_addresses)
                self.assertTrue(read_pair(path, path, None)[0].is_for_addresses)
                continue
            words = f"{path}: the certificate is valid for no host"
            self.problem(words)
            text = str(self.assertRaises(ValueError, read_pair, path, path, None))
            self.assertIn(words, text)

    def test_too_many_files_or_certificates(self) -> None:
        for number in range(4):
            self.write(f"{number}.pem", self_signed(f"unit{number}.example"))
        self.assertEqual(len(read_directory(self.directory)), 4)
        self.patch(certificates, "MAX_CERTIFICATES", 3)
        self.problem("holds more than 3 certificates")
        self.patch(certificates, "_MAX_SIZE", 1000)
        self.problem("the .pem files have more than 1000 bytes")
        self.patch(certificates, "_MAX_ENTRIES", 3)
        self.problem("more than 3 files are below it")

    def test_names_of_files_are_shown_on_one_line(self) -> None:
        self.write("a\nb.pem", b"nonsense")
        self.problem(r"a\u000ab.pem: it holds no PEM")


class PairTests(CertificateTestCase):
    def pair_problem(self, key: Path, certificate: Path, chain: Path | None = None) -> str:
        return str(self.assertRaises(ValueError, read_pair, key, certificate, chain))

    def test_two_files_and_a_chain(self) -> None:
        key = self.write("key.pem", self.key)
        certificate = self.write("cert.pem", self.leaf)
        chain = self.write("chain.pem", self.intermediate, self.root_certificate)
        [found] = read_pair(key, certificate, chain)
        self.assertEqual((found.certificate, found.chain), (self.leaf, (self.intermediate,)))

    def test_the_chain_in_the_file_of_the_certificate(self) -> None:
        key = self.write("key.pem", self.key)
        certificate = self.write("fullchain.pem", self.leaf, self.intermediate)
        [found] = read_pair(key, certificate, None)
        self.assertEqual(found.chain, (self.intermediate,))

    def test_everything_in_one_file(self) -> None:
        path = self.write("a.pem", self.root_certificate, self.intermediate, self.leaf, self.key)
        [found] = read_pair(path, path, None)
        self.assertEqual((found.certificate, found.chain), (self.leaf, (self.intermediate,)))

    def test_the_key_of_another_certificate(self) -> None:
        key = self.write("key.pem", key_pem(Party.new("x").key))
        certificate = self.write("cert.pem", self.leaf)
        self.assertEqual(
            self.pair_problem(key, certificate),
            f"{certificate} and {key} do not match: the key is that of another certificate",
        )

    def test_files_that_were_mixed_up(self) -> None:
        key, certificate = self.write("key.pem", self.key), self.write("cert.pem", self.leaf)
        self.assertEqual(
            self.pair_problem(certificate, key), f"{certificate}: it holds no private key"
        )
        self.assertEqual(self.pair_problem(key, key), f"{key}: it holds no certificate")
        self.assertEqual(
            self.pair_problem(key, certificate, key), f"{key}: it holds no certificate"
        )

    def test_a_file_is_good_or_bad_as_in_a_directory(self) -> None:
        """The kinds of endpoints ``ssl:`` and ``tls:`` agree about each file."""
        good = self.key + certificate_pem(self.leaf)
        for content in (
            *(good, self.key, certificate_pem(self.leaf), b"", b"nonsense", b"\xef\xbb\xbf" + good),
            good + certificate_pem(self.root_certificate),
            self.key + certificate_pem(self.authority.certify(self.server)),
            self.key + certificate_pem(self.authority.certify(self.server, ["192.0.2.1"])),
            key_pem(self.server.key, passphrase=b"x") + certificate_pem(self.leaf),
            key_pem(Party.new("x").key) + certificate_pem(self.leaf),
            good[:-10],
        ):
            path = self.write("a.pem", content)
            is_good = []
            for read, arguments in (
                (read_directory, [path.parent]),
                (read_pair, [path, path, None]),
            ):
                try:
                    read(*arguments)  # type: ignore[operator]
                except ValueError:
                    is_good.append(False)
                else:
                    is_good.append(True)
            self.assertEqual(is_good[0], is_good[1], content)

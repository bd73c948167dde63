"""Files that settings name: nothing that is read at a start, a check or a reload can block."""

from __future__ import annotations

import os
import threading
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.support.tls_files import PASSPHRASE, Party, certificate_pem, key_pem
from topicsvc import config
from topicsvc.config import files
from topicsvc.config.files import read_settings_file
from topicsvc.errors import ConfigError
from topicsvc.validators.local import make_key, write_key


class SettingsFileTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.path = Path(self.mktemp()).absolute()

    def test_a_pipe_delivers_the_settings(self) -> None:
        """``topicsvc check /dev/stdin`` and the shell's ``<(...)`` are pipes."""
        read, write = os.pipe()
        self.addCleanup(os.close, read)
        content = "# " + "x" * 100_000

        def deliver() -> None:
            with os.fdopen(write, "w") as pipe:
                pipe.write(content)

        writer = threading.Thread(target=deliver)
        writer.start()
        self.assertEqual(read_settings_file(Path(f"/dev/fd/{read}")), content)
        writer.join()

    def test_a_pipe_that_delivers_nothing_is_given_up(self) -> None:
        self.patch(files, "PIPE_TIMEOUT", 0.05)
        read, write = os.pipe()
        self.addCleanup(os.close, read)
        self.addCleanup(os.close, write)
        os.write(write, b"listen = [")
        error = self.assertRaises(ValueError, read_settings_file, Path(f"/dev/fd/{read}"))
        self.assertEqual(str(error), "the pipe did not deliver the settings within 0.05 s")

    def test_a_fifo_without_a_writer(self) -> None:
        os.mkfifo(self.path)
        error = self.assertRaises(ValueError, read_settings_file, self.path)
        self.assertEqual(str(error), "the pipe delivered nothing")

    def test_what_is_neither_a_file_nor_a_pipe(self) -> None:
        for path, words in (("/dev/tty", "it is a device"), ("/", "it is a directory")):
            error = self.assertRaises(ConfigError, config.read, Path(path))
            self.assertEqual(error.problems, (f"{path}: {words}, not a regular file",))


class NamedFileTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.directory = Path(self.mktemp()).absolute()
        self.directory.mkdir()
        self.fifo = self.directory / "fifo"
        os.mkfifo(self.fifo)
        write_key(self.directory / "key", make_key())

    def problems(self, validator: str = "", broker: str = "", top: str = "") -> str:
        key = f'kind = "local"\nkey_file = "{self.directory}/key"'
        text = (
            f'{top}\nlisten = ["tcp:8080"]\nunit_url = "https://unit1.example/"\n'
            f"[validator]\n{validator or key}\n[broker]\n{broker}\n"
        )
        error = self.assertRaises(ConfigError, config.load, text)
        [problem] = error.problems
        return str(problem)

    def test_a_fifo_in_place_of_each_file(self) -> None:
        personium = f'kind = "personium"\nusername = "u"\npassword_file = "{self.directory}/key"\n'
        introspection = (
            'kind = "introspection"\nurl = "https://as.example/"\nclient_id = "c"\n'
            f'client_secret_file = "{self.directory}/key"\n'
        )
        activemq = 'kind = "activemq"\nendpoint = "tcp:localhost:61613"\nusername = "u"\n'
        jwt = (
            'kind = "jwt"\n[[validator.issuers]]\nissuer = "us"\naudience = ["us"]\n'
            f'jwks_file = "{self.fifo}"\n[[validator.rules]]\neverybody = true\n'
            'topics = ["/c/*"]\nmay = ["send"]'
        )
        for problem in (
            self.problems(jwt),
            self.problems(f'kind = "local"\nkey_file = "{self.fifo}"'),
            self.problems(f'{personium}ca_file = "{self.fifo}"'),
            self.problems(personium.replace(f"{self.directory}/key", str(self.fifo))),
            self.problems(introspection.replace(f"{self.directory}/key", str(self.fifo))),
            self.problems(f'{introspection}ca_file = "{self.fifo}"'),
            self.problems(broker=f'{activemq}password_file = "{self.fifo}"'),
        ):
            self.assertIn(f"{self.fifo}: it is a FIFO, not a regular file", problem)

    def test_files_of_the_endpoint_of_activemq(self) -> None:
        roots = self.directory / "roots"
        roots.mkdir()
        (roots / "dangling.pem").symlink_to("nowhere")
        os.mkfifo(roots / "README")
        os.mkfifo(roots / "a.PEM")
        party = Party.new("client")
        encrypted = self.directory / "client.pem"
        encrypted.write_bytes(
            key_pem(party.key, passphrase=PASSPHRASE)
            + certificate_pem(party.certify(party, ["client"]))
        )
        for option, words in (
            (f"trustRoots={roots}", "a.PEM: it is a FIFO"),
            (f"certificate={encrypted}", "client.pem: its private key is encrypted"),
            (f"certificate={self.fifo}", "fifo: it is a FIFO"),
            (f"certificate={encrypted}:privateKey={self.fifo}", "encrypted"),
        ):
            endpoint = f'endpoint = "tls:broker.example:61614:{option}"'
            problem = self.problems(broker=f'kind = "activemq"\n{endpoint}')
            self.assertTrue(problem.startswith("broker.endpoint: "), problem)
            self.assertIn(words, problem)

    def test_relative_paths_start_from_the_given_directory(self) -> None:
        text = (
            'listen = ["tls:pems"]\nunit_url = "https://unit1.example/"\n'
            '[validator]\nkind = "local"\nkey_file = "key"\n'
            '[broker]\nkind = "activemq"\nendpoint = "tls:b:1:trustRoots=roots"\n'
        )
        self.assertRaises(ConfigError, config.load, text)
        found = config.load(text, directory=self.directory)
        self.assertEqual(found.listen, ("tls:pems",), "as given, for the log")
        self.assertEqual(found.directory, self.directory)
        self.assertIn(f"trustRoots={self.directory}/roots", str(found.broker))

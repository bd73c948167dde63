from __future__ import annotations

from itertools import count
from pathlib import Path

from twisted.internet.testing import MemoryReactorClock
from twisted.trial.unittest import SynchronousTestCase

from topicsvc.brokers.activemq import ActiveMQBroker
from topicsvc.brokers.login import Login
from topicsvc.brokers.memory import MemoryBroker
from topicsvc.config import ActiveMQSettings, BrokerSettings, Config, MemorySettings, load
from topicsvc.errors import ConfigError
from topicsvc.service import TopicService
from topicsvc.validators.local import make_key, write_key


class BrokerSettingsTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.numbers = count()
        self.directory = Path(self.mktemp())
        self.directory.mkdir()
        write_key(self.directory / "key", make_key())

    def config(self, broker: str) -> Config:
        return load(
            'listen = ["tcp:0"]\nadmin = "tcp:0"\nunit_url = "https://unit1.example/"\n'
            f'[validator]\nkind = "local"\nkey_file = "{self.directory / "key"}"\n'
            f"[broker]\n{broker}"
        )

    def broker(self, text: str) -> BrokerSettings:
        return self.config(text).broker

    def problems(self, text: str) -> tuple[str, ...]:
        return self.assertRaises(ConfigError, self.broker, text).problems

    def file(self, content: str) -> str:
        path = self.directory / f"password{next(self.numbers)}"
        path.write_text(content, "utf-8")
        return f'password_file = "{path}"\n'

    def test_memory_is_the_default(self) -> None:
        self.assertEqual(self.broker(""), MemorySettings())
        self.assertEqual(self.broker('kind = "memory"\non_loss = "close"'), MemorySettings())

    def test_activemq(self) -> None:
        self.assertEqual(
            self.broker('kind = "activemq"\nendpoint = "tcp:localhost:61613"'),
            ActiveMQSettings("tcp:localhost:61613"),
        )

    def test_all_of_activemq(self) -> None:
        settings = self.broker(
            'kind = "activemq"\nendpoint = "tls:broker.example:61614"\non_loss = "close"\n'
            f'username = "topicsvc"\n{self.file("open:sesame ")}'
        )
        login = Login("topicsvc", "open:sesame ")
        self.assertEqual(settings, ActiveMQSettings("tls:broker.example:61614", login, True))
        self.assertNotIn("sesame", repr(settings))

    def test_a_line_break_at_the_end_of_the_password_file_is_no_part_of_it(self) -> None:
        file = self.file("sesame\n")
        settings = self.broker(
            f'kind = "activemq"\nendpoint = "tcp:localhost:61613"\nusername = "topicsvc"\n{file}'
        )
        assert isinstance(settings, ActiveMQSettings)
        self.assertEqual(settings.login, Login("topicsvc", "sesame"))

    def test_what_is_wrong_is_said_in_one_line_each(self) -> None:
        base = 'kind = "activemq"\nendpoint = "tcp:localhost:61613"\n'
        cases = {
            'kind = "rabbit"': "broker.kind",
            'kind = "activemq"': "broker.endpoint: missing",
            'kind = "activemq"\nendpoint = "ssl:localhost:61614"': "broker.endpoint",
            'kind = "activemq"\nendpoint = "localhost:61613"': "broker.endpoint",
            base + 'on_loss = "panic"': "broker.on_loss",
            base + 'username = "topicsvc"': "broker.password_file: missing",
            base + self.file("sesame"): "broker.username: missing",
            base + 'username = "a\\nb"\n' + self.file("sesame"): "broker.username: holds",
            base + 'username = "a"\n' + self.file("two\nlines"): "broker.password_file",
            base + 'username = "a"\n' + self.file(""): "broker.password_file",
            base + "bootstrap = 1": "broker.bootstrap: there is no such setting",
        }
        for text, expected in cases.items():
            problems = self.problems(text)
            self.assertEqual(len(problems), 1, text)
            self.assertTrue(problems[0].startswith(expected), problems[0])
            self.assertNotIn("sesame", problems[0])

    def service(self, text: str) -> TopicService:
        return TopicService(self.config(text), MemoryReactorClock())

    def test_the_service_has_the_broker_that_was_asked_for(self) -> None:
        memory = self.service("")
        activemq = self.service('kind = "activemq"\nendpoint = "tcp:localhost:61613"')
        self.assertIsInstance(memory.broker, MemoryBroker)
        self.assertIsInstance(activemq.broker, ActiveMQBroker)

    def test_readiness_asks_the_broker(self) -> None:
        memory = self.service("")
        activemq = self.service('kind = "activemq"\nendpoint = "tcp:localhost:61613"')
        self.assertTrue(memory._parts()["broker"])
        self.assertFalse(activemq._parts()["broker"])

    def test_an_endpoint_that_cannot_be_made(self) -> None:
        for endpoint in ("tcp:localhost:http", "tls:localhost:1:trustRoots=/no/such/place"):
            text = f'kind = "activemq"\nendpoint = "{endpoint}"'
            error = self.assertRaises(ConfigError, self.service, text)
            self.assertEqual(len(error.problems), 1)
            self.assertTrue(error.problems[0].startswith("broker.endpoint"))

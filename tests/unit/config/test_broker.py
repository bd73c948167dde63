"""The settings of ``[broker]``, and the broker that is made from them."""

from __future__ import annotations

from itertools import count
from pathlib import Path

from twisted.internet.testing import MemoryReactorClock
from twisted.trial.unittest import SynchronousTestCase

from tests.support.certificates import Authority
from topicsvc.brokers.activemq.broker import ActiveMQBroker
from topicsvc.brokers.kafka.broker import KafkaBroker
from topicsvc.brokers.kafka.options import connection_options
from topicsvc.brokers.memory import MemoryBroker
from topicsvc.brokers.redis.broker import RedisBroker
from topicsvc.config import broker as broker_table
from topicsvc.config import load
from topicsvc.errors import ConfigError
from topicsvc.service import TopicService
from topicsvc.settings import (
    ActiveMQSettings,
    BrokerSettings,
    Config,
    HistorySettings,
    KafkaSettings,
    Login,
    MemorySettings,
    RedisSettings,
)
from topicsvc.validators.local import make_key, write_key


class BrokerSettingsTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.numbers = count()
        self.directory = Path(self.mktemp())
        self.directory.mkdir()
        write_key(self.directory / "key", make_key())

    def load(self, broker: str) -> Config:
        return load(
            'listen = ["tcp:0"]\nadmin = "tcp:0"\nunit_url = "https://unit1.example/"\n'
            f'[validator]\nkind = "local"\nkey_file = "{self.directory / "key"}"\n'
            f"[broker]\n{broker}"
        )

    def broker(self, text: str) -> BrokerSettings:
        return self.load(text).broker

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

    def test_every_setting_of_activemq(self) -> None:
        settings = self.broker(
            'kind = "activemq"\nendpoint = "tls:broker.example:61614"\non_loss = "close"\n'
            f'username = "topicsvc"\n{self.file("open:sesame ")}'
        )
        login = Login("topicsvc", "open:sesame ")
        self.assertEqual(settings, ActiveMQSettings("tls:broker.example:61614", login, True))
        self.assertNotIn("sesame", repr(settings))

    def test_a_newline_at_the_end_of_the_password_file_is_ignored(self) -> None:
        file = self.file("sesame\n")
        settings = self.broker(
            f'kind = "activemq"\nendpoint = "tcp:localhost:61613"\nusername = "topicsvc"\n{file}'
        )
        assert isinstance(settings, ActiveMQSettings)
        self.assertEqual(settings.login, Login("topicsvc", "sesame"))

    def test_kafka(self) -> None:
        self.assertEqual(
            self.broker('kind = "kafka"\nbootstrap = "localhost:9092"'),
            KafkaSettings("localhost:9092"),
        )

    def test_every_setting_of_kafka(self) -> None:
        authority = Authority(self.directory)
        settings = self.broker(
            'kind = "kafka"\nbootstrap = "host1:9092,[::1]:9092,10.0.0.1:9092"\n'
            f'on_loss = "close"\nca_file = "{authority.ca_file}"\n'
            f'username = "topicsvc"\n{self.file("open:sesame ")}'
        )
        login = Login("topicsvc", "open:sesame ")
        pem = authority.ca_file.read_text()
        self.assertEqual(
            settings, KafkaSettings("host1:9092,[::1]:9092,10.0.0.1:9092", login, pem, True)
        )
        self.assertNotIn("sesame", repr(settings))

    def test_the_security_protocol_of_kafka(self) -> None:
        login = Login("topicsvc", "sesame")
        protocols = [
            connection_options("h:1", each, ca)["security.protocol"]
            for each in (None, login)
            for ca in (None, "PEM")
        ]
        self.assertEqual(protocols, ["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"])
        options = connection_options("h:1", login, "PEM")
        self.assertEqual(options["sasl.mechanism"], "PLAIN")
        self.assertEqual(options["ssl.ca.pem"], "PEM")

    def test_kafka_without_its_client_library(self) -> None:
        self.patch(broker_table, "find_spec", lambda _: None)
        problems = self.problems('kind = "kafka"\nbootstrap = "localhost:9092"')
        self.assertEqual(len(problems), 1)
        self.assertTrue(problems[0].startswith("broker.kind: "))
        self.assertIn("pip install 'topicsvc[kafka]'", problems[0])

    def test_the_broker_is_not_made_without_its_client_library(self) -> None:
        self.patch(broker_table, "find_spec", lambda _: None)
        brokers: list[BrokerSettings] = []

        def check(settings: Config) -> list[str]:
            brokers.append(settings.broker)
            return []

        text = '[broker]\nkind = "kafka"\nbootstrap = "localhost:9092"'
        self.assertRaises(ConfigError, load, text, extra_check=check)
        self.assertEqual(brokers, [MemorySettings()])

    def test_each_wrong_setting_of_kafka_is_one_problem(self) -> None:
        base = 'kind = "kafka"\nbootstrap = "localhost:9092"\n'
        cases = {
            'kind = "kafka"': "broker.bootstrap: missing",
            'kind = "kafka"\nbootstrap = "localhost"': "broker.bootstrap",
            'kind = "kafka"\nbootstrap = "kafka://localhost:9092"': "broker.bootstrap",
            'kind = "kafka"\nbootstrap = "a:1, b:1"': "broker.bootstrap",
            base + 'ca_file = "/no/such/file"': "broker.ca_file",
            base + self.file("no PEM").replace("password_file", "ca_file"): "broker.ca_file",
            base + 'username = "topicsvc"': "broker.password_file: missing",
            base + self.file("sesame"): "broker.username: missing",
            base + 'endpoint = "tcp:localhost:1"': "broker.endpoint: there is no such setting",
        }
        for text, expected in cases.items():
            problems = self.problems(text)
            self.assertEqual(len(problems), 1, text)
            self.assertTrue(problems[0].startswith(expected), problems[0])
            self.assertNotIn("sesame", problems[0])

    def test_redis(self) -> None:
        cases = {
            "redis://localhost": RedisSettings("localhost"),
            "redis://localhost/": RedisSettings("localhost"),
            "redis://10.0.0.1:7000/3": RedisSettings("10.0.0.1", 7000, 3),
            "REDISS://[::1]:6379": RedisSettings("::1", is_tls=True),
        }
        for url, expected in cases.items():
            self.assertEqual(self.broker(f'kind = "redis"\nurl = "{url}"'), expected)

    def test_every_setting_of_redis(self) -> None:
        authority = Authority(self.directory)
        settings = self.broker(
            'kind = "redis"\nurl = "rediss://redis.example/1"\nprefix = "app1:"\n'
            f'on_loss = "close"\nca_file = "{authority.ca_file}"\n'
            f'username = "topicsvc"\n{self.file("open:sesame ")}'
            "[history]\nseconds = 10\nmessages = 5\nbytes = 2048"
        )
        assert isinstance(settings, RedisSettings)
        self.assertIsNotNone(settings.authorities)
        expected = RedisSettings(
            "redis.example",
            database=1,
            is_tls=True,
            prefix="app1:",
            login=Login("topicsvc", "open:sesame "),
            authorities=settings.authorities,
            closes_on_loss=True,
            history=HistorySettings(10, 5, 2048),
        )
        self.assertEqual(settings, expected)
        self.assertNotIn("sesame", repr(settings))

    def test_redis_needs_no_user_name(self) -> None:
        settings = self.broker('kind = "redis"\nurl = "redis://localhost"\n' + self.file("sesame"))
        assert isinstance(settings, RedisSettings)
        self.assertEqual(settings.login, Login("default", "sesame"))

    def test_redis_without_its_parser(self) -> None:
        self.patch(broker_table, "find_spec", lambda _: None)
        [problem] = self.problems('kind = "redis"\nurl = "redis://localhost"')
        self.assertIn("pip install 'topicsvc[redis]'", problem)

    def test_each_wrong_setting_of_redis_is_one_problem(self) -> None:
        base = 'kind = "redis"\nurl = "redis://localhost"\n'
        password = "broker.url: it has a user name or a password"
        cases = {
            'kind = "redis"': "broker.url: missing",
            'kind = "redis"\nurl = "localhost:6379"': "broker.url",
            'kind = "redis"\nurl = "redis://"': "broker.url",
            'kind = "redis"\nurl = "redis://localhost:0"': "broker.url",
            'kind = "redis"\nurl = "redis://localhost:65536"': "broker.url",
            'kind = "redis"\nurl = "redis://localhost/x"': "broker.url",
            'kind = "redis"\nurl = "redis://a:sesame@localhost"': password,
            'kind = "redis"\nurl = "redis://:sesame@localhost"': password,
            base + 'prefix = "a b"': "broker.prefix",
            base + 'prefix = "{x}"': "broker.prefix",
            base + f'prefix = "{"x" * 65}"': "broker.prefix",
            base + 'ca_file = "/no/such/file"': "broker.ca_file",
            base + 'username = "topicsvc"': "broker.password_file: missing",
            base + "[history]\nseconds = -1": "history.seconds",
            base + "[history]\nmessages = 0": "history.messages",
            base + "[history]\nbytes = 1023": "history.bytes",
            base + "[history]\nkeep = 1": "history.keep: there is no such setting",
        }
        for text, expected in cases.items():
            problems = self.problems(text)
            self.assertEqual(len(problems), 1, text)
            self.assertTrue(problems[0].startswith(expected), problems[0])
            self.assertNotIn("sesame", problems[0])

    def test_each_wrong_setting_is_one_problem(self) -> None:
        base = 'kind = "activemq"\nendpoint = "tcp:localhost:61613"\n'
        cases = {
            'kind = "rabbit"': "broker.kind",
            'kind = "rabbit"\nendpoint = "tcp:x:1"\nusername = "a"': "broker.kind",
            'kind = ["activemq"]\nendpoint = "tcp:x:1"': "broker.kind",
            'kind = "activemq"\nendpoint = "tcp:localhost:65536"': "broker.endpoint",
            'kind = "activemq"\nendpoint = "tls:host=x:port=-1"': "broker.endpoint",
            'kind = "activemq"': "broker.endpoint: missing",
            'kind = "activemq"\nendpoint = "ssl:localhost:61614"': "broker.endpoint",
            'kind = "activemq"\nendpoint = "localhost:61613"': "broker.endpoint",
            base + 'on_loss = "panic"': "broker.on_loss",
            base + 'username = "topicsvc"': "broker.password_file: missing",
            base + self.file("sesame"): "broker.username: missing",
            base + 'username = "a\\nb"\n' + self.file("sesame"): "broker.username: contains",
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
        return TopicService(self.load(text), MemoryReactorClock())

    def test_the_service_uses_the_configured_broker(self) -> None:
        memory = self.service("")
        activemq = self.service('kind = "activemq"\nendpoint = "tcp:localhost:61613"')
        self.assertIsInstance(memory.broker, MemoryBroker)
        self.assertIsInstance(activemq.broker, ActiveMQBroker)
        kafka = self.service('kind = "kafka"\nbootstrap = "localhost:9092"')
        self.assertIsInstance(kafka.broker, KafkaBroker)
        self.assertFalse(kafka._health_parts()["broker"])
        for scheme in ("redis", "rediss"):
            redis = self.service(f'kind = "redis"\nurl = "{scheme}://localhost"')
            self.assertIsInstance(redis.broker, RedisBroker)

    def test_readiness_includes_the_broker(self) -> None:
        memory = self.service("")
        activemq = self.service('kind = "activemq"\nendpoint = "tcp:localhost:61613"')
        self.assertTrue(memory._health_parts()["broker"])
        self.assertFalse(activemq._health_parts()["broker"])

    def test_an_endpoint_that_cannot_be_parsed(self) -> None:
        for endpoint, wrong in (
            ("tcp:localhost:http", "'http' is not a number"),
            ("tcp:localhost", "port= is missing"),
            ("tcp:localhost:1:nonsense=2", "it does not take nonsense="),
            ("tls:localhost:1:nonsense=2", "it does not take nonsense="),
            ("tls:localhost:1:trustRoots=/no/such/place", "/no/such/place: No such file"),
        ):
            text = f'kind = "activemq"\nendpoint = "{endpoint}"'
            error = self.assertRaises(ConfigError, self.service, text)
            self.assertEqual(len(error.problems), 1)
            self.assertTrue(
                error.problems[0].startswith(f"broker.endpoint: {endpoint!r}: {wrong}"),
                error.problems[0],
            )

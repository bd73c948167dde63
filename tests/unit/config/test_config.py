"""Settings, and the problem that each wrong setting gets."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from topicsvc import config
from topicsvc.errors import ConfigError
from topicsvc.settings import Config
from topicsvc.topics import TopicAddress
from topicsvc.validators.local import make_key, write_key


class ConfigTestCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.key_file = Path(self.mktemp())
        write_key(self.key_file, make_key())

    def text(self, changes: str = "", validator: str = "", top: str = "") -> str:
        return f"""
            listen = ["tcp:8080"]
            unit_url = "https://unit1.example/"
            {top}
            [validator]
            kind = "local"
            key_file = "{self.key_file}"
            {validator}
            {changes}
        """

    def load(self, *changes: str, **more: str) -> Config:
        return config.load(self.text(*changes, **more))

    def assert_problems(self, text: str, *beginnings: str) -> None:
        problems = self.assertRaises(ConfigError, config.load, text).problems
        self.assertEqual(len(problems), len(beginnings), problems)
        for problem, beginning in zip(problems, beginnings, strict=True):
            self.assertTrue(problem.startswith(beginning), problem)
            self.assertNotIn("\n", problem)


class ValidConfigTests(ConfigTestCase):
    def test_the_smallest_file_and_the_defaults(self) -> None:
        settings = self.load()
        self.assertEqual(settings.listen, ("tcp:8080",))
        self.assertEqual(settings.unit.url, "https://unit1.example/")
        self.assertEqual((settings.admin, settings.topics), (None, ()))
        session = settings.session
        self.assertEqual((session.token_timeout, session.ping_interval), (60, 60))
        self.assertEqual((session.ping_limit, session.max_message), (10, 65536))
        self.assertEqual((session.send_queue, session.timestamps), (1048576, "seconds"))
        send = settings.send
        self.assertEqual(
            (send.enabled, send.max_body, send.max_batch, send.trust_via),
            (True, 1048576, 10000, False),
        )
        self.assertEqual(settings.stop.drain, 5)
        self.assertTrue(settings.log.subjects)
        limits = settings.limits
        self.assertEqual((limits.connections, limits.per_address), (0, 0))
        self.assertEqual((limits.unauthenticated, limits.unauthenticated_per_address), (1000, 100))
        self.assertEqual((limits.accepts_per_second, limits.failed_tokens_per_minute), (0, 30))
        self.assertEqual((limits.messages_per_minute, limits.frames_per_message), (60, 128))
        self.assertEqual(limits.queued_bytes, 268435456)
        self.assertEqual((limits.trusted_proxies, limits.allowed_origins), ((), frozenset()))

    def test_every_setting(self) -> None:
        settings = self.load(
            """
            [session]
            token_timeout = 30
            ping_interval = 20.5
            ping_limit = 3
            max_message = 4096
            send_queue = 100000
            timestamps = "milliseconds"
            [send]
            enabled = false
            max_body = 2000
            max_batch = 50
            trust_via = true
            [broker]
            kind = "memory"
            [limits]
            connections = 20000
            per_address = 50
            unauthenticated = 500
            unauthenticated_per_address = 10
            accepts_per_second = 100
            failed_tokens_per_minute = 5
            messages_per_minute = 0
            frames_per_message = 1
            queued_bytes = 1048576
            trusted_proxies = ["10.0.0.0/8", "2001:db8::1"]
            allowed_origins = ["HTTPS://App.Example:443", "null"]
            [stop]
            drain = 0
            [log]
            subjects = false
            """,
            top="""
            admin = "tcp:9090"
            hosts = ["unit1.example", "unit1.internal"]
            topics = ["/cell1/box1/col/topic/name", "/cell2/*"]
            """,
        )
        self.assertEqual(settings.admin, "tcp:9090")
        self.assertEqual(settings.session.ping_interval, 20.5)
        self.assertEqual(settings.session.timestamps, "milliseconds")
        self.assertEqual((settings.send.enabled, settings.send.trust_via), (False, True))
        self.assertEqual(settings.stop.drain, 0)
        self.assertFalse(settings.log.subjects)
        limits = settings.limits
        self.assertEqual((limits.connections, limits.per_address), (20000, 50))
        self.assertEqual((limits.unauthenticated, limits.unauthenticated_per_address), (500, 10))
        self.assertEqual((limits.accepts_per_second, limits.failed_tokens_per_minute), (100, 5))
        self.assertEqual((limits.messages_per_minute, limits.frames_per_message), (0, 1))
        self.assertEqual(limits.queued_bytes, 1048576)
        proxies = ["10.0.0.0/8", "2001:db8::1/128"]
        self.assertEqual([str(each) for each in limits.trusted_proxies], proxies)
        self.assertEqual(limits.allowed_origins, {"https://app.example", "null"})
        self.assertTrue(settings.topics[1].matches(TopicAddress("cell2", "b", ("c",), "t")))

    def test_options_override_the_file(self) -> None:
        settings = config.load(self.text(), ["tcp:1", "tcp:2"], "tcp:3")
        self.assertEqual((settings.listen, settings.admin), (("tcp:1", "tcp:2"), "tcp:3"))
        text = self.text().replace('listen = ["tcp:8080"]', "")
        self.assertEqual(config.load(text, ["tcp:1"]).listen, ("tcp:1",))

    def test_a_key_is_not_in_the_representation(self) -> None:
        settings = self.load()
        self.assertNotIn(repr(settings.validator.key), repr(settings))


class InvalidConfigTests(ConfigTestCase):
    def test_a_file_that_is_not_toml(self) -> None:
        self.assert_problems("listen = [", "not TOML: ")

    def test_a_missing_file(self) -> None:
        problems = self.assertRaises(ConfigError, config.read, Path("nowhere.toml")).problems
        self.assertEqual(problems, ("nowhere.toml: No such file or directory",))

    def test_an_empty_file_lacks_the_required_settings(self) -> None:
        self.assert_problems(
            "", "listen: nothing to listen on", "unit_url: missing", "validator.kind: missing"
        )  # fmt: skip

    def test_each_problem_names_the_setting_and_what_is_allowed(self) -> None:
        for changes, beginning, allowed in (
            ("[session]\ntoken_timeout = 0", "session.token_timeout: 0", "from 1 to 86400"),
            ('[session]\nping_interval = "1"', "session.ping_interval: '1'", "a number"),
            ("[session]\nping_limit = 1.5", "session.ping_limit: 1.5", "a whole number"),
            ("[session]\nping_limit = true", "session.ping_limit: True", "a whole number"),
            ("[session]\nmax_message = nan", "session.max_message: nan", "a whole number"),
            ("[session]\nping_interval = nan", "session.ping_interval: nan", "from 1 to"),
            ('[session]\ntimestamps = "s"', "session.timestamps: 's'", '"milliseconds"'),
            ("[send]\nenabled = 1", "send.enabled: 1", "true or false"),
            ('[broker]\nkind = "rabbit"', "broker.kind: 'rabbit'", '"memory"'),
            ("[stop]\ndrain = -1", "stop.drain: -1", "from 0 to 3600"),
            ("[limits]\nwaiting = 5", "limits.waiting:", "now called limits.unauthenticated;"),
            (
                "[limits]\nwaiting_per_address = 5",
                "limits.waiting_per_address:",
                "now called limits.unauthenticated_per_address;",
            ),
            ("[limits]\nunauthenticated = -1", "limits.unauthenticated: -1", "from 0 to 1000000"),
            ("[limits]\nper_address = 1.5", "limits.per_address: 1.5", "a whole number"),
            ("[limits]\nframes_per_message = 0", "limits.frames_per_message: 0", "from 1 to"),
            ("[limits]\nqueued_bytes = 0", "limits.queued_bytes: 0", "from 1048576 to"),
            ('[limits]\ntrusted_proxies = "::1"', "limits.trusted_proxies: '::1'", '["..."'),
            (
                '[limits]\ntrusted_proxies = ["10.0.0.1/8"]',
                "limits.trusted_proxies: '10.0.0.1/8'",
                '"10.0.0.0/8"',
            ),
            ('[limits]\ntrusted_proxies = ["proxy"]', "limits.trusted_proxies: 'proxy'", "10.0.0"),
            (
                '[limits]\nallowed_origins = ["app.example"]',
                "limits.allowed_origins: 'app.exam",
                '"https://app.example"',
            ),
            (
                '[limits]\nallowed_origins = ["https://a.example/"]',
                "limits.allowed_origins: 'http",
                '"null"',
            ),
            ("[session]\nping_intervall = 1", "session.ping_intervall: there", "ping_interval"),
            ("[sesion]\nping_interval = 1", "sesion: there is no such", "session"),
        ):
            with self.subTest(changes=changes):
                self.assert_problems(self.text(changes), beginning)
                [problem] = self.assertRaises(ConfigError, self.load, changes).problems
                self.assertIn(
                    allowed,
                    problem.partition("allowed:")[2] if "now called" not in allowed else problem,
                )

    def test_wrong_settings_at_the_top(self) -> None:
        for top, beginning in (
            ("admin = 9090", "admin: 9090"),
            ('hosts = "unit1.example"', "hosts: 'unit1.example' is not a list"),
            ('hosts = ["a b"]', "unit_url or hosts: 'a b' is not a host name"),
            ('topics = ["/cell1"]', "topics: '/cell1'"),
            ("session = 1", "session: not a table"),
        ):
            with self.subTest(top=top):
                self.assert_problems(self.text(top=top), beginning)

    def test_a_key_file_that_cannot_be_read(self) -> None:
        self.key_file = Path("nowhere")
        self.assert_problems(self.text(), "validator.key_file: nowhere: No such file")
        self.key_file = Path(self.mktemp())
        self.key_file.write_text("short")
        self.assert_problems(self.text(), f"validator.key_file: {self.key_file}: ")

    def test_all_problems_are_reported_at_once(self) -> None:
        self.assert_problems(
            self.text("[session]\nping_limit = 0\nnonsense = 1\n[stop]\ndrain = -1"),
            "session.ping_limit", "stop.drain", "session.nonsense",
        )  # fmt: skip

    @given(
        st.sampled_from(
            ["listen", "unit_url", "hosts", "topics", "session", "send", "validator", "limits"]
        ),
        st.sampled_from(
            ["1", "true", '""', '"x"', "[]", "[1]", "{}", "{kind = 1}", "nan", "1e999"]
        ),
    )
    def test_any_value_is_valid_or_a_config_error(self, key: str, value: str) -> None:
        try:
            config.load(f"{key} = {value}")
        except ConfigError as error:
            self.assertTrue(error.problems)

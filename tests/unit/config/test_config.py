"""Settings, and the problem that each wrong setting gets."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from topicsvc import config
from topicsvc.errors import ConfigError
from topicsvc.settings import Config, HistorySettings
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
            [history]
            seconds = 60
            messages = 500
            bytes = 50000
            total = 1000000
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
        self.assertEqual(settings.history, HistorySettings(60, 500, 50000, 1000000))
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

    def test_what_is_kept_of_a_topic_fits_twice_into_a_send_queue(self) -> None:
        short = self.load("[session]\nsend_queue = 100000")
        self.assertEqual(short.history.bytes, 50000)
        self.assertEqual(self.load("[history]\nbytes = 524288").history.bytes, 524288)
        off = self.load("[history]\nseconds = 0\nbytes = 1048576")
        self.assertEqual(off.history.bytes, 1048576)

    def test_the_share_of_each_worker_in_the_memory_for_history_holds_one_topic(self) -> None:
        redis = '[history]\ntotal = 1048575\n[broker]\nkind = "redis"\nurl = "redis://h"'
        self.assertEqual(self.load(redis).history.total, 1048575)
        text = self.text(redis)
        self.assertEqual(config.load(text, workers="2").history.total, 1048575)
        [problem] = self.assertRaises(ConfigError, config.load, text, workers="3").problems
        self.assertEqual(
            problem,
            "history.total: 1048575 for 3 workers, 349525 for each, is less than history.bytes, "
            "524288, for one topic; allowed: at least 1572864, or a smaller history.bytes",
        )
        off = "[history]\nseconds = 0\ntotal = 70000"
        self.assertEqual(self.load(off).history.total, 70000)

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

    def test_each_problem_names_the_setting_what_is_allowed_and_what_it_is(self) -> None:
        numbers, networks = "must be a whole number", '"192.0.2.1", "10.0.0.0/8" or "2001:db8::/32"'
        for table, line in (
            ("session", "token_timeout = 0 -> must be a number from 1 to 86400, is 0"),
            ("session", 'ping_interval = "30" -> must be a number from 1 to 86400, is text: "30"'),
            ("session", "ping_interval = 1e99 -> must be a number from 1 to 86400, is 1e99"),
            ("session", "ping_interval = nan -> must be a number from 1 to 86400, is nan"),
            ("session", f"ping_limit = 1.5 -> {numbers} from 1 to 1000, is a number: 1.5"),
            ("session", f"ping_limit = true -> {numbers} from 1 to 1000, is a boolean: true"),
            ("session", f"max_message = nan -> {numbers} from 1024 to 1048576, is a number: nan"),
            ("session", f"ping_limit = [true] -> {numbers} from 1 to 1000, is a list: [true]"),
            ("session", f"ping_limit = {{a = 1}} -> {numbers} from 1 to 1000, "
                        "is a table: {a = 1}"),
            ("session", f"ping_limit = 1979-05-27 -> {numbers} from 1 to 1000, "
                        "is a date or time: 1979-05-27"),
            ("session", f'ping_limit = "" -> {numbers} from 1 to 1000, is empty'),
            ("session", 'timestamps = "s" -> must be "seconds" or "milliseconds", is text: "s"'),
            ("send", "enabled = 1 -> must be true or false, is a number: 1"),
            ("send", 'enabled = "true" -> must be true or false, is text: "true"'),
            ("broker", 'on_loss = "x" -> must be "keep" or "close", is text: "x"'),
            ("stop", "drain = -1 -> must be a number from 0 to 3600, is -1"),
            ("limits", f"unauthenticated = -1 -> {numbers} from 0 to 1000000, is -1"),
            ("limits", f"frames_per_message = 0 -> {numbers} from 1 to 1048576, is 0"),
            ("limits", f"queued_bytes = 0 -> {numbers} from 1048576 to 1099511627776, is 0"),
            ("limits", 'trusted_proxies = "::1" -> must be a list, ["::1"], is text: "::1"'),
            ("limits", 'trusted_proxies = [1] -> must be a list of texts, ["...", "..."], '
                       "has a number: 1"),
            ("limits", 'trusted_proxies = ["10.0.0.1/8"] -> 10.0.0.1/8 has host bits set; '
                       f"allowed: {networks}"),
            ("limits", "trusted_proxies = [\"proxy\"] -> 'proxy' does not appear to be an IPv4 or "
                       f"IPv6 network; allowed: {networks}"),
            ("session", "ping_intervall = 1 -> there is no such setting; allowed: ping_interval"),
        ):  # fmt: skip
            setting, _, words = line.partition(" -> ")
            key = setting.partition(" =")[0]
            with self.subTest(line):
                problems = self.assertRaises(
                    ConfigError, self.load, f"[{table}]\n{setting}"
                ).problems
                self.assertEqual(problems, (f"{table}.{key}: {words}",))

    def test_a_long_value_is_cut(self) -> None:
        [problem] = self.assertRaises(
            ConfigError, self.load, f'[session]\nping_limit = "{"x" * 5000}"'
        ).problems
        self.assertLess(len(problem), 200)

    def test_other_problems_name_the_setting_and_what_is_allowed(self) -> None:
        for changes, beginning, allowed in (
            ("[limits]\nwaiting = 5", "limits.waiting:", "now called limits.unauthenticated;"),
            (
                "[limits]\nwaiting_per_address = 5",
                "limits.waiting_per_address:",
                "now called limits.unauthenticated_per_address;",
            ),
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
            ("[sesion]\nping_interval = 1", "sesion: there is no such", "session"),
            (
                "[session]\nsend_queue = 1000000\n[history]\nbytes = 500001",
                "history.bytes: 500001 is more than half of session.send_queue, 1000000",
                "at most 500000, or a larger session.send_queue",
            ),
            (
                "[history]\ntotal = 70000",
                "history.total: 70000 is less than history.bytes, 524288, for one topic",
                "at least 524288, or a smaller history.bytes",
            ),
        ):
            with self.subTest(changes=changes):
                self.assert_problems(self.text(changes), beginning)
                [problem] = self.assertRaises(ConfigError, self.load, changes).problems
                self.assertIn(allowed, problem)

    def test_wrong_settings_at_the_top(self) -> None:
        for top, beginning in (
            ("admin = 9090", "admin: must be an endpoint, "),
            ('hosts = "unit1.example"', 'hosts: must be a list, ["unit1.example"], is text'),
            ('hosts = ["a b"]', "hosts: 'a b' is not a host name"),
            ('topics = ["/cell1"]', "topics: '/cell1'"),
            ("session = 1", "session: must be a table, [session], is a number: 1"),
        ):
            with self.subTest(top=top):
                self.assert_problems(self.text(top=top), beginning)

    def test_one_mistake_is_one_problem(self) -> None:
        for listen in ('"tcp:1"', '""', "5", '["tcp:1", 5]', "[]"):
            text = self.text().replace('listen = ["tcp:8080"]', f"listen = {listen}")
            self.assert_problems(text, "listen: ")
        self.assert_problems(
            'listen = ["tcp:1"]\nunit_url = "https://u/"\nvalidator = "local"',
            'validator: must be a table, [validator], is text: "local"',
        )
        for url in ("unit1", "ftp://unit1/", "https://unit1/x", "https://u:99999/"):
            text = self.text().replace("https://unit1.example/", url)
            self.assert_problems(text, "unit_url: ")

    def test_a_key_file_that_cannot_be_read(self) -> None:
        self.key_file = Path("nowhere")
        self.assert_problems(self.text(), "validator.key_file: nowhere: No such file")
        self.key_file = Path(self.mktemp())
        self.key_file.write_text("short")
        advice = f"topicsvc token --key-file {self.key_file} --new-key"
        self.assert_problems(
            self.text(),
            f"validator.key_file: {self.key_file}: not a key in base64url; allowed: a "
            f"key file, as {advice} creates it",
        )
        self.key_file.write_text("")
        self.assert_problems(
            self.text(), f"validator.key_file: {self.key_file}: the file is empty; "
        )

    def test_a_byte_order_mark_is_ignored(self) -> None:
        file = Path(self.mktemp())
        self.key_file.write_bytes(b"\xef\xbb\xbf" + self.key_file.read_bytes())
        file.write_bytes(b"\xef\xbb\xbf" + self.text().encode())
        self.assertEqual(config.read(file).listen, ("tcp:8080",))

    def test_each_problem_of_a_file_names_it(self) -> None:
        file = Path(self.mktemp())
        for text in ("listen = [", "", self.text("[stop]\ndrain = -1")):
            file.write_text(text)
            for problem in self.assertRaises(ConfigError, config.read, file).problems:
                self.assertTrue(problem.startswith(f"{file}: "), problem)
        file.write_bytes(b"\xff")
        [problem] = self.assertRaises(ConfigError, config.read, file).problems
        self.assertEqual(problem, f"{file}: not UTF-8")

    def test_a_problem_of_an_option_names_the_option(self) -> None:
        file = Path(self.mktemp())
        file.write_text(self.text())
        extra = ["listen: 'x': no endpoint", "admin: 'y': no endpoint", "broker.kind: no"]
        [listen, admin, broker] = self.assertRaises(
            ConfigError, config.read, file, ["x"], "y", lambda _: extra
        ).problems
        self.assertEqual(
            (listen, admin, broker),
            ("--listen: 'x': no endpoint", "--admin: 'y': no endpoint", f"{file}: broker.kind: no"),
        )

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

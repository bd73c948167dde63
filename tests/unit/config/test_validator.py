"""The settings of ``[validator]``, and what is built from them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from twisted.trial.unittest import TestCase

from tests.support.certificates import Authority
from topicsvc import config
from topicsvc.errors import ConfigError
from topicsvc.service import TopicService
from topicsvc.settings import (
    CheckSettings,
    Config,
    IntrospectionSettings,
    PersoniumSettings,
    Rule,
)
from topicsvc.topics import SubjectPattern, TopicAddress, TopicPattern
from topicsvc.validators.local import make_key, write_key
from topicsvc.validators.wrappers.cache import GrantCache
from topicsvc.validators.wrappers.single_flight import SingleFlight
from topicsvc.validators.wrappers.topic_filter import TopicFilter

TOPIC = TopicAddress("cell1", "box1", ("col",), "name")
SECRET = "canary-\N{SNOWMAN} secret "


class SettingsTestCase(TestCase):
    def setUp(self) -> None:
        self.directory = Path(self.mktemp())
        self.directory.mkdir()
        self.secret_file = self.directory / "secret"
        self.secret_file.write_text(SECRET + "\n", "utf-8")

    def load(self, validator: str, top: str = "") -> Config:
        text = f'listen = ["tcp:0"]\nunit_url = "https://unit1.example/"\n{top}\n[validator]\n'
        return config.load(text + validator)

    def personium(self, more: str = "", top: str = "") -> Config:
        return self.load(
            f'kind = "personium"\nusername = "me"\npassword_file = "{self.secret_file}"\n{more}',
            top,
        )

    def introspection(self, more: str = "", top: str = "") -> Config:
        return self.load(
            f'kind = "introspection"\nurl = "https://as.example/introspect"\nclient_id = "me"\n'
            f'client_secret_file = "{self.secret_file}"\n{more}',
            top,
        )

    def assert_problem(self, beginning: str, allowed: str, load: Any, *arguments: str) -> None:
        [problem] = self.assertRaises(ConfigError, load, *arguments).problems
        self.assertTrue(problem.startswith(beginning), problem)
        self.assertIn(allowed, problem.partition("; allowed: ")[2])
        self.assertNotIn("canary", problem)


class PersoniumSettingsTests(SettingsTestCase):
    def test_the_required_settings(self) -> None:
        settings = self.personium()
        validator = settings.validator
        assert isinstance(validator, PersoniumSettings)
        self.assertEqual((validator.username, validator.password), ("me", SECRET))
        self.assertEqual(validator.unit.topic_url(TOPIC), settings.unit.topic_url(TOPIC))
        self.assertEqual(validator.unit.cell_url("cell1"), "https://cell1.unit1.example/")
        self.assertEqual(settings.checks, CheckSettings(10, 32, 0, 0))

    def test_every_setting(self) -> None:
        settings = self.personium(
            f'url = "http://10.0.0.1:8080"\ncell_urls = "path"\ntimeout = 2.5\nconcurrency = 5\n'
            f'cache = 30\nrecheck = 60\nca_file = "{Authority(self.directory).ca_file}"'
        )
        validator = settings.validator
        assert isinstance(validator, PersoniumSettings)
        self.assertEqual(validator.unit.cell_url("cell1"), "http://10.0.0.1:8080/cell1/")
        self.assertEqual(settings.unit.cell_url("cell1"), "https://unit1.example/cell1/")
        self.assertIsNotNone(validator.authorities)
        self.assertEqual(settings.checks, CheckSettings(2.5, 5, 30, 60))

    def test_wrong_settings(self) -> None:
        for more, beginning, allowed in (
            ('url = "ftp://x/"', "validator.url: ", "https://unit1.example/"),
            ('url = "https://canary:canary@x/"', "validator.url: ", "https://unit1.example/"),
            ('url = "https://10.0.0.1/"', "validator.cell_urls: ", '"path"'),
            ('url = "https://[::1]/"', "validator.cell_urls: ", '"path"'),
            ('cell_urls = "both"', "validator.cell_urls: ", '"host", "path"'),
            ('ca_file = "nowhere"', "validator.ca_file: nowhere: No such file", "can be read"),
            (f'ca_file = "{self.secret_file}"', "validator.ca_file: ", "configuration.md"),
            ("timeout = 0", "validator.timeout: 0", "from 0.1 to 300"),
            ("concurrency = 0", "validator.concurrency: 0", "from 1 to 1000"),
            ("cache = -1", "validator.cache: -1", "from 0 to 86400"),
            ('url = "https://x:0/"', "validator.url: not a port", "https://unit1.example/"),
            ("recheck = 0.01", "validator.recheck: 0.01", "0, or a number from 1 to 86400"),
            ('recheck = "1"', "validator.recheck: '1'", "from 0 to 86400"),
            ("rules = []", "validator.rules: there is no such setting", ""),
            ('password = "canary"', "validator.password: there is no such", "password_file"),
        ):
            with self.subTest(more):
                self.assert_problem(beginning, allowed, self.personium, more)

    def test_missing_settings_are_named(self) -> None:
        problems = self.assertRaises(ConfigError, self.load, 'kind = "personium"').problems
        self.assertEqual(
            [problem.partition(":")[0] for problem in problems],
            ["validator.username", "validator.password_file"],
        )

    def test_a_wrong_unit_url_is_one_problem(self) -> None:
        text = (
            'listen = ["tcp:0"]\nunit_url = "unit1"\n[validator]\nkind = "personium"\n'
            f'username = "me"\npassword_file = "{self.secret_file}"\n'
        )
        self.assert_problem("unit_url or hosts: ", "https://unit1.example/", config.load, text)


class IntrospectionSettingsTests(SettingsTestCase):
    def test_the_required_settings(self) -> None:
        validator = self.introspection().validator
        assert isinstance(validator, IntrospectionSettings)
        self.assertEqual(
            (validator.url, validator.client_id, validator.client_secret, validator.rules),
            ("https://as.example/introspect", "me", SECRET, ()),
        )
        self.assertEqual((validator.issuer, validator.audience), (None, None))

    def test_every_setting(self) -> None:
        validator = self.introspection(
            """
            issuer = "https://as.example/"
            audience = "us"
            [[validator.rules]]
            scope = "news"
            topics = ["/cell1/*", "/cell2/box1/col/topic/name"]
            may = ["receive"]
            [[validator.rules]]
            scope = "all"
            topics = ["/*"]
            may = ["send", "receive"]
            [[validator.rules]]
            claim = "groups"
            value = "staff"
            topics = ["/*"]
            may = ["send"]
            [[validator.rules]]
            claim = ["realm_access", "roles"]
            value = "editor"
            topics = ["/*"]
            may = ["send"]
            [[validator.rules]]
            everybody = true
            topics = ["/{sub}/inbox/*"]
            may = ["receive"]
            """
        ).validator
        assert isinstance(validator, IntrospectionSettings)
        self.assertEqual((validator.issuer, validator.audience), ("https://as.example/", "us"))
        some = tuple(map(TopicPattern.parse, ["/cell1/*", "/cell2/box1/col/topic/name"]))
        every = (TopicPattern.parse("/*"),)
        self.assertEqual(
            validator.rules,
            (
                Rule("news", some, frozenset({"receive"})),
                Rule("all", every, frozenset({"receive", "send"})),
                Rule(None, every, frozenset({"send"}), ("groups",), "staff"),
                Rule(None, every, frozenset({"send"}), ("realm_access", "roles"), "editor"),
                Rule(None, (SubjectPattern.parse("/{sub}/inbox/*"),), frozenset({"receive"})),
            ),
        )

    def test_wrong_settings(self) -> None:
        rule = '[[validator.rules]]\nscope = "{}"\ntopics = ["{}"]\nmay = ["{}"]'
        for more, beginning, allowed in (
            ('cell_urls = "path"', "validator.cell_urls: there is no such setting", ""),
            ("rules = 1", "validator.rules: not a list of tables", "[[validator.rules]]"),
            (rule.format("a b", "/*", "send"), "validator.rules[0].scope: ", "one scope"),
            (rule.format(" a", "/*", "send"), "validator.rules[0].scope: ", "one scope"),
            (rule.format("a", "x", "send"), "validator.rules[0].topics: 'x'", "/cell1/box1/*"),
            (rule.format("a", "/*", "fly"), "validator.rules[0].may: ['fly']", '["receive"]'),
            (rule.format("a", "/*", "send") + "\nx = 1", "validator.rules[0].x: there", "may"),
            ('[[validator.rules]]\nscope = "a"\ntopics = []\nmay = ["send"]',
             "validator.rules[0].topics: empty", "a list"),
            ('[[validator.rules]]\nscope = "a"\ntopics = ["/*"]',
             "validator.rules[0].may: []", '["send"]'),
        ):  # fmt: skip
            with self.subTest(more):
                self.assert_problem(beginning, allowed, self.introspection, more)

    def test_wrong_conditions_of_rules(self) -> None:
        rule = '[[validator.rules]]\ntopics = ["/*"]\nmay = ["send"]\n'
        for more, beginning, allowed in (
            ("", "validator.rules[0].scope: no condition", "everybody = true"),
            ('scope = "a"\neverybody = true', "validator.rules[0].scope: scope and everybody", ""),
            ('scope = "a"\nclaim = "b"\nvalue = "c"', "validator.rules[0].scope: scope and c", ""),
            ("everybody = false", "validator.rules[0].everybody: no token meets it", "true"),
            ('claim = "groups"', "validator.rules[0].value: ", "both"),
            ('scope = "a"\nvalue = "b"', "validator.rules[0].value: ", "both"),
            ('claim = []\nvalue = "b"', "validator.rules[0].claim: []", '["realm_access"'),
            ('claim = ["a", ""]\nvalue = "b"', "validator.rules[0].claim: ['a', '']", "names"),
            ('claim = "a"\nvalue = 1', "validator.rules[0].value: 1 is not a string", "holds"),
        ):
            with self.subTest(more):
                self.assert_problem(beginning, allowed, self.introspection, rule + more)

    def test_wrong_places_of_the_subject(self) -> None:
        for topics in ("/x{sub}/*", "/{name}/*", "/{sub}", "/cell1/box1/col/{sub}/name"):
            more = f'[[validator.rules]]\nscope = "a"\ntopics = ["{topics}"]\nmay = ["send"]'
            self.assert_problem(
                "validator.rules[0].topics: ", "/{sub}/inbox/*", self.introspection, more
            )

    def test_urls_that_cannot_be_used(self) -> None:
        for url in ("", "as.example", "ftp://as.example/", "https://", "https://as.example/#x",
                    "https://canary:canary@as.example/", "https://as.example/ x",
                    "https://as.example:99999/", "https://\xe9.example/"):  # fmt: skip
            validator = (
                f'kind = "introspection"\nurl = "{url}"\nclient_id = "me"\n'
                f'client_secret_file = "{self.secret_file}"'
            )
            self.assert_problem("validator.url: ", "https://as.example", self.load, validator)


class SecretFileTests(SettingsTestCase):
    def read(self, content: bytes) -> str:
        self.secret_file.write_bytes(content)
        return config.read_secret(self.secret_file)

    def test_one_newline_at_the_end_is_ignored(self) -> None:
        self.assertEqual(self.read(b"x\n"), "x")
        self.assertEqual(self.read(b"x\r\n"), "x")
        self.assertEqual(self.read(b"x"), "x")
        self.assertEqual(self.read(b" x \n\n"), " x \n")

    def test_files_without_a_secret(self) -> None:
        for content in (b"", b"\n", b"\r\n", b"\xff"):
            self.assertRaises(ValueError, self.read, content)

    def test_no_secret_is_in_a_representation(self) -> None:
        for settings in (self.personium(), self.introspection()):
            self.assertNotIn("canary", repr(settings))


class WiringTests(SettingsTestCase):
    """The validators that the service makes; nothing is started, and no request is sent."""

    def build(self, settings: Config) -> Any:
        from twisted.internet import reactor

        service = TopicService(settings, reactor)
        self.addCleanup(service._validators.stop)
        return service._validators

    def test_the_list_of_topics_is_not_used_with_a_unit(self) -> None:
        stack = self.build(self.personium(top='topics = ["/cell1/*"]'))
        self.assertIsInstance(stack.validator, SingleFlight)

    def test_the_list_of_topics_is_used_with_an_oauth_server(self) -> None:
        stack = self.build(self.introspection(top='topics = ["/cell1/*"]'))
        self.assertIsInstance(stack.validator, TopicFilter)
        self.assertIsInstance(self.build(self.introspection()).validator, SingleFlight)

    def test_a_cache_is_made_if_configured(self) -> None:
        self.assertIsInstance(self.build(self.personium("cache = 5")).validator, GrantCache)

    def test_rechecks_are_made_if_configured_and_do_not_use_the_cache(self) -> None:
        self.assertIsNone(self.build(self.personium("cache = 5")).revocation)
        stack = self.build(self.personium("cache = 5\nrecheck = 60\nconcurrency = 32"))
        self.assertEqual((stack.revocation.interval, stack.revocation.at_once), (60, 8))
        self.assertIs(stack.revocation.validator, stack.validator.uncached)

    def test_at_least_one_recheck_at_once(self) -> None:
        stack = self.build(self.introspection("recheck = 1\nconcurrency = 1"))
        self.assertEqual(stack.revocation.at_once, 1)

    def test_local_validation_needs_no_http_agent(self) -> None:
        key_file = self.directory / "key"
        write_key(key_file, make_key())
        stack = self.build(self.load(f'kind = "local"\nkey_file = "{key_file}"'))
        self.assertIsNone(stack._agent)

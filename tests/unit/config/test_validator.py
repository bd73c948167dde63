"""The settings of ``[validator]``, and what is built from them."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

from twisted.trial.unittest import TestCase

from tests.support.certificates import Authority
from tests.support.jwt_issuer import jwk, jwks, private_key
from topicsvc import config
from topicsvc.errors import ConfigError
from topicsvc.service import TopicService
from topicsvc.settings import (
    CheckSettings,
    Config,
    IntrospectionSettings,
    IssuerSettings,
    JwtSettings,
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
        self.assertIn(allowed, problem)
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
            ('cell_urls = "both"', "validator.cell_urls: ", '"host" or "path"'),
            ('ca_file = "nowhere"', "validator.ca_file: nowhere: No such file", "can be read"),
            (f'ca_file = "{self.secret_file}"', "validator.ca_file: ", "configuration.md"),
            ("timeout = 0", "validator.timeout: must be ", "from 0.1 to 300"),
            ("concurrency = 0", "validator.concurrency: must be ", "from 1 to 1000"),
            ("cache = -1", "validator.cache: must be ", "from 0 to 86400"),
            ('url = "https://x:0/"', "validator.url: not a port", "https://unit1.example/"),
            ("recheck = 0.01", "validator.recheck: 0.01", "0, or a number from 1 to 86400"),
            ('recheck = "1"', "validator.recheck: must be ", "from 0 to 86400"),
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
        self.assert_problem("unit_url: ", "https://unit1.example/", config.load, text)


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
            ("rules = 1", "validator.rules: must be a list of tables", "[[validator.rules]]"),
            (rule.format("a b", "/*", "send"), "validator.rules[0].scope: ", "one scope"),
            (rule.format(" a", "/*", "send"), "validator.rules[0].scope: ", "one scope"),
            (rule.format("a", "x", "send"), "validator.rules[0].topics: 'x'", "/cell1/box1/*"),
            (rule.format("a", "/*", "fly"), "validator.rules[0].may: [\"fly\"]", '["receive"]'),
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
            ('claim = "a"\nvalue = 1', "validator.rules[0].value: must be ", "holds"),
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
        self.assertEqual(stack._agents, [])


class JwtSettingsTests(SettingsTestCase):
    def jwt(self, more: str = "", required: str = "", top: str = "") -> Config:
        required = required or 'issuer = "https://as.example/a"\naudience = ["us"]'
        return self.load(f'kind = "jwt"\n[[validator.issuers]]\n{required}\n{more}', top)

    def test_the_required_settings_and_the_defaults(self) -> None:
        validator = self.jwt().validator
        assert isinstance(validator, JwtSettings)
        self.assertEqual(
            validator, JwtSettings((IssuerSettings("https://as.example/a", ("us",)),), ())
        )
        [issuer] = validator.issuers
        self.assertEqual(
            (issuer.audience_claim, issuer.token_types, issuer.leeway, issuer.scope_claims),
            ("aud", ("at+jwt",), 10, ("scope", "scp")),
        )
        self.assertEqual(
            (issuer.subject_claim, issuer.max_age, issuer.stale, issuer.details_type),
            ("sub", 3600, 86400, None),
        )
        self.assertEqual(len(issuer.algorithms), 11)

    def test_every_setting(self) -> None:
        validator = self.jwt(
            f"""
            jwks_url = "https://keys.example/jwks"
            audience_claim = "client_id"
            algorithms = ["ES256", "EdDSA"]
            token_types = ["JWT", ""]
            leeway = 0
            scope_claims = ["permissions"]
            subject_claim = "oid"
            max_age = 10
            stale = 10
            details_type = "https://push.example/topics"
            ca_file = "{Authority(self.directory).ca_file}"
            [[validator.rules]]
            everybody = true
            topics = ["/{{sub}}/*"]
            may = ["send"]
            """
        ).validator
        assert isinstance(validator, JwtSettings)
        [issuer] = validator.issuers
        self.assertIsNotNone(issuer.authorities)
        self.assertEqual(
            replace(issuer, authorities=None),
            IssuerSettings(
                "https://as.example/a",
                ("us",),
                jwks_url="https://keys.example/jwks",
                audience_claim="client_id",
                algorithms=("ES256", "EdDSA"),
                token_types=("JWT", ""),
                leeway=0,
                scope_claims=("permissions",),
                subject_claim="oid",
                max_age=10,
                stale=10,
                details_type="https://push.example/topics",
            ),
        )
        self.assertEqual(len(validator.rules), 1)

    def test_keys_in_a_file(self) -> None:
        file = self.directory / "jwks"
        body = jwks(jwk(private_key("ES256")))
        file.write_bytes(body)
        # With a file, the issuer need not be a URL.
        required = f'issuer = "us"\naudience = ["us"]\njwks_file = "{file}"'
        validator = self.jwt(required=required).validator
        assert isinstance(validator, JwtSettings)
        self.assertEqual(validator.issuers[0].jwks, body)
        for content, reason in (
            (b"{}", 'without a list "keys"'),
            (jwks(), "no key in it can be used"),
            (jwks({"kty": "oct", "k": "canary"}), 'its type (kty) is "oct"'),
            (b" " * 300000, "more than 262144 bytes"),
        ):
            file.write_bytes(content)
            [problem] = self.assertRaises(ConfigError, self.jwt, "", required).problems
            self.assertIn(f"validator.issuers[0].jwks_file: {file}: ", problem)
            self.assertIn(reason, problem)
            self.assertNotIn("canary", problem)

    def test_wrong_settings(self) -> None:
        for more, key, allowed in (
            ('jwks_url = "http://as.example/jwks"', "jwks_url", "https URL"),
            ('jwks_url = "https://a:canary@as.example/"', "jwks_url", "https URL"),
            ('jwks_file = "nowhere"', "jwks_file", "can be read"),
            ('algorithms = ["HS256"]', "algorithms", "RS256, RS384"),
            ('algorithms = ["RS256", "none"]', "algorithms", "RS256, RS384"),
            ('algorithms = ["rs256"]', "algorithms", "RS256, RS384"),
            ("algorithms = []", "algorithms", "RS256"),
            ("token_types = []", "token_types", '["at+jwt"]'),
            ('token_types = "JWT"', "token_types", 'must be a list, ["JWT"]'),
            ("leeway = -1", "leeway", "0 to 300"),
            ("leeway = 301", "leeway", "0 to 300"),
            ("max_age = 9", "max_age", "10 to 2592000"),
            ("stale = 9", "stale", "10 to 2592000"),
            ("scope_claims = [1]", "scope_claims", '["...", "..."]'),
            ('scope_claims = ["scope", ""]', "scope_claims", "it has an empty text"),
            ('subject_claim = ""', "subject_claim", "name of a claim"),
            ("audience_claim = 1", "audience_claim", "name of a claim"),
            ("details_type = 1", "details_type", "authorization_details"),
            ("x = 1", "x", ""),
        ):
            with self.subTest(more):
                problems = self.assertRaises(ConfigError, self.jwt, more).problems
                self.assertEqual(len(problems), 1, problems)
                self.assertTrue(problems[0].startswith(f"validator.issuers[0].{key}: "), problems)
                self.assertIn(allowed, problems[0])
                self.assertNotIn("canary", problems[0])

    def test_an_empty_audience_is_a_problem(self) -> None:
        """Tokens with an empty ``aud`` would be valid."""
        self.assert_problem(
            "validator.issuers[0].audience: it has an empty text",
            "https://push.example/",
            lambda: self.jwt("", 'issuer = "https://as.example"\naudience = ["us", ""]'),
        )

    def test_one_place_of_the_keys(self) -> None:
        file = self.directory / "jwks"
        file.write_bytes(jwks(jwk(private_key("ES256"))))
        more = f'jwks_url = "https://as.example/jwks"\njwks_file = "{file}"'
        self.assert_problem(
            "validator.issuers[0].jwks_file: jwks_url is set too", "one of the two", self.jwt, more
        )

    def test_issuers_whose_keys_cannot_be_found(self) -> None:
        for issuer in ("us", "http://as.example/", "https://as.example/?x", "https://as.example/#x",
                       "https://a:b@as.example/", "ftp://as.example/"):  # fmt: skip
            required = f'issuer = "{issuer}"\naudience = ["us"]'
            self.assert_problem(
                "validator.issuers[0].issuer: ", "jwks_url or jwks_file", self.jwt, "", required
            )
        for issuer in ("http://localhost:8080/a", "http://127.0.0.1/", "http://[::1]:8080/"):
            self.jwt(required=f'issuer = "{issuer}"\naudience = ["us"]')

    def test_missing_settings_are_named(self) -> None:
        self.assert_problem(
            "validator.issuers: missing", "[[validator.issuers]]", self.load, 'kind = "jwt"'
        )
        problems = self.assertRaises(ConfigError, self.jwt, "", "leeway = 1").problems
        self.assertEqual(
            [problem.partition(":")[0] for problem in problems],
            ["validator.issuers[0].issuer", "validator.issuers[0].audience"],
        )

    def test_each_issuer_once(self) -> None:
        twice = '[[validator.issuers]]\nissuer = "https://as.example/a"\naudience = ["x"]'
        self.assert_problem("validator.issuers: 'https://as.example/a'", "once", self.jwt, twice)

    def test_a_missing_library_is_named_with_the_command_that_installs_it(self) -> None:
        with mock.patch.dict(sys.modules, {"topicsvc.config.issuers": None}):
            [problem] = self.assertRaises(ConfigError, self.jwt).problems
        self.assertIn("pip install 'topicsvc[jwt]'", problem)

"""The validator of JWTs that the service makes, its readiness, and a reload."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from twisted.internet.defer import succeed
from twisted.internet.testing import MemoryReactorClock
from twisted.trial.unittest import TestCase

from tests.support.jwt_issuer import AUDIENCE, ISSUER, FakeIssuer, jwk, jwks
from tests.support.jwt_issuer import private_key as key
from topicsvc import config
from topicsvc.service import TopicService
from topicsvc.settings import Config
from topicsvc.topics import TopicAddress
from topicsvc.validators.factory import ValidatorStack
from topicsvc.validators.jwt.key_source import KeySource
from topicsvc.validators.jwt.keys import read_keys
from topicsvc.validators.jwt.validator import JwtValidator
from topicsvc.validators.stats import TokenCheckStats
from topicsvc.validators.wrappers.measured import MeasuredValidator
from topicsvc.validators.wrappers.topic_filter import TopicFilter

NOW = 1544056220.0
TOPIC = TopicAddress("cell1", "box1", ("col",), "name")
KEYS = read_keys(jwks(jwk(key("RSA2048"))))


class WiringTestCase(TestCase):
    def setUp(self) -> None:
        self.file = Path(self.mktemp())
        self.file.write_bytes(jwks(jwk(key("RSA2048"))))
        self.reactor = MemoryReactorClock()
        self.stats = TokenCheckStats()

    def load(self, issuers: str = "", more: str = "", top: str = "") -> Config:
        return config.load(f"""
            listen = ["tcp:0"]
            unit_url = "https://unit1.example/"
            {top}
            [validator]
            kind = "jwt"
            {more}
            [[validator.issuers]]
            issuer = "{ISSUER}"
            audience = ["{AUDIENCE}"]
            {issuers}
            [[validator.rules]]
            scope = "news"
            topics = ["/cell1/*"]
            may = ["receive"]
        """)

    def from_file(self, more: str = "", top: str = "") -> Config:
        return self.load(f'jwks_file = "{self.file}"', more, top)

    def build(self, settings: Config) -> ValidatorStack:
        return ValidatorStack(settings, self.reactor, lambda: NOW, self.stats)


class StackTests(WiringTestCase):
    def test_only_statistics_are_around_the_validator(self) -> None:
        """It sends no requests for a token, and remembers tokens itself."""
        stack = self.build(self.from_file("cache = 5\nrecheck = 60"))
        self.assertIsInstance(stack.validator, MeasuredValidator)
        self.assertIsInstance(stack.base_validator, JwtValidator)
        assert stack.revocation is not None
        self.assertIs(stack.revocation.validator, stack.validator)

    def test_the_list_of_topics_is_used(self) -> None:
        stack = self.build(self.from_file(top='topics = ["/cell1/*"]'))
        self.assertIsInstance(stack.validator, TopicFilter)

    def test_keys_in_a_file_validate_tokens_without_a_request(self) -> None:
        stack = self.build(self.from_file())
        stack.start()
        issuer = FakeIssuer(NOW)
        grant = self.successResultOf(stack.validator.validate(issuer.token(), TOPIC))
        self.assertTrue(grant.may_receive)
        made_up = issuer.token(header={"kid": "made up"})
        self.failureResultOf(stack.validator.validate(made_up, TOPIC))
        self.assertEqual(self.reactor.getDelayedCalls(), [])
        self.assertEqual(self.stats.outcomes["granted"], 1)
        self.assertEqual((stack.has_keys, stack.keys_age), (True, 0))

    def test_two_issuers_have_keys_of_their_own(self) -> None:
        second = (
            f'jwks_file = "{self.file}"\n[[validator.issuers]]\nissuer = "https://b.example"\n'
            'audience = ["x"]'
        )
        stack = self.build(self.load(second))
        self.assertEqual(set(stack.key_sources), {ISSUER, "https://b.example"})
        self.assertFalse(stack.has_keys)
        self.reactor.advance(30)
        self.assertEqual(stack.keys_age, 30)


class ReadinessTests(WiringTestCase):
    def start(self, settings: Config) -> Any:
        from twisted.internet import reactor

        service = TopicService(settings, reactor)
        self.addCleanup(service._validators.stop)
        return service

    def test_the_part_keys_is_false_until_keys_were_loaded_once(self) -> None:
        service = self.start(self.load())
        self.assertIs(service._health_parts()["keys"], False)
        source = service._validators.key_sources[ISSUER]
        source._replace(KEYS)
        self.assertIs(service._health_parts()["keys"], True)
        source._drop_keys()
        self.assertIs(service._health_parts()["keys"], True)

    def test_keys_of_a_file_are_loaded(self) -> None:
        self.assertIs(self.start(self.from_file())._health_parts()["keys"], True)

    def test_a_reload_replaces_the_validator_and_the_metadata(self) -> None:
        service = self.start(self.from_file())
        self.assertTrue(service._metadata.is_known)
        old = service._validators
        service.read_settings = lambda: self.from_file("recheck = 60")
        service.reload()
        self.addCleanup(service._validators.stop)
        self.assertIsNot(service._validators, old)
        self.assertIs(service._health_parts()["keys"], True)
        self.assertTrue(service._metadata.is_known)

    def test_a_reload_with_another_issuer_keeps_it_true(self) -> None:
        service = self.start(self.from_file())
        self.assertIs(service._health_parts()["keys"], True)
        service._validators = self.build(self.load())
        self.assertIs(service._health_parts()["keys"], True)


class ReloadTests(WiringTestCase):
    def started(self, settings: Config, previous: ValidatorStack | None = None) -> Any:
        stack = self.build(settings)
        fetches: list[float] = []

        def fetch() -> Any:
            fetches.append(self.reactor.seconds())
            return succeed(KEYS)

        for source in stack.key_sources.values():
            if isinstance(source, KeySource):
                self.patch(source, "_fetch_keys", fetch)
        stack.start(previous)
        self.reactor.advance(0)
        return stack, fetches

    def test_keys_of_the_same_issuer_are_used_after_a_reload(self) -> None:
        old, fetches = self.started(self.load())
        self.assertEqual(len(fetches), 1)
        new, fetches = self.started(self.load("leeway = 5"), old)
        self.assertEqual(fetches, [])
        self.assertIs(new.key_sources[ISSUER].keys, old.key_sources[ISSUER].keys)

    def test_keys_from_another_place_are_fetched(self) -> None:
        old, _ = self.started(self.load())
        _, fetches = self.started(self.load('jwks_url = "https://as.example/other"'), old)
        self.assertEqual(len(fetches), 1)

    def test_keys_of_a_file_are_those_of_the_file(self) -> None:
        old, _ = self.started(self.load())
        self.file.write_bytes(jwks(jwk(key("ES256"), "new")))
        new, _ = self.started(self.from_file(), old)
        [only] = new.key_sources[ISSUER].keys.keys
        self.assertEqual(only.key_id, "new")
        fetched, fetches = self.started(self.load(), new)
        self.assertEqual(len(fetches), 1)
        self.assertIs(fetched.key_sources[ISSUER].keys.keys[0].key_id, KEYS.keys[0].key_id)

    def test_an_old_stack_fetches_no_more(self) -> None:
        old, fetches = self.started(self.load("max_age = 10"))
        self.started(self.load("max_age = 10"), old)
        self.successResultOf(old.stop())
        self.reactor.advance(100)
        self.assertEqual(len(fetches), 1)

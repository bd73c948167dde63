"""The doctor's checks of issuers whose keys are in a file."""

from __future__ import annotations

from twisted.internet.defer import ensureDeferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from tests.support.jwt_issuer import AUDIENCE, ISSUER, jwk, jwks, private_key
from topicsvc.cli.doctor.jwt_checks import JwtChecks
from topicsvc.cli.doctor.report import CheckResult
from topicsvc.settings import Config, IssuerSettings, JwtSettings
from topicsvc.topics import Unit
from topicsvc.validators.factory import ValidatorStack
from topicsvc.validators.stats import TokenCheckStats


class IssuerTests(SynchronousTestCase):
    def check(self, *algorithms: str) -> CheckResult:
        """Check an issuer with one key for ES256, of which these algorithms are allowed."""
        published = jwks(jwk(private_key("ES256")))
        issuer = IssuerSettings(ISSUER, (AUDIENCE,), jwks=published, algorithms=algorithms)
        settings = JwtSettings((issuer,), ())
        config = Config(unit=Unit("https://push.example/"), validator=settings, listen=())
        results: list[CheckResult] = []
        clock = Clock()
        stack = ValidatorStack(config, clock, clock.seconds, TokenCheckStats())
        checks = JwtChecks(config, clock, results.append, clock.seconds)
        self.successResultOf(
            ensureDeferred(checks.issuers(stack, settings, lambda *_: self.fail("no request")))
        )
        [result] = results
        return result

    def test_a_key_for_an_allowed_algorithm(self) -> None:
        self.assertEqual(
            self.check("RS256", "ES256"),
            CheckResult("ok", f"issuer {ISSUER}", "1 keys at jwks_file, for ES256"),
        )

    def test_keys_for_other_algorithms_than_the_allowed_ones(self) -> None:
        result = self.check("RS256", "PS256")
        self.assertEqual(result.level, "FAIL")
        self.assertIn("for ES256: no token can be validated", result.text)
        self.assertIn("algorithms in [[validator.issuers]] allows only RS256, PS256", result.text)

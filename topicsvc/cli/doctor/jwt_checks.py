"""Checks of the issuers of JWTs, and of one token."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.defer import Deferred

from topicsvc.cli.doctor.report import Reporter
from topicsvc.errors import ValidatorUnavailable
from topicsvc.settings import IssuerSettings, JwtSettings
from topicsvc.topics import TopicAddress
from topicsvc.validators.factory import ValidatorStack
from topicsvc.validators.jwt.discovery import Found
from topicsvc.validators.jwt.keys import KeySet, algorithms_of, read_keys
from topicsvc.validators.jwt.walk import walk

__all__ = ["JwtChecks"]


class JwtChecks(Reporter):
    """Checks issuers and tokens. For the arguments see `Reporter`."""

    async def issuers(
        self,
        stack: ValidatorStack,
        settings: JwtSettings,
        compare_clocks: Callable[[str, str], None],
    ) -> dict[str, KeySet]:
        """Fetch the keys of each issuer; return them by its name.

        Args:
            stack: fetches them.
            settings: the issuers.
            compare_clocks: called with the URL of each key set, and the ``Date`` of its response.
        """
        loaded = {}
        for issuer in settings.issuers:
            subject = f"issuer {issuer.issuer}"
            if issuer.jwks is not None:
                keys = loaded[issuer.issuer] = read_keys(issuer.jwks)
                self._report_keys(subject, issuer, keys, "jwks_file")
                continue
            fetch: Deferred[Found] = stack.discoveries[issuer.issuer].fetch()
            fetch.addTimeout(self._settings.checks.timeout, self._reactor, _raise_timeout)
            try:
                found = await fetch
            except ValidatorUnavailable as error:
                self.fail(subject, f"{error}; check [[validator.issuers]]")
                continue
            loaded[issuer.issuer] = found.keys
            self._report_keys(subject, issuer, found.keys, found.url)
            compare_clocks(found.url, found.date)
        return loaded

    def _report_keys(self, subject: str, issuer: IssuerSettings, keys: KeySet, place: str) -> None:
        for line in keys.skipped:
            self.warn(subject, f"not used: {line}")
        text = f"{len(keys.keys)} keys at {place}, for {algorithms_of(keys.keys)}"
        if not keys.keys:
            self.fail(subject, f"{text}: no token can be validated")
        elif not any(key.algorithms.intersection(issuer.algorithms) for key in keys.keys):
            allowed = ", ".join(issuer.algorithms)
            self.fail(
                subject,
                f"{text}: no token can be validated, as algorithms in [[validator.issuers]] "
                f"allows only {allowed}",
            )
        else:
            self.ok(subject, text)

    def token(
        self,
        token: str,
        settings: JwtSettings,
        keys: dict[str, KeySet],
        topic: TopicAddress | None,
    ) -> None:
        """Apply each rule to the token, and report whether it meets the rule."""
        for step in walk(token, settings, keys, self._now(), topic):
            (self.ok if step.is_met else self.fail)(f"token, {step.name}", step.text)


def _raise_timeout(_: object, seconds: float) -> Found:
    raise ValidatorUnavailable(f"no result within {seconds:g} s")

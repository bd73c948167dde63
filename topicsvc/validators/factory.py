"""Composition: who judges tokens, with all that stands around."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred, succeed

from topicsvc.interfaces import Revocation, TokenValidator
from topicsvc.settings import (
    Config,
    IntrospectionSettings,
    PersoniumSettings,
)
from topicsvc.validators.http_agent import BoundedAgent
from topicsvc.validators.http_client import HttpClient
from topicsvc.validators.introspection import IntrospectionValidator
from topicsvc.validators.local import LocalValidator
from topicsvc.validators.personium import PersoniumValidator
from topicsvc.validators.stats import TokenCheckStats
from topicsvc.validators.wrappers.cache import GrantCache
from topicsvc.validators.wrappers.concurrency import ConcurrencyLimit
from topicsvc.validators.wrappers.measured import MeasuredValidator
from topicsvc.validators.wrappers.outage_log import OutageLog
from topicsvc.validators.wrappers.single_flight import SingleFlight
from topicsvc.validators.wrappers.timeout import TimeoutValidator
from topicsvc.validators.wrappers.topic_filter import TopicFilter

__all__ = ["ValidatorStack"]


class ValidatorStack:
    """Who judges tokens, with all that stands around.

    From the outside in: which topics exist, what was granted a moment ago, what is under
    way, the log of outages, how many at once, how long at most; then the validator itself.

    Attributes:
        validator: for tokens that are shown.
        revocation: for those of live sessions; None: they are not looked at again.
        innermost: the validator itself.
        http: what carries questions to it; None: it asks nobody.
    """

    _PERSONIUM_QUESTIONS = 3
    _RECHECKS_SHARE = 4

    def __init__(
        self, settings: Config, reactor: Any, now: Callable[[], float], stats: TokenCheckStats
    ) -> None:
        self._settings = settings
        self._reactor = reactor
        self._now = now
        self._agent: BoundedAgent | None = None
        self.http: HttpClient | None = None
        self.innermost: TokenValidator
        self._stats = stats
        checks = settings.checks
        fresh = self._fresh()
        validator = fresh
        if checks.cache:
            cached = GrantCache(fresh, reactor, now, checks.cache, stats)
            validator, fresh = cached, cached.uncached
        if settings.topics and not isinstance(settings.validator, PersoniumSettings):
            validator = TopicFilter(validator, settings.topics)
        self.validator = validator
        self.revocation: Revocation | None = None
        if checks.recheck:
            # Clients that wait for an answer come first.
            at_once = max(1, checks.concurrency // self._RECHECKS_SHARE)
            self.revocation = Revocation(fresh, checks.recheck, at_once)

    def stop(self) -> Deferred[None]:
        """Close the connections to the validators."""
        return succeed(None) if self._agent is None else self._agent.close()

    def _fresh(self) -> TokenValidator:
        settings, checks, clock = self._settings.validator, self._settings.checks, self._reactor
        match settings:
            case PersoniumSettings():
                http = self._client(settings.authorities, self._PERSONIUM_QUESTIONS)
                self.innermost = PersoniumValidator(
                    http, settings.unit, settings.username, settings.password, self._now
                )
            case IntrospectionSettings():
                self.innermost = IntrospectionValidator(
                    self._client(settings.authorities, 1),
                    settings.url,
                    settings.client_id,
                    settings.client_secret,
                    settings.rules,
                    self._now,
                    settings.issuer,
                    settings.audience,
                )
            case _:
                self.innermost = LocalValidator(settings.key, self._now)
                return MeasuredValidator(self.innermost, clock, self._stats)
        limited = ConcurrencyLimit(
            TimeoutValidator(self.innermost, clock, checks.timeout), clock, checks.concurrency
        )
        return SingleFlight(MeasuredValidator(OutageLog(limited, clock), clock, self._stats))

    def _client(self, authorities: Any, questions: int) -> HttpClient:
        connections = questions * self._settings.checks.concurrency
        self._agent = BoundedAgent(self._reactor, authorities, connections)
        self.http = HttpClient(self._agent)
        return self.http

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
from topicsvc.validators.http_agent import JudgeAgent
from topicsvc.validators.http_client import Asker
from topicsvc.validators.introspection import IntrospectionValidator
from topicsvc.validators.local import LocalValidator
from topicsvc.validators.personium import PersoniumValidator
from topicsvc.validators.stats import CheckTally
from topicsvc.validators.wrappers.cache import Cached
from topicsvc.validators.wrappers.concurrency import Limited
from topicsvc.validators.wrappers.measured import Counted
from topicsvc.validators.wrappers.outage_log import Outages
from topicsvc.validators.wrappers.single_flight import Shared
from topicsvc.validators.wrappers.timeout import InTime
from topicsvc.validators.wrappers.topic_filter import ExistingTopics

__all__ = ["Judge"]


class Judge:
    """Who judges tokens, with all that stands around.

    From the outside in: which topics exist, what was granted a moment ago, what is under
    way, the log of outages, how many at once, how long at most; then the judge itself.

    Attributes:
        validator: for tokens that are shown.
        revocation: for those of live sessions; None: they are not looked at again.
        judge: the judge itself.
        asker: what carries questions to it; None: it asks nobody.
    """

    _PERSONIUM_QUESTIONS = 3
    _RECHECKS_SHARE = 4

    def __init__(
        self, settings: Config, reactor: Any, now: Callable[[], float], tally: CheckTally
    ) -> None:
        self._settings = settings
        self._reactor = reactor
        self._now = now
        self._agent: JudgeAgent | None = None
        self.asker: Asker | None = None
        self.judge: TokenValidator
        self._tally = tally
        checks = settings.checks
        fresh = self._fresh()
        validator = fresh
        if checks.cache:
            cached = Cached(fresh, reactor, now, checks.cache, tally)
            validator, fresh = cached, cached.fresh
        if settings.topics and not isinstance(settings.validator, PersoniumSettings):
            validator = ExistingTopics(validator, settings.topics)
        self.validator = validator
        self.revocation: Revocation | None = None
        if checks.recheck:
            # Clients that wait for an answer come first.
            at_once = max(1, checks.concurrency // self._RECHECKS_SHARE)
            self.revocation = Revocation(fresh, checks.recheck, at_once)

    def stop(self) -> Deferred[None]:
        """Close the connections to the judge."""
        return succeed(None) if self._agent is None else self._agent.close()

    def _fresh(self) -> TokenValidator:
        settings, checks, clock = self._settings.validator, self._settings.checks, self._reactor
        match settings:
            case PersoniumSettings():
                asker = self._asker(settings.authorities, self._PERSONIUM_QUESTIONS)
                self.judge = PersoniumValidator(
                    asker, settings.unit, settings.username, settings.password, self._now
                )
            case IntrospectionSettings():
                self.judge = IntrospectionValidator(
                    self._asker(settings.authorities, 1),
                    settings.url,
                    settings.client_id,
                    settings.client_secret,
                    settings.rules,
                    self._now,
                    settings.issuer,
                    settings.audience,
                )
            case _:
                self.judge = LocalValidator(settings.key, self._now)
                return Counted(self.judge, clock, self._tally)
        limited = Limited(InTime(self.judge, clock, checks.timeout), clock, checks.concurrency)
        return Shared(Counted(Outages(limited, clock), clock, self._tally))

    def _asker(self, authorities: Any, questions: int) -> Asker:
        connections = questions * self._settings.checks.concurrency
        self._agent = JudgeAgent(self._reactor, authorities, connections)
        self.asker = Asker(self._agent)
        return self.asker

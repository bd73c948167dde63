"""Makes a validator and its wrappers from the settings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred, succeed

from topicsvc.interfaces import Revocation, TokenValidator
from topicsvc.settings import Config, IntrospectionSettings, PersoniumSettings
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
    """A validator and its wrappers, made from the settings.

    From the outside in: topic filter, cache, single flight, statistics, outage log, limit of
    concurrent checks, timeout, validator. The outer two are optional. A local validator has
    only them and the statistics.

    Args:
        settings: all settings.
        reactor: makes connections and measures time.
        now: the time of day, in seconds since the epoch, which decides about expiry.
        stats: counts the checks; it outlives a reload, which makes a new stack.

    Attributes:
        validator: for the tokens that clients present.
        revocation: for the tokens of sessions; None: they are not checked again.
        base_validator: the validator without its wrappers.
        http_client: sends its requests; None: it sends none.
    """

    _PERSONIUM_REQUESTS = 3
    _RECHECK_SHARE = 4

    def __init__(
        self, settings: Config, reactor: Any, now: Callable[[], float], stats: TokenCheckStats
    ) -> None:
        self._settings = settings
        self._reactor = reactor
        self._now = now
        self._agent: BoundedAgent | None = None
        self.http_client: HttpClient | None = None
        self.base_validator: TokenValidator
        self._stats = stats
        checks = settings.checks
        uncached = self._uncached()
        validator = uncached
        if checks.cache:
            cached = GrantCache(uncached, reactor, now, checks.cache, stats)
            validator, uncached = cached, cached.uncached
        if settings.topics and not isinstance(settings.validator, PersoniumSettings):
            validator = TopicFilter(validator, settings.topics)
        self.validator = validator
        self.revocation: Revocation | None = None
        if checks.recheck:
            # Clients that wait for the result of a check come first.
            at_once = max(1, checks.concurrency // self._RECHECK_SHARE)
            self.revocation = Revocation(uncached, checks.recheck, at_once)

    def stop(self) -> Deferred[None]:
        """Close the connections to the validator's server."""
        return succeed(None) if self._agent is None else self._agent.close()

    def _uncached(self) -> TokenValidator:
        """Make the validator, with the wrappers that every check passes."""
        settings, checks, clock = self._settings.validator, self._settings.checks, self._reactor
        match settings:
            case PersoniumSettings():
                self.base_validator = PersoniumValidator(
                    self._make_client(settings.authorities, self._PERSONIUM_REQUESTS),
                    settings.unit,
                    settings.username,
                    settings.password,
                    self._now,
                )
            case IntrospectionSettings():
                self.base_validator = IntrospectionValidator(
                    self._make_client(settings.authorities, 1),
                    settings.url,
                    settings.client_id,
                    settings.client_secret,
                    settings.rules,
                    self._now,
                    settings.issuer,
                    settings.audience,
                )
            case _:
                self.base_validator = LocalValidator(settings.key, self._now)
                return MeasuredValidator(self.base_validator, clock, self._stats)
        limited = ConcurrencyLimit(
            TimeoutValidator(self.base_validator, clock, checks.timeout), clock, checks.concurrency
        )
        return SingleFlight(MeasuredValidator(OutageLog(limited, clock), clock, self._stats))

    def _make_client(self, authorities: Any, requests_per_check: int) -> HttpClient:
        connections = requests_per_check * self._settings.checks.concurrency
        self._agent = BoundedAgent(self._reactor, authorities, connections)
        self.http_client = HttpClient(self._agent)
        return self.http_client

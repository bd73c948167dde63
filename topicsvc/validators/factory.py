"""Makes a validator and its wrappers from the settings."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred, DeferredList

from topicsvc.interfaces import Revocation, TokenValidator
from topicsvc.scheduling.work_budget import WorkBudget
from topicsvc.settings import Config, IntrospectionSettings, JwtSettings, PersoniumSettings
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
from topicsvc.validators.wrappers.rights import RightsValidator
from topicsvc.validators.wrappers.single_flight import SingleFlight
from topicsvc.validators.wrappers.timeout import TimeoutValidator
from topicsvc.validators.wrappers.topic_filter import TopicFilter

if TYPE_CHECKING:  # these need the extra "jwt"
    from topicsvc.validators.jwt.discovery import Discovery
    from topicsvc.validators.jwt.key_source import FixedKeys, KeySource

__all__ = ["ValidatorStack"]


class ValidatorStack:
    """A validator and its wrappers, made from the settings.

    From the outside in: topic filter, cache, single flight, statistics, outage log, limit of
    concurrent checks, timeout, validator. The outer two are optional. A local validator has
    only them and the statistics. A validator of JWTs has no cache but its own.

    A unit has different rules for receiving and for sending, so there are two of these stacks,
    with one limit of concurrent checks. For the others, one validator serves both.

    Args:
        settings: all settings.
        reactor: makes connections and measures time.
        now: the time of day, in seconds since the epoch, which decides about expiry.
        stats: counts the checks; it outlives a reload, which makes a new stack.

    Attributes:
        discoveries: fetch these keys.
        key_places: where the keys of each issuer are fetched: a URL, or ``discovery``.
        key_sources: the keys of the issuers of JWTs, by issuer; empty: no such validator.
        validator: for the tokens that clients present to receive.
        send_validator: for the tokens that clients send with.
        rights_validator: finds out both rights.
        revocation: for the tokens of sessions; None: they are not checked again.
        base_validator: the validator without its wrappers.
        http_client: sends its requests; None: it sends none.
    """

    _PERSONIUM_REQUESTS = 3
    _RECHECK_SHARE = 4
    _READ_PER_ITERATION = 0.004

    def __init__(
        self, settings: Config, reactor: Any, now: Callable[[], float], stats: TokenCheckStats
    ) -> None:
        self._settings = settings
        self._reactor = reactor
        self._now = now
        self._agents: list[BoundedAgent] = []
        self.key_places: dict[str, str] = {}
        self.discoveries: dict[str, Discovery] = {}
        self.http_client: HttpClient | None = None
        self.key_sources: dict[str, KeySource | FixedKeys] = {}
        self.base_validator: TokenValidator
        self._stats = stats
        checks = settings.checks
        uncached, sending = self._uncached()
        validator = uncached
        if checks.cache and not isinstance(settings.validator, JwtSettings):
            cached = GrantCache(uncached, reactor, now, checks.cache, stats)
            validator, uncached = cached, cached.uncached
            if sending is not None:
                sending = GrantCache(sending, reactor, now, checks.cache, stats)
        if settings.topics and not isinstance(settings.validator, PersoniumSettings):
            validator = TopicFilter(validator, settings.topics)
        self.validator = self.send_validator = self.rights_validator = validator
        if sending is not None:
            self.send_validator = sending
            self.rights_validator = RightsValidator(sending, validator)
        self.revocation: Revocation | None = None
        if checks.recheck:
            # Clients that wait for the result of a check come first.
            at_once = max(1, checks.concurrency // self._RECHECK_SHARE)
            self.revocation = Revocation(uncached, checks.recheck, at_once)

    def start(self, previous: ValidatorStack | None = None) -> None:
        """Fetch the keys of JWTs, now and regularly.

        Args:
            previous: its keys are used, where the issuer is the same; None: there are none.
        """
        for issuer, source in self.key_sources.items():
            source.start(None if previous is None else previous._source_like(self, issuer))

    def _source_like(self, other: ValidatorStack, issuer: str) -> Any:
        """Return the keys of `issuer`, if `other` fetches them from the same place."""
        place = self.key_places.get(issuer)
        if place is None or place != other.key_places.get(issuer):
            return None
        return self.key_sources[issuer]

    @property
    def has_keys(self) -> bool:
        """Whether the keys of each issuer of JWTs have been loaded once."""
        return all(source.was_loaded for source in self.key_sources.values())

    @property
    def keys_age(self) -> float:
        """Seconds since the keys of JWTs were fetched; of several issuers the longest time."""
        return max((source.age for source in self.key_sources.values()), default=0)

    def stop(self) -> Deferred[None]:
        """Fetch no more keys, and close the connections to the validator's servers."""
        for source in self.key_sources.values():
            source.stop()
        closing = DeferredList([agent.close() for agent in self._agents])
        return closing.addCallback(lambda _: None)

    def _uncached(self) -> tuple[TokenValidator, TokenValidator | None]:
        """Make the validator, with the wrappers that every check passes.

        Returns:
            The validator, and the one for sending; None: the first serves both.
        """
        settings, checks, clock = self._settings.validator, self._settings.checks, self._reactor
        for_sending: TokenValidator | None = None
        match settings:
            case PersoniumSettings():
                personium = PersoniumValidator(
                    self._make_client(settings.authorities, self._PERSONIUM_REQUESTS),
                    settings.unit,
                    settings.username,
                    settings.password,
                    self._now,
                )
                self.base_validator, for_sending = personium, personium.for_sending
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
            case JwtSettings():
                self.base_validator = self._jwt(settings)
                return MeasuredValidator(self.base_validator, clock, self._stats), None
            case _:
                self.base_validator = LocalValidator(settings.key, self._now)
                return MeasuredValidator(self.base_validator, clock, self._stats), None
        limit = ConcurrencyLimit(
            TimeoutValidator(self.base_validator, clock, checks.timeout), clock, checks.concurrency
        )
        log = OutageLog(limit, clock)
        if for_sending is None:
            return self._shared(log), None
        limited = limit.beside(TimeoutValidator(for_sending, clock, checks.timeout))
        return self._shared(log), self._shared(OutageLog(limited, clock, log))

    def _shared(self, validator: TokenValidator) -> TokenValidator:
        return SingleFlight(MeasuredValidator(validator, self._reactor, self._stats))

    def _make_client(self, authorities: Any, requests_per_check: int) -> HttpClient:
        connections = requests_per_check * self._settings.checks.concurrency
        budget = WorkBudget(self._reactor, self._READ_PER_ITERATION)
        self.http_client = HttpClient(self._make_agent(authorities, connections), budget)
        return self.http_client

    def _make_agent(self, authorities: Any, connections: int) -> BoundedAgent:
        agent = BoundedAgent(self._reactor, authorities, connections)
        self._agents.append(agent)
        return agent

    def _jwt(self, settings: JwtSettings) -> TokenValidator:
        from topicsvc.validators.jwt.discovery import Discovery
        from topicsvc.validators.jwt.key_source import FixedKeys, KeySource
        from topicsvc.validators.jwt.keys import read_keys
        from topicsvc.validators.jwt.validator import JwtValidator

        for issuer in settings.issuers:
            if issuer.jwks is not None:
                self.key_sources[issuer.issuer] = FixedKeys(read_keys(issuer.jwks))
                continue
            self.key_places[issuer.issuer] = issuer.jwks_url or "discovery"
            client = HttpClient(self._make_agent(issuer.authorities, 1))
            discovery = self.discoveries[issuer.issuer] = Discovery(client, issuer)
            self.key_sources[issuer.issuer] = KeySource(
                issuer.issuer,
                discovery.fetch_keys,
                self._reactor,
                issuer.max_age,
                issuer.stale,
                self._settings.checks.timeout,
                self._stats.key_fetches,
            )
        return JwtValidator(settings, self.key_sources, self._now)

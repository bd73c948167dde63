"""The checks of ``topicsvc doctor``, made with the parts that the service itself uses."""

from __future__ import annotations

import resource
import secrets
from collections.abc import Awaitable, Callable
from email.utils import parsedate_to_datetime
from typing import NoReturn

from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater

from topicsvc.admission.limits import RESERVED_FILES
from topicsvc.brokers.factory import broker_address, make_broker
from topicsvc.cli.doctor.endpoints import EndpointChecks
from topicsvc.cli.doctor.report import Reporter
from topicsvc.cli.doctor.round_trip import TIMEOUT, RoundTrip
from topicsvc.config.shares import divide
from topicsvc.errors import TokenInactive, ValidatorUnavailable
from topicsvc.explain import NO_ADDRESS, explain
from topicsvc.listening.endpoint_string import EndpointString
from topicsvc.options import endpoint_conflicts
from topicsvc.process.processors import usable_processors
from topicsvc.settings import (
    IntrospectionSettings,
    JwtSettings,
    LocalSettings,
    MemorySettings,
    PersoniumSettings,
)
from topicsvc.topics import TopicAddress
from topicsvc.validators.factory import ValidatorStack
from topicsvc.validators.personium import PersoniumValidator
from topicsvc.validators.stats import TokenCheckStats

__all__ = ["Checks"]

BROKER_RETRY_TIME = 1.0
"""Seconds after a broker's first error in which it may still connect."""

CLOCK_WARNING, CLOCK_ERROR = 5, 60
"""Seconds by which two clocks may differ before the check warns, and before it fails."""

MIN_SHARE = 10
"""Connections of one worker: below this, one is often full while others are not."""

MIN_FILES = 4096
"""Open files below which the check warns."""


class Checks(Reporter):
    """Runs all checks, one after another. A failed check does not stop the others.

    For the arguments see `Reporter`.
    """

    async def all(self, token: str | None, topic: TopicAddress | None) -> None:
        """Run all checks; with a token and a topic, a round trip too."""
        endpoints = EndpointChecks(self._settings, self._reactor, self.report)
        conflicts = endpoint_conflicts(self._settings)
        for place, text in enumerate([*self._settings.listen, self._settings.admin]):
            if place in conflicts:
                setting = "listen" if place < len(self._settings.listen) else "admin"
                self.fail(f"{setting} {text}", conflicts[place])
        for text in self._settings.listen:
            await self._attempt("listen", endpoints.endpoint("listen", text))
            if EndpointString.parse(text).is_tls:
                endpoints.certificates(text)
        if self._settings.admin:
            await self._attempt("admin", endpoints.endpoint("admin", self._settings.admin))
        endpoints.operator()
        await self._attempt("broker", self._broker())
        if isinstance(self._settings.validator, LocalSettings):
            self.ok("validator", "tokens are validated locally, with the key in key_file")
            self.ok("clock", "only the clock of this host determines when tokens expire")
        elif isinstance(self._settings.validator, JwtSettings):
            await self._attempt("issuers", self._jwt(self._settings.validator, token, topic))
        else:
            stack = ValidatorStack(self._settings, self._reactor, self._now, TokenCheckStats())
            await self._attempt("validator", self._validator(stack, topic))
            await self._attempt("clock", self._clock(stack, self._settings.validator))
            await stack.stop()
        self.workers()
        self._files()
        if token is not None and topic is not None:
            round_trip = RoundTrip(self._settings, self._reactor, self.report)
            await self._attempt("round trip", round_trip.all(token, topic))

    async def _attempt(self, subject: str, check: Awaitable[None]) -> None:
        try:
            await check
        except Exception as error:
            self.fail(subject, explain(error))

    async def _broker(self) -> None:
        settings = self._settings.broker
        if isinstance(settings, MemorySettings):
            self.ok("broker", "in memory, for a single process only")
            return
        broker = make_broker(settings, self._reactor, self._now)
        broker.startService()
        now = self._reactor.seconds
        deadline, failed_at = now() + TIMEOUT, 0.0
        while not broker.is_up and now() < deadline:
            if broker.last_error:  # a later attempt may succeed
                failed_at = failed_at or now()
                deadline = min(deadline, failed_at + BROKER_RETRY_TIME)
            await deferLater(self._reactor, 0.1)
        if broker.is_up:
            self.ok("broker", f"connected and accepted by the broker, {broker_address(settings)}")
            if broker.limitation:
                self.warn("broker", broker.limitation)
        else:
            why = broker.last_error or "no answer"
            where = broker_address(settings)
            self.fail("broker", f"{where}: {why.rstrip('.')}; check [broker] and the broker's log")
        stopping = broker.stopService()
        if isinstance(stopping, Deferred):
            await stopping

    async def _jwt(
        self, settings: JwtSettings, token: str | None, topic: TopicAddress | None
    ) -> None:
        from topicsvc.cli.doctor.jwt_checks import JwtChecks

        stack = ValidatorStack(self._settings, self._reactor, self._now, TokenCheckStats())
        checks = JwtChecks(self._settings, self._reactor, self.report, self._now)
        keys = await checks.issuers(stack, settings, self._compare_clocks)
        await stack.stop()
        if token is not None:
            checks.token(token, settings, keys, topic)

    async def _validator(self, stack: ValidatorStack, topic: TopicAddress | None) -> None:
        cell = "topicsvc-doctor" if topic is None else topic.cell
        address = topic or TopicAddress(cell, "box", ("col",), "name")
        advice = f"cell {cell}: add --topic and a token, or check validator.cell_urls"
        try:
            unit = stack.base_validator
            if isinstance(unit, PersoniumValidator) and not await self._has_cell(unit, address):
                self.warn("validator", f"the unit answers, but it has no {advice}")
                return
            # A new random token, which is valid nowhere.
            await stack.validator.validate(secrets.token_urlsafe(24), address)
        except TokenInactive:
            self.ok("validator", "it accepts topicsvc's credentials and rejects an invalid token")
        except ValidatorUnavailable as error:
            is_guess = topic is None and self._names_cells_by_host(cell)
            if is_guess and NO_ADDRESS in str(error):
                self.warn("validator", f"DNS has no host for {advice}")
            else:
                self.fail("validator", f"{error}; check [validator]")
        else:
            self.fail("validator", "it accepts an invalid token")

    async def _has_cell(self, unit: PersoniumValidator, topic: TopicAddress) -> bool:
        is_known = unit.check_credentials(topic)
        return await is_known.addTimeout(
            self._settings.checks.timeout, self._reactor, _raise_timeout
        )

    def _names_cells_by_host(self, cell: str) -> bool:
        settings = self._settings.validator
        if not isinstance(settings, PersoniumSettings):
            return False
        return not settings.unit.cell_url(cell).startswith(settings.unit.url)

    async def _clock(
        self, stack: ValidatorStack, settings: PersoniumSettings | IntrospectionSettings
    ) -> None:
        url = settings.url if isinstance(settings, IntrospectionSettings) else settings.unit.url
        assert stack.http_client is not None  # noqa: S101 - remote validators have one
        try:
            request = stack.http_client.request("GET", url, {})
            seconds = self._settings.checks.timeout
            response = await request.addTimeout(seconds, self._reactor, _raise_timeout)
        except Exception as error:
            # The check of the validator fails for the same reason; the clock may be right.
            self.warn("clock", f"not compared, as {url} gives no time: {explain(error)}")
            return
        self._compare_clocks(url, response.header("date"))

    def _compare_clocks(self, url: str, date: str) -> None:
        """Compare the clocks of this host and of `url`, which has sent the header ``Date``."""
        try:
            remote = parsedate_to_datetime(date).timestamp()
        except ValueError:
            self.warn("clock", f"{url} gives no time: no Date header")
            return
        difference = self._now() - remote
        text = f"{abs(difference):.0f} s {'ahead of' if difference > 0 else 'behind'} {url}"
        if abs(difference) > CLOCK_ERROR:
            self.fail(
                "clock", f"{text}: tokens are valid for too long or too short a time; run NTP"
            )
        elif abs(difference) > CLOCK_WARNING:
            self.warn("clock", f"{text}: run NTP on both")
        else:
            self.ok("clock", f"at most {CLOCK_WARNING} s from {url}")

    def workers(self, processors: Callable[[], int] = usable_processors) -> None:
        """Compare the number of workers with that of processors; nothing with one worker."""
        count = self._settings.workers
        if count == 1:
            return
        usable = processors()
        text = f"{count} workers for {usable} {'processor' if usable == 1 else 'processors'}"
        if count > usable:
            self.warn(
                "workers", f'{text}: more workers serve no more clients; set workers = "auto"'
            )
        else:
            self.ok("workers", text)

    def _files(self) -> None:
        files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        workers = self._settings.workers
        configured = divide(self._settings.limits.connections, workers)
        each = " for each worker" if workers > 1 else ""
        text = f"at most {files} open files here{each} (a systemd service has LimitNOFILE=)"
        if configured and configured + RESERVED_FILES > files:
            self.fail("files", f"{text}; limits.connections needs {configured + RESERVED_FILES}")
        else:
            count = configured or files - RESERVED_FILES
            enough = f"{text}: enough for {count} {'client' if count == 1 else 'clients'}"
            (self.warn if files < MIN_FILES else self.ok)("files", enough)
        if workers > 1 and 0 < configured < MIN_SHARE:
            self.warn(
                "workers",
                f"limits.connections = {self._settings.limits.connections} is {configured} for "
                f"each of {workers} workers: clients come unevenly, and some are refused before; "
                f"set fewer workers, or limits.connections = {MIN_SHARE * workers} or more",
            )


def _raise_timeout(_: object, seconds: float) -> NoReturn:
    raise ValidatorUnavailable(f"no answer within {seconds} s")

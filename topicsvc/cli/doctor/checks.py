"""Composition: what ``topicsvc doctor`` tries, with the very parts that the service is made of."""

from __future__ import annotations

import resource
import secrets
from collections.abc import Awaitable
from email.utils import parsedate_to_datetime
from typing import NoReturn

from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater

from topicsvc.admission.limits import RESERVE
from topicsvc.brokers.factory import make_broker
from topicsvc.cli.doctor.endpoints import EndpointChecks
from topicsvc.cli.doctor.report import Reporter
from topicsvc.cli.doctor.round_trip import TIMEOUT, RoundTrip
from topicsvc.errors import TokenInactive, ValidatorUnavailable
from topicsvc.explain import NO_ADDRESS, explain
from topicsvc.listening.endpoints import is_tls
from topicsvc.settings import (
    IntrospectionSettings,
    LocalSettings,
    MemorySettings,
    PersoniumSettings,
)
from topicsvc.topics import TopicAddress
from topicsvc.validators.factory import ValidatorStack
from topicsvc.validators.personium import PersoniumValidator
from topicsvc.validators.stats import TokenCheckStats

__all__ = ["Checks"]

STUMBLE = 1.0
"""Seconds for a broker to be of another mind."""

SLOW, WRONG = 5, 60
"""Seconds between two clocks: what is worth a word, and what makes tokens live wrongly long."""

FEW_FILES = 4096


class Checks(Reporter):
    """Tries one part after the other; one that fails does not keep the rest from being tried.

    For the arguments see `Reporter`.
    """

    async def all(self, token: str | None, topic: TopicAddress | None) -> None:
        """Try everything, and with a token and a topic the whole way."""
        doors = EndpointChecks(self._settings, self._reactor, self.tell)
        for text in self._settings.listen:
            await self._attempt("listen", doors.endpoint("listen", text))
            if is_tls(text):
                doors.certificates(text)
        if self._settings.admin:
            await self._attempt("admin", doors.endpoint("admin", self._settings.admin))
        await self._attempt("broker", self._broker())
        if isinstance(self._settings.validator, LocalSettings):
            self.ok("validator", "tokens are judged here, with the key of key_file")
            self.ok("clock", "no other has a say in how long tokens live")
        else:
            judge = ValidatorStack(self._settings, self._reactor, self._now, TokenCheckStats())
            await self._attempt("validator", self._validator(judge, topic))
            await self._attempt("clock", self._clock(judge, self._settings.validator))
            await judge.stop()
        self._files()
        if token is not None and topic is not None:
            journey = RoundTrip(self._settings, self._reactor, self.tell)
            await self._attempt("the whole way", journey.all(token, topic))

    async def _attempt(self, what: str, trial: Awaitable[None]) -> None:
        try:
            await trial
        except Exception as error:
            self.fail(what, explain(error))

    async def _broker(self) -> None:
        settings = self._settings.broker
        if isinstance(settings, MemorySettings):
            self.ok("broker", "in memory: for one process alone")
            return
        broker = make_broker(settings, self._reactor, self._now)
        broker.startService()
        now = self._reactor.seconds
        until, stumbled = now() + TIMEOUT, 0.0
        while not broker.is_up and now() < until:
            if broker.last_error:  # it may have been a stumble
                stumbled = stumbled or now()
                until = min(until, stumbled + STUMBLE)
            await deferLater(self._reactor, 0.1)
        if broker.is_up:
            self.ok("broker", "it is there and has let us in")
        else:
            why = broker.last_error or "no answer"
            self.fail("broker", f"{why}; see [broker] and the broker's own log")
        stopping = broker.stopService()
        if isinstance(stopping, Deferred):
            await stopping

    async def _validator(self, stack: ValidatorStack, topic: TopicAddress | None) -> None:
        cell = "topicsvc-doctor" if topic is None else topic.cell
        asked = topic or TopicAddress(cell, "box", ("col",), "name")
        unknown = f"knows no cell {cell}: give --topic and a token, or look at validator.cell_urls"
        try:
            unit = stack.base_validator
            if isinstance(unit, PersoniumValidator) and not await self._knows_us(unit, asked):
                self.warn("validator", f"the unit answers, but {unknown}")
                return
            # One that was made just now, so that nobody has granted it anything.
            await stack.validator.validate(secrets.token_urlsafe(24), asked)
        except TokenInactive:
            self.ok("validator", "it knows us, and says no to a token that is none")
        except ValidatorUnavailable as error:
            is_guess = topic is None and self._names_cells_by_host(cell)
            if is_guess and NO_ADDRESS in str(error):
                self.warn("validator", f"the domain name system {unknown}")
            else:
                self.fail("validator", f"{error}; see [validator]")
        else:
            self.fail("validator", "it grants a token that nobody has issued")

    async def _knows_us(self, unit: PersoniumValidator, topic: TopicAddress) -> bool:
        asked = unit.check_credentials(topic)
        return await asked.addTimeout(self._settings.checks.timeout, self._reactor, _too_late)

    def _names_cells_by_host(self, cell: str) -> bool:
        settings = self._settings.validator
        if not isinstance(settings, PersoniumSettings):
            return False
        return not settings.unit.cell_url(cell).startswith(settings.unit.url)

    async def _clock(
        self, stack: ValidatorStack, settings: PersoniumSettings | IntrospectionSettings
    ) -> None:
        url = settings.url if isinstance(settings, IntrospectionSettings) else settings.unit.url
        assert stack.http_client is not None  # noqa: S101 - one that asks has one
        try:
            asked = stack.http_client.request("GET", url, {})
            seconds = self._settings.checks.timeout
            answer = await asked.addTimeout(seconds, self._reactor, _too_late)
        except Exception as error:
            self.fail("clock", f"{url} does not tell the time: {explain(error)}")
            return
        try:
            theirs = parsedate_to_datetime(answer.header("date")).timestamp()
        except ValueError:
            self.warn("clock", f"{url} does not tell the time: no Date header")
            return
        apart = self._now() - theirs
        text = f"{abs(apart):.0f} s {'ahead of' if apart > 0 else 'behind'} {url}"
        if abs(apart) > WRONG:
            self.fail("clock", f"{text}: tokens live longer or shorter than they say; run NTP")
        elif abs(apart) > SLOW:
            self.warn("clock", f"{text}: run NTP on both")
        else:
            self.ok("clock", f"as that of {url}")

    def _files(self) -> None:
        files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = self._settings.limits.connections
        text = f"{files} may be open here (for a service LimitNOFILE= counts)"
        if wanted and wanted + RESERVE > files:
            self.fail("files", f"{text}; limits.connections needs {wanted + RESERVE}")
        elif files < FEW_FILES:
            self.warn("files", f"{text}: enough for {files - RESERVE} clients")
        else:
            self.ok("files", f"{text}: enough for {wanted or files - RESERVE} clients")


def _too_late(_: object, seconds: float) -> NoReturn:
    raise ValidatorUnavailable(f"no answer within {seconds} s")

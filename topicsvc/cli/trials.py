"""Composition: what ``topicsvc doctor`` tries, with the very parts that the service is made of."""

from __future__ import annotations

import resource
import secrets
import socket
import ssl
from collections.abc import Iterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from ipaddress import ip_address

from cryptography import x509
from twisted.internet.defer import Deferred
from twisted.internet.error import CannotListenError
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread

from topicsvc.address import TopicAddress
from topicsvc.cli.journey import PATIENCE, Journey, Teller
from topicsvc.config import (
    IntrospectionSettings,
    LocalSettings,
    MemorySettings,
    PersoniumSettings,
)
from topicsvc.errors import TokenInactive, ValidatorUnavailable
from topicsvc.judge import Judge
from topicsvc.limits import RESERVE
from topicsvc.listening import Listener, Rehearsal, is_systemd, is_tls, reason_of
from topicsvc.service import make_broker
from topicsvc.tally import CheckTally
from topicsvc.validators.personium import PersoniumValidator

__all__ = ["Trials"]

STUMBLE = 1.0
"""Seconds for a broker to be of another mind."""

FEW_DAYS = 21
"""Days before its end at which a certificate should have been renewed."""

SLOW, WRONG = 5, 60
"""Seconds between two clocks: what is worth a word, and what makes tokens live wrongly long."""

FEW_FILES = 4096

_LOOPBACK = "127.0.0.1"


class Trials(Teller):
    """Tries one part after the other; one that fails does not keep the rest from being tried.

    For the arguments see `Teller`.
    """

    async def all(self, token: str | None, topic: TopicAddress | None) -> None:
        """Try everything, and with a token and a topic the whole way."""
        for text in self._settings.listen:
            await self._endpoint("listen", text)
            if is_tls(text):
                self._certificates(text)
        if self._settings.admin:
            await self._endpoint("admin", self._settings.admin)
        await self._broker()
        await self._validator(topic)
        self._files()
        if token is not None and topic is not None:
            await Journey(self._settings, self._reactor, self.tell).all(token, topic)

    async def _endpoint(self, setting: str, text: str) -> None:
        what = f"{setting} {text}"
        if is_systemd(text):
            self.ok(what, "systemd opens it and passes it on; it cannot be tried from here")
            return
        factory = Factory.forProtocol(Protocol)
        factory.noisy = False
        listener = Listener(setting, text, factory, self._reactor)
        try:
            listener.bind()
        except CannotListenError as error:
            await self._taken(what, text, error)
        except Exception as error:
            self.fail(what, reason_of(error))
        else:
            await listener.stop()
            self.ok(what, "free, and can be listened on")

    async def _taken(self, what: str, text: str, error: CannotListenError) -> None:
        """Somebody listens already, which may be a topicsvc; or we may not."""
        reason = reason_of(error)
        if "in use" not in reason:
            self.fail(
                what,
                f"{reason}; below 1024 start as root with twistd's --uid, "
                "or let systemd open it or give CAP_NET_BIND_SERVICE",
            )
            return
        address = str(error.interface or _LOOPBACK), int(error.port)
        if address[0] in ("0.0.0.0", "::"):  # noqa: S104 - compared with, not listened on
            address = _LOOPBACK, address[1]
        try:
            shown = await deferToThread(_knock, address, is_tls(text))
        except OSError as no:
            self.fail(what, f"in use, and who has it does not answer: {reason_of(no)}")
            return
        if shown is None:
            self.ok(what, "in use, and answered")
        elif shown == Rehearsal(text).certificate().serial_number:
            self.ok(what, "in use, and answered over TLS")
        else:
            self.warn(
                what,
                "in use, and answered over TLS with another certificate than is on disk: "
                "reload it (SIGHUP), if it is topicsvc",
            )

    def _certificates(self, text: str) -> None:
        rehearsal = Rehearsal(text)
        for host in sorted(self._settings.unit.hosts):
            what = f"certificate for {host}"
            try:
                shown = rehearsal.certificate("" if _is_address(host) else host)
            except ValueError as error:
                self.fail(what, str(error))
                continue
            left = (shown.not_valid_after_utc - self._now()).days
            names = set(_names(shown))
            if shown.not_valid_before_utc > self._now():
                self.fail(
                    what, f"not valid before {shown.not_valid_before_utc}: is the clock right?"
                )
            elif left < 0:
                self.fail(what, f"it ended on {shown.not_valid_after_utc:%Y-%m-%d}: renew it")
            elif not _covers(names, host):
                self.fail(what, f"it is for {', '.join(sorted(names))} only: clients refuse it")
            elif left < FEW_DAYS:
                self.warn(what, f"{left} days left: renew it, then reload (SIGHUP)")
            elif not _is_address(host) and not _covers(names, f"cell.{host}"):
                self.warn(
                    what,
                    f"{left} days left; not for *.{host}: cells can be named by path only",
                )
            else:
                self.ok(what, f"{left} days left")

    async def _broker(self) -> None:
        settings = self._settings.broker
        if isinstance(settings, MemorySettings):
            self.ok("broker", "in memory: for one process alone")
            return
        broker = make_broker(settings, self._reactor)
        broker.startService()
        now = self._reactor.seconds
        until, stumbled = now() + PATIENCE, 0.0
        while not broker.is_up and now() < until:
            if broker.complaint:  # it may have been a stumble
                stumbled = stumbled or now()
                until = min(until, stumbled + STUMBLE)
            await deferLater(self._reactor, 0.1)
        if broker.is_up:
            self.ok("broker", "it is there and has let us in")
        else:
            why = broker.complaint or "no answer"
            self.fail("broker", f"{why}; see [broker] and the broker's own log")
        stopping = broker.stopService()
        if isinstance(stopping, Deferred):
            await stopping

    async def _validator(self, topic: TopicAddress | None) -> None:
        settings = self._settings.validator
        if isinstance(settings, LocalSettings):
            self.ok("validator", "tokens are judged here, with the key of key_file")
            self.ok("clock", "no other has a say in how long tokens live")
            return
        judge = Judge(self._settings, self._reactor, CheckTally())
        asked = topic or TopicAddress("topicsvc-doctor", "box", ("col",), "name")
        try:
            unit = judge.judge
            if isinstance(unit, PersoniumValidator) and not await unit.knows_us(asked):
                self.warn(
                    "validator",
                    f"the unit answers, but knows no cell {asked.cell}: whether it knows us is "
                    "told with --topic and a token, or check validator.cell_urls",
                )
            else:
                # One that was made just now, so that nobody has granted it anything.
                await judge.validator.validate(secrets.token_urlsafe(24), asked)
                self.fail("validator", "it grants a token that nobody has issued")
        except TokenInactive:
            self.ok("validator", "it knows us, and says no to a token that is none")
        except ValidatorUnavailable as error:
            self.fail("validator", f"{error}; see [validator]")
        await self._clock(judge, settings)
        await judge.stop()

    async def _clock(
        self, judge: Judge, settings: PersoniumSettings | IntrospectionSettings
    ) -> None:
        url = settings.url if isinstance(settings, IntrospectionSettings) else settings.unit.url
        assert judge.asker is not None  # noqa: S101 - one that asks has one
        try:
            answer = await judge.asker.ask("GET", url, {}).addTimeout(PATIENCE, self._reactor)
        except Exception as error:
            self.fail("clock", f"{url} does not tell the time: {reason_of(error)}")
            return
        try:
            theirs = parsedate_to_datetime(answer.header("date")).timestamp()
        except ValueError:
            self.warn("clock", f"{url} does not tell the time: no Date header")
            return
        apart = self._reactor.seconds() - theirs
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

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self._reactor.seconds(), UTC)


def _knock(address: tuple[str, int], over_tls: bool) -> int | None:
    """Connect; the serial number of the certificate that is shown, if any is.

    Raises:
        OSError: nobody answers, or not over TLS.
    """
    with socket.create_connection(address, timeout=5) as raw:
        if not over_tls:
            return None
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE  # it is compared, not trusted
        with context.wrap_socket(raw) as stream:
            shown = stream.getpeercert(binary_form=True) or b""
    return x509.load_der_x509_certificate(shown).serial_number


def _names(certificate: x509.Certificate) -> Iterator[str]:
    try:
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return
    yield from (name.lower() for name in extension.value.get_values_for_type(x509.DNSName))
    yield from map(str, extension.value.get_values_for_type(x509.IPAddress))


def _covers(names: set[str], host: str) -> bool:
    """Whether a certificate with `names` is good for `host` (RFC 6125, section 6.4.3)."""
    return host in names or f"*.{host.partition('.')[2]}" in names


def _is_address(host: str) -> bool:
    try:
        ip_address(host.strip("[]"))
    except ValueError:
        return False
    return True

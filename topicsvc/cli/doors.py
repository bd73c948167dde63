"""Composition: what ``topicsvc doctor`` tries at the doors: endpoints and their certificates."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from datetime import UTC, datetime
from ipaddress import ip_address

from cryptography import x509
from twisted.internet.error import CannotListenError
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.threads import deferToThread

from topicsvc.cli.journey import Teller
from topicsvc.listening import Listener, Rehearsal, is_systemd, is_tls, reason_of

__all__ = ["FEW_DAYS", "EndpointTrials"]

FEW_DAYS = 21
"""Days before its end at which a certificate should have been renewed."""

_LOOPBACK = "127.0.0.1"


class EndpointTrials(Teller):
    """Tries endpoints. For the arguments see `Teller`."""

    async def endpoint(self, setting: str, text: str) -> None:
        """Whether it can be listened on, or is answered already."""
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

    def certificates(self, text: str) -> None:
        """Whether what it shows is good for each host, and for how long."""
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

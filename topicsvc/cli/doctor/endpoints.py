"""Composition: what ``topicsvc doctor`` tries at the doors: endpoints and their certificates."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from datetime import UTC, datetime
from ipaddress import IPv4Address, IPv6Address, ip_address

from cryptography import x509
from twisted.internet.error import CannotListenError
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.threads import deferToThread

from topicsvc.cli.doctor.probe import probe
from topicsvc.cli.doctor.report import Reporter
from topicsvc.explain import explain
from topicsvc.listening.certificates import EndpointPreview
from topicsvc.listening.endpoints import is_systemd
from topicsvc.listening.listener import Listener

__all__ = ["FEW_DAYS", "EndpointChecks"]

FEW_DAYS = 21
"""Days before its end at which a certificate should have been renewed."""

_TAKEN = (os.strerror(errno.EADDRINUSE), "Cannot acquire lock")
"""Why nobody else can listen there: of a port, and of a UNIX socket."""

_NO_RIGHT = os.strerror(errno.EACCES)
"""Why we cannot listen there, whether or not somebody does."""

_Address = IPv4Address | IPv6Address
_Names = set[str | _Address]


class EndpointChecks(Reporter):
    """Tries endpoints. For the arguments see `Reporter`."""

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
            self.fail(what, explain(error))
        else:
            await listener.stop()
            self.ok(what, "free, and can be listened on")

    async def _taken(self, what: str, text: str, error: CannotListenError) -> None:
        """Somebody listens already, which may be a topicsvc; or we may not."""
        reason = explain(error)
        if reason in (*_TAKEN, _NO_RIGHT):
            try:
                shown = await deferToThread(probe, error, text)
            except OSError as no:
                why = f"who has it does not answer as this endpoint would: {explain(no)}"
            else:
                self._answered(what, text, shown)
                return
            if reason != _NO_RIGHT:
                reason = f"in use, and {why}"
            elif isinstance(error.port, int):
                reason += (
                    "; below 1024 start as root with twistd's --uid, "
                    "or let systemd open it or give CAP_NET_BIND_SERVICE"
                )
        self.fail(what, reason)

    def _answered(self, what: str, text: str, shown: int | None) -> None:
        """Somebody is there, who has shown the certificate of that number."""
        if shown is None:
            self.ok(what, "in use, and answered")
        elif shown == EndpointPreview(text).certificate().serial_number:
            self.ok(what, "in use, and answered over TLS")
        else:
            self.warn(
                what,
                "in use, and answered over TLS with another certificate than is on disk: "
                "reload it (SIGHUP), if it is topicsvc",
            )

    def certificates(self, text: str) -> None:
        """Whether what it shows is good for each host, and for how long."""
        rehearsal = EndpointPreview(text)
        for host in sorted(self._settings.unit.hosts):
            what = f"certificate for {host}"
            try:
                shown = rehearsal.certificate("" if _address(host) else host)
            except ValueError as error:
                self.fail(what, str(error))
                continue
            today = datetime.fromtimestamp(self._now(), UTC)
            left = (shown.not_valid_after_utc - today).days
            names = set(_names(shown))
            if shown.not_valid_before_utc > today:
                self.fail(
                    what, f"not valid before {shown.not_valid_before_utc}: is the clock right?"
                )
            elif left < 0:
                self.fail(what, f"it ended on {shown.not_valid_after_utc:%Y-%m-%d}: renew it")
            elif not _covers(names, host):
                known = f"for {', '.join(sorted(map(str, names)))} only" if names else "for nobody"
                self.fail(what, f"it is {known}: clients refuse it")
            elif left < FEW_DAYS:
                self.warn(what, f"{left} days left: renew it, then reload (SIGHUP)")
            elif not _address(host) and not _covers(names, f"cell.{host}"):
                self.warn(
                    what,
                    f"{left} days left; not for *.{host}: cells can be named by path only",
                )
            else:
                self.ok(what, f"{left} days left")


def _names(certificate: x509.Certificate) -> Iterator[str | _Address]:
    try:
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return
    yield from (name.lower() for name in extension.value.get_values_for_type(x509.DNSName))
    for address in extension.value.get_values_for_type(x509.IPAddress):
        if isinstance(address, _Address):
            yield address


def _covers(names: _Names, host: str) -> bool:
    """Whether a certificate with `names` is good for `host` (RFC 9525, section 6)."""
    address = _address(host)
    if address is not None:
        return address in names
    return host in names or f"*.{host.partition('.')[2]}" in names


def _address(host: str) -> _Address | None:
    """The address that `host` is, in brackets if it is of version 6; None: it is a name."""
    try:
        return ip_address(host.strip("[]"))
    except ValueError:
        return None

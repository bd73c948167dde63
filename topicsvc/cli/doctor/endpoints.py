"""Checks of endpoints and their certificates."""

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
from topicsvc.listening.endpoint_string import EndpointString
from topicsvc.listening.endpoints import read_contexts
from topicsvc.listening.host_checks import host_problem
from topicsvc.listening.listener import Listener

__all__ = ["CERTIFICATE_WARNING_DAYS", "MIN_ADMIN_TOKEN", "EndpointChecks"]

CERTIFICATE_WARNING_DAYS = 21
"""Days of validity below which the check of a certificate warns."""

MIN_ADMIN_TOKEN = 16
"""Characters of ``admin.token_file`` below which the check warns."""

_IN_USE = (os.strerror(errno.EADDRINUSE), "Cannot acquire lock")
"""Errors if another process listens there: on a port, and on a UNIX socket."""

_NO_PERMISSION = os.strerror(errno.EACCES)
"""The error if this user may not listen there, whether or not another process listens."""

_Address = IPv4Address | IPv6Address
_Names = set[str | _Address]


class EndpointChecks(Reporter):
    """Checks endpoints and certificates. For the arguments see `Reporter`."""

    async def endpoint(self, setting: str, text: str) -> None:
        """Check that the endpoint is free, or that a service answers there already."""
        subject = f"{setting} {text}"
        if EndpointString.parse(text).kind == "systemd":
            self.ok(subject, "systemd opens this socket; it cannot be tested from here")
            return
        factory = Factory.forProtocol(Protocol)
        factory.noisy = False
        listener = Listener(setting, text, factory, self._reactor)
        try:
            listener.bind()
        except CannotListenError as error:
            await self._in_use(subject, text, error)
        except Exception as error:
            self.fail(subject, _with_remedy(explain(error), text))
        else:
            await listener.stop()
            self.ok(subject, "free")

    async def _in_use(self, subject: str, text: str, error: CannotListenError) -> None:
        """Report an endpoint on which another process listens, or this user may not listen."""
        reason = explain(error)
        if reason in (*_IN_USE, _NO_PERMISSION):
            try:
                serial_number = await deferToThread(probe, error, text)
            except OSError as failed:
                why = f"the program there does not answer as this endpoint would: {explain(failed)}"
            else:
                self._answered(subject, text, serial_number)
                return
            if reason != _NO_PERMISSION:
                reason = f"in use, and {why}"
            elif isinstance(error.port, int):
                reason += (
                    "; for a port below 1024 start as root with twistd's --uid, "
                    "let systemd open it, or grant CAP_NET_BIND_SERVICE"
                )
        self.fail(subject, _with_remedy(reason, text))

    def _answered(self, subject: str, text: str, serial_number: int | None) -> None:
        """Report an endpoint on which a service answers, with this certificate if it uses TLS."""
        if serial_number is None:
            self.ok(subject, "in use; a service answers there")
        elif serial_number == read_contexts(text).default.certificate.serial_number:
            self.ok(subject, "in use; a service answers there over TLS")
        else:
            self.warn(
                subject,
                "in use; the service there has another certificate than the one on disk: "
                "if it is topicsvc, reload it (SIGHUP)",
            )

    def operator(self) -> None:
        """Check the pages for operators on the admin endpoint, if there are any."""
        endpoint, operator = self._settings.admin, self._settings.operator
        if not operator.inspect and operator.token is None:
            return
        subject = "admin pages"
        if endpoint is None:
            self.warn(subject, "there is no endpoint for them: set admin.listen, or use --admin")
        elif operator.inspect and not _is_protected(EndpointString.parse(endpoint)):
            self.warn(
                subject,
                f"anybody who reaches {endpoint} sees subjects and addresses; if clients can, "
                "add interface=127.0.0.1",
            )
        elif operator.token is not None and len(operator.token) < MIN_ADMIN_TOKEN:
            self.warn(
                subject,
                f"admin.token_file has only {len(operator.token)} characters: write a random token "
                f"of at least {MIN_ADMIN_TOKEN}",
            )
        else:
            can_end = "can" if operator.token is not None else "cannot"
            lists = "are listed" if operator.inspect else "are not listed"
            self.ok(subject, f"topics and sessions {lists}; sessions {can_end} be ended")

    def certificates(self, text: str) -> None:
        """Check for each host that the certificate is valid, and for how long."""
        contexts = read_contexts(text)
        for host in sorted(self._settings.unit.hosts):
            subject = f"certificate for {host}"
            name = None if _address(host) else host.encode("ascii")
            certificate = contexts.select(name).certificate
            today = datetime.fromtimestamp(self._now(), UTC)
            left = (certificate.not_valid_after_utc - today).days
            names = set(_names(certificate))
            if certificate.not_valid_before_utc > today:
                self.fail(
                    subject, f"not valid before {certificate.not_valid_before_utc}: check the clock"
                )
            elif left < 0:
                self.fail(
                    subject, f"expired on {certificate.not_valid_after_utc:%Y-%m-%d}: renew it"
                )
            elif not _covers(names, host):
                valid = f"only for {', '.join(sorted(map(str, names)))}" if names else "for no host"
                self.fail(subject, f"valid {valid}: clients reject it")
            elif certificate.issuer == certificate.subject:
                self.warn(
                    subject,
                    f"{left} days left; self-signed: only clients that trust this certificate "
                    "itself can connect",
                )
            elif left < CERTIFICATE_WARNING_DAYS:
                self.warn(subject, f"{left} days left: renew it, then reload (SIGHUP)")
            elif not _address(host) and not _covers(names, f"cell.{host}"):
                self.warn(
                    subject,
                    f"{left} days left; not valid for *.{host}: clients can only use the URLs with "
                    "the cell in the path",
                )
            else:
                self.ok(subject, f"{left} days left")


def _is_protected(endpoint: EndpointString) -> bool:
    """Whether only programs of this host reach an endpoint, or systemd alone knows."""
    return endpoint.is_local or endpoint.kind == "systemd"


def _with_remedy(reason: str, text: str) -> str:
    """Add what this host lacks for an endpoint, if that is known."""
    problem = host_problem(EndpointString.parse(text))
    return reason if problem is None else f"{reason}; {problem}"


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
    """Whether a certificate with `names` is valid for `host` (RFC 9525, section 6)."""
    address = _address(host)
    if address is not None:
        return address in names
    return host in names or f"*.{host.partition('.')[2]}" in names


def _address(host: str) -> _Address | None:
    """Parse `host` as an IP address, in brackets for IPv6; None: it is a name."""
    try:
        return ip_address(host.strip("[]"))
    except ValueError:
        return None

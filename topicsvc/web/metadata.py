"""The metadata that lead a client to the issuers of tokens (RFC 9728)."""

from __future__ import annotations

from collections.abc import Sequence

from topicsvc.errors import HostRefused
from topicsvc.settings import IntrospectionSettings, JwtSettings, ValidatorSettings
from topicsvc.strict_json import compact
from topicsvc.topics import Unit
from topicsvc.web import responses
from topicsvc.web.http_connection import Exchange
from topicsvc.web.responses import ANY_ORIGIN, Header, Response, error_response

__all__ = ["PATH", "MetadataResource"]

PATH = b"/.well-known/oauth-protected-resource"

_METHODS = (b"Allow", b"OPTIONS, GET, HEAD")
_PREFLIGHT: tuple[Header, ...] = (ANY_ORIGIN, (b"Access-Control-Allow-Methods", b"GET, HEAD"))


class MetadataResource:
    """Responds with the issuers whose tokens are valid here.

    Args:
        unit: parses hosts.
        validator: the settings that name the issuers.

    Attributes:
        is_known: whether the settings name an issuer; otherwise there are no metadata.
    """

    def __init__(self, unit: Unit, validator: ValidatorSettings) -> None:
        self._unit = unit
        self.configure(validator)

    def configure(self, validator: ValidatorSettings) -> None:
        """Apply new settings to requests that arrive from now on."""
        issuers: list[str] = []
        scopes: set[str] = set()
        if isinstance(validator, JwtSettings):
            issuers = [each.issuer for each in validator.issuers]
        elif isinstance(validator, IntrospectionSettings) and validator.issuer is not None:
            issuers = [validator.issuer]
        if isinstance(validator, JwtSettings | IntrospectionSettings):
            scopes = {rule.scope for rule in validator.rules if rule.scope is not None}
        self._issuers = [issuer for issuer in issuers if issuer.startswith(("https:", "http:"))]
        self._scopes = sorted(scopes)
        self.is_known = bool(self._issuers)

    def challenge(self, hosts: Sequence[bytes] | None) -> bytes:
        """Return the parameter of a challenge that leads here (RFC 9728, section 5.1)."""
        if not self.is_known:
            return b""
        url = self._unit.origin(hosts).encode("ascii") + PATH.lstrip(b"/")
        return b', resource_metadata="%s"' % url

    def respond(self, exchange: Exchange) -> Response:
        """See `topicsvc.web.site.Resource`."""
        try:
            resource = self._unit.origin(exchange.hosts)
        except HostRefused as error:
            return error_response(responses.BAD_HOST, str(error), (ANY_ORIGIN,))
        if exchange.head.method == b"OPTIONS":
            return Response(200, (*_PREFLIGHT, _METHODS))
        if exchange.head.method not in (b"GET", b"HEAD"):
            return error_response(responses.METHOD_NOT_ALLOWED, headers=(ANY_ORIGIN, _METHODS))
        members = {
            "resource": resource,
            "authorization_servers": self._issuers,
            "bearer_methods_supported": ["header"],
        }
        if self._scopes:
            members["scopes_supported"] = self._scopes
        return Response(200, ((b"Content-Type", b"application/json"), ANY_ORIGIN), compact(members))

"""Finds and fetches the key set of an issuer (OpenID Connect Discovery, RFC 8414, RFC 7517)."""

from __future__ import annotations

import re
from collections.abc import Generator
from dataclasses import dataclass
from ipaddress import ip_address
from json import JSONDecoder
from typing import Any
from urllib.parse import urlsplit

from twisted.internet.defer import Deferred, inlineCallbacks

from topicsvc.errors import ValidatorUnavailable
from topicsvc.refusals import quoted
from topicsvc.settings import IssuerSettings
from topicsvc.strict_json import reject_constant, reject_duplicates
from topicsvc.validators.http_client import HttpClient, Response
from topicsvc.validators.jwt.keys import KeySet, read_keys

__all__ = ["Discovery", "Found", "is_secure_url", "places"]

_decoder = JSONDecoder(object_pairs_hook=reject_duplicates, parse_constant=reject_constant)
_URL = re.compile(r"https?://[!-~]+")
_HEADERS = {"Accept": "application/json"}


@dataclass(frozen=True, slots=True)
class Found:
    """A fetched key set.

    Attributes:
        keys: its keys.
        url: where it was.
        date: ``Date`` of the response; empty: it had none.
    """

    keys: KeySet
    url: str
    date: str


def is_secure_url(url: str) -> bool:
    """Whether `url` is https, or http on a loopback address, and has no credentials."""
    if not _URL.fullmatch(url) or "#" in url:
        return False
    try:
        split = urlsplit(url)
        host = split.hostname
        if not host or split.port == 0 or "@" in split.netloc:
            return False
    except ValueError:
        return False
    return split.scheme == "https" or _is_loopback(host)


def places(issuer: str) -> tuple[str, str]:
    """Return the two URLs at which an issuer may describe itself, in their order."""
    split = urlsplit(issuer)
    path = split.path.rstrip("/")
    root = f"{split.scheme}://{split.netloc}"
    return (
        f"{root}{path}/.well-known/openid-configuration",
        f"{root}/.well-known/oauth-authorization-server{path}",
    )


class Discovery:
    """Fetches the keys of one issuer.

    Args:
        http_client: sends the requests.
        settings: the settings for the issuer.
    """

    def __init__(self, http_client: HttpClient, settings: IssuerSettings) -> None:
        self._http_client = http_client
        self._settings = settings

    def fetch_keys(self) -> Deferred[KeySet]:
        """Fetch the keys; see `fetch`."""
        found: Deferred[Any] = self.fetch()
        return found.addCallback(lambda found: found.keys)

    @inlineCallbacks
    def fetch(self) -> Generator[Deferred[Any], Any, Found]:
        """Find the key set, and fetch it.

        Fails with:
            ValidatorUnavailable: a request failed, or a response cannot be used.
        """
        url: str = self._settings.jwks_url or (yield self.find())
        response: Response = yield self._http_client.request("GET", url, _HEADERS)
        if response.status != 200:
            raise ValidatorUnavailable(f"{url}: status {response.status}")
        try:
            keys = read_keys(response.body)
        except ValueError as error:
            raise ValidatorUnavailable(f"{url}: {error}") from None
        return Found(keys, url, response.header("date"))

    @inlineCallbacks
    def find(self) -> Generator[Deferred[Any], Any, str]:
        """Find the URL of the key set in the description of the issuer."""
        first, second = places(self._settings.issuer)
        description = yield self._describe(first)
        if isinstance(description, str):
            alternative = yield self._describe(second)
            if isinstance(alternative, str):
                raise ValidatorUnavailable(f"{first}: {description}; {second}: {alternative}")
            description, first = alternative, second
        issuer, url = description.get("issuer"), description.get("jwks_uri")
        if issuer != self._settings.issuer:
            shown = quoted(issuer) if isinstance(issuer, str) else "missing"
            raise ValidatorUnavailable(f"{first}: its issuer is {shown}; set exactly this")
        if not isinstance(url, str):
            raise ValidatorUnavailable(f"{first}: it has no jwks_uri; set jwks_url")
        if not self._is_allowed(url):
            raise ValidatorUnavailable(f"{first}: its jwks_uri is not https")
        return url

    @inlineCallbacks
    def _describe(self, url: str) -> Generator[Deferred[Any], Any, dict[str, Any] | str]:
        """Fetch a description; fires with why it cannot be used, if it cannot."""
        response: Response = yield self._http_client.request("GET", url, _HEADERS)
        if response.status != 200:
            return f"status {response.status}"
        try:
            members = _decoder.decode(response.body.decode("utf-8"))
        except (ValueError, RecursionError):
            return "not JSON"
        return members if isinstance(members, dict) else "not a JSON object"

    def _is_allowed(self, url: str) -> bool:
        """Whether keys may be fetched from `url`, which the issuer names.

        An issuer elsewhere must not direct requests to this host.
        """
        if not is_secure_url(url):
            return False
        return url.startswith("https:") or self._settings.issuer.startswith("http:")


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"

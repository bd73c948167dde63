"""Reads ``[[validator.issuers]]``: the issuers of JWTs. It needs the extra ``jwt``."""

from __future__ import annotations

from pathlib import Path

from topicsvc.config.files import read_authorities
from topicsvc.config.toml_table import Table
from topicsvc.files import read_file
from topicsvc.settings import DAY, JWT_ALGORITHMS, IssuerSettings
from topicsvc.validators.jwt.discovery import is_secure_url
from topicsvc.validators.jwt.keys import read_keys

__all__ = ["read_issuers"]

_MAX_AGE = 30 * DAY
_ISSUER = 'exactly the "iss" of its tokens: "https://as.example/realms/main"'
_SECURE_URL = 'an https URL, or http on a loopback address: "https://as.example/jwks"'


def read_issuers(table: Table) -> tuple[IssuerSettings, ...]:
    """Read the issuers in ``[validator]``, at least one."""
    tables = table.tables("issuers")
    if not tables and not table.given("issuers"):
        table.problem("issuers", "missing", "[[validator.issuers]]")
    issuers = tuple(map(_issuer, tables))
    names = [each.issuer for each in issuers if each.issuer]
    for name in sorted({name for name in names if names.count(name) > 1}):
        table.problem("issuers", f"{name!r} is there twice", "each issuer once")
    return issuers


def _issuer(table: Table) -> IssuerSettings:
    default = IssuerSettings("", ())
    issuer = table.text("issuer", None, _ISSUER) or ""
    jwks_url = table.text("jwks_url", "", _SECURE_URL)
    jwks = table.file("jwks_file", _read_jwks, None, required=False)
    if jwks_url is not None and not is_secure_url(jwks_url):
        table.problem(
            "jwks_url", "not a plain https URL (ASCII, no credentials, no fragment)", _SECURE_URL
        )
    if table.given("jwks_url") and table.given("jwks_file"):
        table.problem("jwks_file", "jwks_url is set too", "one of the two, or neither")
    is_found = table.given("jwks_url") is None and table.given("jwks_file") is None
    if issuer and is_found and (not is_secure_url(issuer) or "?" in issuer):
        table.problem(
            "issuer",
            "no plain https URL (ASCII, no credentials, no query) at which its keys can be found",
            f"{_SECURE_URL}; or set jwks_url or jwks_file",
        )
    return IssuerSettings(
        issuer=issuer,
        audience=_names(table, "audience", (), '["https://push.example/"]', required=True),
        jwks_url=jwks_url,
        jwks=jwks,
        audience_claim=table.text("audience_claim", default.audience_claim, _CLAIM)
        or default.audience_claim,
        algorithms=_algorithms(table, default.algorithms),
        token_types=_texts(table, "token_types", default.token_types, '["at+jwt"]'),
        leeway=table.number("leeway", default.leeway, 0, 300),
        scope_claims=_names(table, "scope_claims", default.scope_claims, '["scope", "scp"]'),
        subject_claim=table.text("subject_claim", default.subject_claim, _CLAIM)
        or default.subject_claim,
        max_age=table.number("max_age", default.max_age, 10, _MAX_AGE),
        stale=table.number("stale", default.stale, 10, _MAX_AGE),
        details_type=table.text("details_type", "", "the type of authorization_details"),
        authorities=table.file("ca_file", read_authorities, None, required=False),
    )


_CLAIM = "the name of a claim"


def _texts(
    table: Table, key: str, default: tuple[str, ...], example: str, required: bool = False
) -> tuple[str, ...]:
    """Read a list of strings that is not empty."""
    if table.given(key) is None and not required:
        table.keys[key] = list(default)
        return default
    values = table.texts(key)
    if not values and (table.given(key) is None or table.given(key) == []):
        table.problem(key, "missing" if table.given(key) is None else "empty", example)
    return values


def _names(
    table: Table, key: str, default: tuple[str, ...], example: str, required: bool = False
) -> tuple[str, ...]:
    """Read a list of strings that is not empty, in which no string is empty."""
    values = _texts(table, key, default, example, required)
    if "" in values:
        table.problem(key, "it has an empty text", example)
    return values


def _algorithms(table: Table, default: tuple[str, ...]) -> tuple[str, ...]:
    allowed = ", ".join(JWT_ALGORITHMS)
    values = _texts(table, "algorithms", (), allowed) or default
    for name in values:
        if name not in JWT_ALGORITHMS:
            table.problem("algorithms", f"{name!r} is not allowed", allowed)
    return values


def _read_jwks(path: Path) -> bytes:
    """Read a key set.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no key set, or no key in it can be used.
    """
    body = read_file(path)
    keys = read_keys(body)
    if not keys.keys:
        raise ValueError("; ".join(("no key in it can be used", *keys.skipped[:3])))
    return body

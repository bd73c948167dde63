"""Reads ``[validator]``: how tokens are validated."""

from __future__ import annotations

import re
from collections.abc import Callable
from ipaddress import ip_address
from urllib.parse import urlsplit

from topicsvc.config.files import read_authorities, read_secret
from topicsvc.config.toml_table import Table, as_toml
from topicsvc.config.topics import read_rule_topics
from topicsvc.settings import (
    DAY,
    CheckSettings,
    IntrospectionSettings,
    JwtSettings,
    LocalSettings,
    PersoniumSettings,
    Rule,
    ValidatorSettings,
)
from topicsvc.topics import CellUrlStyle, Unit
from topicsvc.validators.local import RIGHTS, read_key

__all__ = ["CELL_URLS", "kind_of", "read_checks", "read_validator"]

CELL_URLS: tuple[CellUrlStyle, ...] = ("host", "path")


def kind_of(table: Table) -> str | None:
    """The kind of validator; None: missing or invalid, which is reported."""
    kind: str = table.choice("kind", tuple(_VALIDATORS), required=True)
    return kind if table.given("kind") == kind else None


def read_validator(table: Table, root: Table) -> ValidatorSettings:
    """Read ``[validator]``; `root` is the table of the whole file, which has ``unit_url``."""
    kind = kind_of(table)
    if kind is None:
        table.ignore_unknown()
        return LocalSettings(b"")
    return _VALIDATORS[kind](table, root)


def _personium(table: Table, root: Table) -> PersoniumSettings:
    allowed = 'a URL, "https://unit1.example/"'
    url = table.text("url", "", allowed) or root.text("unit_url", "", allowed)
    cell_urls = table.choice("cell_urls", CELL_URLS)
    unit = Unit("https://invalid/")
    try:
        unit = Unit(url or unit.url, cell_urls=cell_urls)
    except ValueError as error:
        if table.given("url"):  # a wrong unit_url is reported already
            table.problem("url", str(error), allowed)
    if cell_urls == "host" and _is_address(urlsplit(unit.url).hostname or ""):
        table.problem(
            "cell_urls",
            "an IP address cannot have a cell's name in front",
            '"path", or a host name',
        )
    return PersoniumSettings(
        unit=unit,
        username=table.text("username", None, "a string") or "",
        password=table.file("password_file", read_secret, ""),
        authorities=table.file("ca_file", read_authorities, None, required=False),
    )


def _introspection(table: Table, _: Table) -> IntrospectionSettings:
    url = table.text("url", None, _INTROSPECTION_URL)
    if url is not None and not _is_plain_url(url):
        table.problem(
            "url",
            "not a plain http or https URL (ASCII, no credentials, no fragment)",
            _INTROSPECTION_URL,
        )
    return IntrospectionSettings(
        url=url or "",
        client_id=table.text("client_id", None, "a string") or "",
        client_secret=table.file("client_secret_file", read_secret, ""),
        authorities=table.file("ca_file", read_authorities, None, required=False),
        issuer=table.text("issuer", "", "a string"),
        audience=table.text("audience", "", "a string"),
        rules=_rules(table),
    )


def _rules(table: Table) -> tuple[Rule, ...]:
    return tuple(map(_rule, table.tables("rules")))


def _rule(table: Table) -> Rule:
    may = table.texts("may")
    if not may or not set(may) <= set(RIGHTS):
        table.problem("may", f"{as_toml(list(may))} is not valid", '["receive"], ["send"] or both')
    topics = tuple(read_rule_topics(table))
    if not table.texts("topics"):
        table.problem("topics", "empty", 'a list, ["/cell1/box1/*"]')
    scope = table.text("scope", "", "one scope")
    if scope and scope.split() != [scope]:
        table.problem("scope", f"{scope!r} is not valid", "one scope, without blanks")
    claim = _claim(table)
    value = table.text("value", "", "the text that the claim is, or holds")
    everybody = table.flag("everybody", False)
    given = [key for key in ("scope", "claim", "everybody") if table.given(key) is not None]
    if len(given) != 1:
        wrong = f"{' and '.join(given)} are both conditions" if given else "no condition"
        table.problem("scope", wrong, "scope, claim with value, or everybody = true")
    elif table.given("everybody") is False:
        table.problem("everybody", "no token meets it", "true")
    elif (table.given("claim") is None) != (table.given("value") is None):
        table.problem("value", "claim and value belong together", 'both, or a scope = "..."')
    return Rule(
        None if claim or everybody else scope or "", topics, frozenset(may), claim, value or ""
    )


def _claim(table: Table) -> tuple[str, ...]:
    """Read the path to a claim: one name, or a list of the names of nested claims."""
    if isinstance(table.given("claim"), list):
        path = table.texts("claim")
        if table.given("claim") == [] or "" in path:
            table.problem("claim", f"{list(path)!r} is not valid", _CLAIM)
        return path
    name = table.text("claim", "", _CLAIM)
    return () if name is None else (name,)


def _local(table: Table, _: Table) -> LocalSettings:
    return LocalSettings(key=table.file("key_file", read_key, b"", advice=NEW_KEY))


def _jwt(table: Table, _: Table) -> JwtSettings:
    try:
        from topicsvc.config.issuers import read_issuers
    except ImportError:
        table.problem(
            "kind",
            "its libraries are not installed",
            "\"jwt\" after pip install 'topicsvc[jwt]'",
        )
        table.ignore_unknown()
        return JwtSettings((), ())
    return JwtSettings(issuers=read_issuers(table), rules=_rules(table))


NEW_KEY = "a key file, as topicsvc token --key-file {} --new-key creates it"


_VALIDATORS: dict[str, Callable[[Table, Table], ValidatorSettings]] = {
    "personium": _personium,
    "introspection": _introspection,
    "local": _local,
    "jwt": _jwt,
}

_CLAIM = 'the name of a claim, or a list of names: ["realm_access", "roles"]'

_INTROSPECTION_URL = 'a URL, "https://as.example/token/introspect"'


def read_checks(table: Table) -> CheckSettings:
    """Read the settings that all kinds of validators share."""
    default = CheckSettings()
    recheck = table.number("recheck", default.recheck, 0, DAY)
    if 0 < recheck < 1:  # the service would spend all its time on rechecks
        table.problem("recheck", f"{recheck!r} is not valid", f"0, or a number from 1 to {DAY}")
    return CheckSettings(
        timeout=table.number("timeout", default.timeout, 0.1, 300),
        concurrency=table.integer("concurrency", default.concurrency, 1, 1000),
        cache=table.number("cache", default.cache, 0, DAY),
        recheck=recheck,
    )


def _is_address(host: str) -> bool:
    """Whether `host` is an IP address, not a name."""
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def _is_plain_url(url: str) -> bool:
    """Whether `url` is an http or https URL without credentials and without a fragment."""
    if not re.fullmatch(r"https?://[!-~]+", url) or "#" in url:
        return False
    try:
        split = urlsplit(url)
        return bool(split.hostname and split.port != 0) and "@" not in split.netloc
    except ValueError:
        return False

"""Applies every rule to one token, for an operator who wants to know why it is refused.

No step has the token, and none has its subject.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from topicsvc.errors import TokenInactive
from topicsvc.refusals import quoted
from topicsvc.settings import IssuerSettings, JwtSettings
from topicsvc.topics import TopicAddress
from topicsvc.validators.jwt.claims import (
    CLAIM_RULES,
    HEADER_RULES,
    issuer_of,
    read_claims,
    read_facts,
)
from topicsvc.validators.jwt.keys import KeySet, verify
from topicsvc.validators.jwt.token import Jwt, parse
from topicsvc.validators.jwt.validator import UnknownKey, choose_key
from topicsvc.validators.rules import condition, meets, rights_on

__all__ = ["Step", "walk"]


@dataclass(frozen=True, slots=True)
class Step:
    """One rule, applied to a token.

    Attributes:
        name: what the rule is about.
        is_met: whether the token meets it.
        text: the seen and the allowed value.
    """

    name: str
    is_met: bool
    text: str


def walk(
    token: str,
    settings: JwtSettings,
    keys: Mapping[str, KeySet],
    now: float,
    topic: TopicAddress | None = None,
) -> Iterator[Step]:
    """Apply every rule. A rule that needs what another has not found is left out.

    Args:
        token: the token.
        settings: the issuers, and the rules that give rights.
        keys: the keys of each issuer, by its name; an issuer without keys is left out.
        now: the time of day, in seconds since the epoch.
        topic: the topic on which the token should have a right; None: any.
    """
    issuers = {each.issuer: each for each in settings.issuers}
    try:
        jwt = parse(token)
    except TokenInactive as error:
        yield Step("form", False, error.refusal.detail)
        return
    yield Step("form", True, "it is a JWT")
    try:
        issuer = issuers[issuer_of(jwt, issuers)]
    except TokenInactive as error:
        yield Step("iss", False, error.refusal.detail)
        return
    yield Step("iss", True, f"iss is {quoted(issuer.issuer)}, as the setting")
    are_met = True
    for rule in (*HEADER_RULES, *CLAIM_RULES):
        if rule is CLAIM_RULES[0]:
            step = _signature(jwt, issuer, keys.get(issuer.issuer))
            are_met &= step.is_met
            yield step
        refusal = rule.check(jwt, issuer, now)
        are_met &= refusal is None
        if refusal is None:
            yield Step(rule.name, True, rule.state(jwt, issuer, now))
        else:
            yield Step(rule.name, False, f"{refusal.detail}: {refusal.advice}")
    if are_met:
        yield from _rights(jwt, issuer, settings, now, topic)


def _signature(jwt: Jwt, issuer: IssuerSettings, keys: KeySet | None) -> Step:
    algorithm, key_id = jwt.header.get("alg"), jwt.header.get("kid")
    if keys is None:
        return Step("signature", False, "not verified: the keys of the issuer were not loaded")
    if algorithm not in issuer.algorithms or not (key_id is None or isinstance(key_id, str)):
        return Step("signature", False, "not verified: alg or kid is not allowed")
    try:
        key = choose_key(keys, key_id, algorithm)
    except TokenInactive as error:
        return Step("signature", False, error.refusal.detail)
    except UnknownKey as unknown:
        return Step("signature", False, unknown.refusal.detail)
    if verify(key, algorithm, jwt.signed, jwt.signature):
        return Step("signature", True, f"signed with {_name(key.key_id)}, {algorithm}")
    return Step("signature", False, f"it is not that of {_name(key.key_id)}, {algorithm}")


def _name(key_id: str | None) -> str:
    return "the only key that fits" if key_id is None else f"the key {quoted(key_id)}"


def _rights(
    jwt: Jwt,
    issuer: IssuerSettings,
    settings: JwtSettings,
    now: float,
    topic: TopicAddress | None,
) -> Iterator[Step]:
    facts = read_facts(jwt, issuer)
    for rule in settings.rules:
        rights = f"may {' and '.join(sorted(rule.may))}: {', '.join(map(str, rule.topics))}"
        is_met = "met" if meets(rule, facts) else "not met"
        yield Step(f"rule {condition(rule)}", True, f"{is_met}; {rights}")
    all_rights = read_claims(jwt, issuer, settings.rules, now).rights
    if topic is None:
        # The patterns may have the subject in them.
        yield Step("rights", bool(all_rights), f"it gives rights by {len(all_rights)} patterns")
        return
    found = rights_on(topic, all_rights)
    rights = " and ".join(sorted(found)) or "neither receive from it nor send to it"
    yield Step("rights", bool(found), f"on {topic.path} it may {rights}")

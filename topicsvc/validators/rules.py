"""Decides which rights the rules in the settings give to a token."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from topicsvc.refusals import Refusal, RefusalReason, quoted_list
from topicsvc.settings import Rule
from topicsvc.topics import TopicAddress, TopicPattern

__all__ = ["Facts", "Right", "condition", "meets", "no_right", "rights_of", "rights_on"]

Right = tuple[TopicPattern, frozenset[str]]
"""Topics, and the rights on them: ``receive``, ``send`` or both."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known about a valid token.

    Attributes:
        subject: the name that stands for ``{sub}``; None: not known.
        scopes: its scopes.
        claims: all its claims, as JSON has them.
    """

    subject: str | None
    scopes: frozenset[str]
    claims: Mapping[str, Any]


def rights_of(rules: Iterable[Rule], facts: Facts) -> tuple[Right, ...]:
    """Return the rights of a token, on all topics. The rights of several rules add up."""
    return tuple(
        (pattern, rule.may)
        for rule in rules
        if meets(rule, facts)
        for pattern in _patterns(rule, facts.subject)
    )


def rights_on(topic: TopicAddress, rights: Iterable[Right]) -> frozenset[str]:
    """Return the rights on one topic."""
    found = frozenset[str]()
    for pattern, may in rights:
        if not may <= found and pattern.matches(topic):
            found |= may
    return found


def meets(rule: Rule, facts: Facts) -> bool:
    """Whether a token meets the condition of `rule`."""
    if rule.scope is not None:
        return rule.scope in facts.scopes
    if not rule.claim:
        return True
    claim: Any = facts.claims
    for name in rule.claim:
        if not isinstance(claim, Mapping):
            return False
        claim = claim.get(name)
    if isinstance(claim, list):
        return rule.value in claim
    return isinstance(claim, str) and claim == rule.value


def no_right(facts: Facts, rights: Iterable[Right]) -> Refusal:
    """Return why a token has no right on a topic, if its rights are `rights`."""
    what = "the rules that it meets are for other topics" if rights else "it meets no rule"
    return Refusal(
        RefusalReason.NO_RIGHT,
        f"{what}; its scopes: {quoted_list(facts.scopes)}",
        "add a rule for its scopes or claims to [[validator.rules]], or let the client request "
        "another scope",
    )


def condition(rule: Rule) -> str:
    """Return the condition of a rule in words."""
    if rule.scope is not None:
        return f'scope "{rule.scope}"'
    if rule.claim:
        return f'claim {".".join(rule.claim)} "{rule.value}"'
    return "everybody"


def _patterns(rule: Rule, subject: str | None) -> Iterable[TopicPattern]:
    for pattern in rule.topics:
        if isinstance(pattern, TopicPattern):
            yield pattern
        elif subject is not None:
            own = pattern.of(subject)
            if own is not None:
                yield own

"""The rules for the header and the claims of a token, one function for each rule.

`read_claims` applies them in the order of `HEADER_RULES` and `CLAIM_RULES`, and raises for the
first that the token does not meet. `topicsvc.validators.jwt.walk` applies all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from topicsvc.errors import PathRefused, TokenInactive
from topicsvc.refusals import Refusal, RefusalReason, quoted, quoted_list
from topicsvc.settings import IssuerSettings, Rule
from topicsvc.topics import TopicPattern
from topicsvc.validators.jwt.token import Jwt, is_clean
from topicsvc.validators.numeric_date import read_time
from topicsvc.validators.rules import Facts, Right, rights_of

__all__ = [
    "CLAIM_RULES",
    "HEADER_RULES",
    "MAX_DETAIL_TOPICS",
    "Claims",
    "TokenRule",
    "check_header",
    "issuer_of",
    "read_claims",
    "read_facts",
]

MAX_DETAIL_TOPICS = 128
"""Most topics of one entry of ``authorization_details``."""

_ACTIONS = frozenset({"receive", "send"})
_NOT_ALLOWED = ("crit", "jku", "jwk", "x5u")
"""Parameters of a header: the last three would let the token name its own key."""


@dataclass(frozen=True, slots=True)
class Claims:
    """What the claims of a valid token say.

    Attributes:
        facts: for the rules of the settings.
        expires_at: ``exp``, in seconds since the epoch.
        not_before: ``nbf`` less the leeway; 0: not given.
        rights: all rights of the token.
    """

    facts: Facts
    expires_at: float
    not_before: float
    rights: tuple[Right, ...]


@dataclass(frozen=True, slots=True)
class TokenRule:
    """A rule that a token must meet.

    Attributes:
        name: the parameter or claim that it is about.
        check: returns why the token does not meet it; None: it does.
        state: returns the seen and the allowed value in words.
    """

    name: str
    check: Callable[[Jwt, IssuerSettings, float], Refusal | None]
    state: Callable[[Jwt, IssuerSettings, float], str]


def issuer_of(jwt: Jwt, issuers: Mapping[str, Any]) -> str:
    """Return the ``iss`` of a token, which is not verified: it only chooses among `issuers`.

    Raises:
        TokenInactive: it is none of `issuers`.
    """
    issuer = jwt.claims.get("iss")
    if not isinstance(issuer, str) or issuer not in issuers:
        raise TokenInactive(
            Refusal(RefusalReason.ISSUER, f"iss is {_shown(issuer)}; allowed: {_list(issuers)}")
        )
    return issuer


def check_header(jwt: Jwt, issuer: IssuerSettings) -> None:
    """Apply the rules for the header.

    Raises:
        TokenInactive: the token does not meet one.
    """
    _apply(HEADER_RULES, jwt, issuer, 0)


def read_claims(jwt: Jwt, issuer: IssuerSettings, rules: Iterable[Rule], now: float) -> Claims:
    """Apply the rules for the claims, and read them.

    Args:
        jwt: the token.
        issuer: the settings for its issuer.
        rules: the rules of the settings, which give rights.
        now: the time of day, in seconds since the epoch.

    Raises:
        TokenInactive: the token does not meet a rule.
    """
    _apply(CLAIM_RULES, jwt, issuer, now)
    facts = read_facts(jwt, issuer)
    rights = rights_of(rules, facts)
    if issuer.details_type is not None:
        rights += tuple(_details(jwt, issuer.details_type))
    not_before = read_time(jwt.claims.get("nbf")) or 0
    return Claims(facts, jwt.claims["exp"], max(0, not_before - issuer.leeway), rights)


def read_facts(jwt: Jwt, issuer: IssuerSettings) -> Facts:
    """Return subject, scopes and claims of a token that meets the rules for them."""
    return Facts(jwt.claims.get(issuer.subject_claim), frozenset(_scopes(jwt, issuer)), jwt.claims)


def _apply(rules: Iterable[TokenRule], jwt: Jwt, issuer: IssuerSettings, now: float) -> None:
    for rule in rules:
        refusal = rule.check(jwt, issuer, now)
        if refusal is not None:
            raise TokenInactive(refusal)


# Rules for the header.


def _parameters(jwt: Jwt, *_: object) -> Refusal | None:
    for name in _NOT_ALLOWED:
        if name in jwt.header:
            return Refusal(RefusalReason.HEADER, f"it has {name}, which is never used")
    return None


def _type(jwt: Jwt, issuer: IssuerSettings, _: float) -> Refusal | None:
    kind = jwt.header.get("typ", "")
    if isinstance(kind, str) and _normalized(kind) in map(_normalized, issuer.token_types):
        return None
    return Refusal(
        RefusalReason.TOKEN_TYPE,
        _type_state(jwt, issuer, 0),
        "if this server's access tokens have this typ, add it to token_types of the issuer in "
        "[validator]; an ID token must not be accepted",
    )


def _type_state(jwt: Jwt, issuer: IssuerSettings, _: float) -> str:
    return f"typ is {_shown(jwt.header.get('typ'))}; allowed (token_types): " + ", ".join(
        quoted(kind) if kind else "none" for kind in issuer.token_types
    )


def _normalized(kind: str) -> str:
    """A media type without its optional prefix (RFC 7515, section 4.1.9); it has no case."""
    return kind.lower().removeprefix("application/")


def _algorithm(jwt: Jwt, issuer: IssuerSettings, _: float) -> Refusal | None:
    algorithm = jwt.header.get("alg")
    if isinstance(algorithm, str) and algorithm in issuer.algorithms:
        return None
    return Refusal(RefusalReason.ALGORITHM, _algorithm_state(jwt, issuer, 0))


def _algorithm_state(jwt: Jwt, issuer: IssuerSettings, _: float) -> str:
    return f"alg is {_shown(jwt.header.get('alg'))}; allowed: {', '.join(issuer.algorithms)}"


def _key_id(jwt: Jwt, *_: object) -> Refusal | None:
    if isinstance(jwt.header.get("kid", ""), str):
        return None
    return Refusal(RefusalReason.HEADER, "kid is no text")


# Rules for the claims.


def _expiry(jwt: Jwt, issuer: IssuerSettings, now: float) -> Refusal | None:
    expires_at = read_time(jwt.claims.get("exp"))
    if expires_at is None:
        return Refusal(RefusalReason.CLAIMS, _expiry_state(jwt, issuer, now))
    if expires_at <= now:
        return Refusal(RefusalReason.EXPIRED, _expiry_state(jwt, issuer, now))
    return None


def _expiry_state(jwt: Jwt, _: IssuerSettings, now: float) -> str:
    return _time_state("exp", jwt, now)


def _start(jwt: Jwt, issuer: IssuerSettings, now: float) -> Refusal | None:
    if "nbf" not in jwt.claims:
        return None
    not_before = read_time(jwt.claims["nbf"])
    if not_before is None:
        return Refusal(RefusalReason.CLAIMS, _start_state(jwt, issuer, now))
    if not_before > now + issuer.leeway:
        return Refusal(RefusalReason.NOT_YET_VALID, _start_state(jwt, issuer, now))
    return None


def _start_state(jwt: Jwt, issuer: IssuerSettings, now: float) -> str:
    if "nbf" not in jwt.claims:
        return "nbf is missing, which is allowed"
    return f"{_time_state('nbf', jwt, now)}; allowed: up to {issuer.leeway:g} s in the future"


def _time_state(name: str, jwt: Jwt, now: float) -> str:
    time = read_time(jwt.claims.get(name))
    if time is None:
        value = jwt.claims.get(name)
        return f"{name} is {_shown(value)}" + ("" if value is None else ", no time in seconds")
    when = "in the future" if time > now else "in the past"
    return f"{name} is {abs(time - now):.0f} s {when}"


def _audience(jwt: Jwt, issuer: IssuerSettings, _: float) -> Refusal | None:
    value = jwt.claims.get(issuer.audience_claim)
    audience = [value] if isinstance(value, str) else _texts(value)
    if audience is None and issuer.audience_claim in jwt.claims:
        return Refusal(
            RefusalReason.CLAIMS, f"{issuer.audience_claim} is not a text or a list of texts"
        )
    if audience is None or not any(each in issuer.audience for each in audience):
        return Refusal(RefusalReason.AUDIENCE, _audience_state(jwt, issuer, 0))
    return None


def _audience_state(jwt: Jwt, issuer: IssuerSettings, _: float) -> str:
    seen = _shown(jwt.claims.get(issuer.audience_claim))
    return f"{issuer.audience_claim} is {seen}; allowed: {_list(issuer.audience)}"


def _subject(jwt: Jwt, issuer: IssuerSettings, _: float) -> Refusal | None:
    subject = jwt.claims.get(issuer.subject_claim)
    if subject is None or (isinstance(subject, str) and is_clean(subject)):
        return None
    return Refusal(RefusalReason.CLAIMS, f"{issuer.subject_claim} is no text")


def _subject_state(jwt: Jwt, issuer: IssuerSettings, _: float) -> str:
    # A subject is personal data, and may be left out of logs.
    is_given = jwt.claims.get(issuer.subject_claim) is not None
    return f"{issuer.subject_claim} is {'given' if is_given else 'missing: {sub} has no value'}"


def _scope(jwt: Jwt, issuer: IssuerSettings, _: float) -> Refusal | None:
    for name in issuer.scope_claims:
        value = jwt.claims.get(name, "")
        if not isinstance(value, str) and _texts(value) is None:
            return Refusal(RefusalReason.CLAIMS, f"{name} is not a text or a list of texts")
    return None


def _scope_state(jwt: Jwt, issuer: IssuerSettings, _: float) -> str:
    return f"its scopes: {quoted_list(frozenset(_scopes(jwt, issuer)))}"


def _scopes(jwt: Jwt, issuer: IssuerSettings) -> Iterable[str]:
    for name in issuer.scope_claims:
        value = jwt.claims.get(name, "")
        if isinstance(value, str):
            value = [each for each in value.split(" ") if each]
        yield from value


def _authorization_details(jwt: Jwt, issuer: IssuerSettings, _: float) -> Refusal | None:
    if issuer.details_type is None:
        return None
    try:
        for _unused in _details(jwt, issuer.details_type):
            pass
    except ValueError as error:
        return Refusal(RefusalReason.CLAIMS, f"authorization_details: {error}")
    return None


def _details_state(jwt: Jwt, issuer: IssuerSettings, _: float) -> str:
    if issuer.details_type is None:
        return "authorization_details are not used: details_type is not set"
    number = sum(1 for _ in _details(jwt, issuer.details_type))
    return f"authorization_details have {number} patterns of type {quoted(issuer.details_type)}"


def _details(jwt: Jwt, wanted: str) -> Iterable[Right]:
    """Yield the rights in the entries of ``authorization_details`` (RFC 9396) of type `wanted`.

    Raises:
        ValueError: an entry is malformed.
    """
    entries = jwt.claims.get("authorization_details", [])
    if not isinstance(entries, list):
        raise ValueError("not a list")
    for entry in entries:
        if not isinstance(entry, dict) or not isinstance(entry.get("type"), str):
            raise ValueError("an entry without a type")
        if entry["type"] == wanted:
            yield from _entry(entry)


def _entry(entry: Mapping[str, Any]) -> Iterable[Right]:
    actions, topics = _texts(entry.get("actions")), _texts(entry.get("topics"))
    if actions is None or not _ACTIONS.issuperset(actions):
        raise ValueError('actions are not a list of "receive" and "send"')
    if topics is None or len(topics) > MAX_DETAIL_TOPICS:
        raise ValueError(f"topics are not a list of at most {MAX_DETAIL_TOPICS} patterns")
    for text in topics:
        try:
            yield TopicPattern.parse(text), frozenset(actions)
        except PathRefused as error:
            raise ValueError(f"the topic {quoted(text)}: {error}") from None


def _texts(value: Any) -> list[str] | None:
    """Return a list of texts; None: `value` is something else."""
    if isinstance(value, list) and all(isinstance(each, str) for each in value):
        return value
    return None


# Words.


def _shown(value: Any) -> str:
    """Return an untrusted value in words, not too long."""
    if value is None:
        return "missing"
    if isinstance(value, str):
        return quoted(value)
    texts = _texts(value)
    if texts is not None:
        return f"[{quoted_list(texts)}]"
    return {bool: "a boolean", list: "a list", dict: "an object"}.get(type(value), "a number")


def _list(values: Iterable[str]) -> str:
    return ", ".join(map(quoted, values))


HEADER_RULES = (
    TokenRule("header", _parameters, lambda *_: f"it has none of {', '.join(_NOT_ALLOWED)}"),
    TokenRule("typ", _type, _type_state),
    TokenRule("alg", _algorithm, _algorithm_state),
    TokenRule("kid", _key_id, lambda jwt, *_: f"kid is {_shown(jwt.header.get('kid'))}"),
)
"""The rules for the header, in the order in which they are applied."""

CLAIM_RULES = (
    TokenRule("exp", _expiry, _expiry_state),
    TokenRule("nbf", _start, _start_state),
    TokenRule("aud", _audience, _audience_state),
    TokenRule("sub", _subject, _subject_state),
    TokenRule("scope", _scope, _scope_state),
    TokenRule("authorization_details", _authorization_details, _details_state),
)
"""The rules for the claims, in the order in which they are applied."""

"""Validates JWTs in this process, with the public keys of their issuers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from twisted.internet.defer import Deferred, fail, succeed

from topicsvc.errors import TokenInactive, ValidatorUnavailable
from topicsvc.interfaces import Grant, TokenValidator
from topicsvc.refusals import Refusal, RefusalReason, quoted, quoted_list
from topicsvc.settings import JwtSettings
from topicsvc.topics import TopicAddress
from topicsvc.validators.jwt.claims import Claims, check_header, issuer_of, read_claims
from topicsvc.validators.jwt.key_source import FixedKeys, KeySource
from topicsvc.validators.jwt.keys import Key, KeySet, verify
from topicsvc.validators.jwt.token import parse
from topicsvc.validators.rules import Right, no_right, rights_on
from topicsvc.validators.token_cache import TokenCache

__all__ = ["MAX_REMEMBERED_RIGHTS", "MAX_TOKENS", "JwtValidator", "UnknownKey", "choose_key"]

MAX_TOKENS = 10000
"""Tokens whose verified claims are remembered: some 10 MB."""

MAX_REMEMBERED_RIGHTS = 32
"""Most patterns of a remembered token, unless the rules have more of them.

A token with more is verified at each use."""

_MAX_REMEMBERED_SUBJECT = 1024


class UnknownKey(Exception):
    """The keys at hand do not have the key of a token; the next fetch may find it.

    Attributes:
        key_id: the name of the key; None: the token has none.
        refusal: the reason for a refusal, if the next fetch does not find it.
    """

    def __init__(self, key_id: str | None, refusal: Refusal) -> None:
        super().__init__(str(refusal))
        self.key_id = key_id
        self.refusal = refusal


@dataclass(frozen=True, slots=True)
class _Verified:
    """What is remembered of a token whose signature and claims are valid."""

    key: Key
    subject: str | None
    expires_at: float
    not_before: float
    rights: tuple[Right, ...]
    no_right: Refusal


class JwtValidator(TokenValidator):
    """Validates tokens by their signature and claims.

    A sender shows its token with each message, so verified tokens are remembered. At each use
    expiry and topic are checked, and that the issuer has not withdrawn the key.

    Args:
        settings: the issuers and the rules.
        sources: the keys of each issuer, by its name.
        now: the time of day, in seconds since the epoch, which decides about expiry.
        max_tokens: tokens that are remembered. If there are more, the oldest is evicted.
    """

    def __init__(
        self,
        settings: JwtSettings,
        sources: Mapping[str, KeySource | FixedKeys],
        now: Callable[[], float],
        max_tokens: int = MAX_TOKENS,
    ) -> None:
        self._issuers = {each.issuer: each for each in settings.issuers}
        self._rules = settings.rules
        self._max_rights = max(
            MAX_REMEMBERED_RIGHTS, sum(len(rule.topics) for rule in settings.rules)
        )
        self._now = now
        self._cache = TokenCache[_Verified](max_tokens)
        self.sources = sources

    def validate(self, token: str, topic: TopicAddress) -> Deferred[Grant]:
        """See `topicsvc.interfaces.TokenValidator`.

        The Deferred has fired already, unless the token waits for the next keys of its issuer.
        """
        key = self._cache.key(token)
        try:
            return succeed(self._grant(self._remembered(key) or self._verify(token, key), topic))
        except (TokenInactive, ValidatorUnavailable) as error:
            return fail(error)
        except _Wait as wait:
            known = wait.source.wait(wait.key_id, wait.algorithm)
            return known.addCallback(lambda _: self._grant(self._verify_finally(token, key), topic))

    def remembered(self, token: str, topic: TopicAddress) -> Grant | None:
        """See `topicsvc.interfaces.TokenValidator`."""
        verified = self._remembered(self._cache.key(token))
        try:
            return None if verified is None else self._grant(verified, topic)
        except TokenInactive:
            return None

    def _remembered(self, key: bytes) -> _Verified | None:
        verified = self._cache.get(key)
        if verified is None or verified.key.is_current:
            return verified
        self._cache.discard(key)
        return None

    def _grant(self, verified: _Verified, topic: TopicAddress) -> Grant:
        now = self._now()
        if verified.expires_at <= now:
            raise TokenInactive(Refusal(RefusalReason.EXPIRED))
        if verified.not_before > now:
            raise TokenInactive(Refusal(RefusalReason.NOT_YET_VALID))
        rights = rights_on(topic, verified.rights)
        return Grant(
            verified.subject,
            verified.expires_at,
            "receive" in rights,
            "send" in rights,
            None if rights else verified.no_right,
        )

    def _verify_finally(self, token: str, cache_key: bytes) -> _Verified:
        """Verify a token after a fetch; an unknown key refuses it."""
        try:
            return self._verify(token, cache_key)
        except _Wait as wait:
            raise TokenInactive(wait.refusal) from None

    def _verify(self, token: str, cache_key: bytes) -> _Verified:
        jwt = parse(token)
        issuer = self._issuers[issuer_of(jwt, self._issuers)]
        check_header(jwt, issuer)
        source = self.sources[issuer.issuer]
        keys = source.require_keys()
        algorithm, key_id = jwt.header["alg"], jwt.header.get("kid")
        try:
            key = choose_key(keys, key_id, algorithm)
        except UnknownKey as unknown:
            read_claims(jwt, issuer, (), self._now())  # a token that has expired need not wait
            raise _Wait(source, unknown.key_id, algorithm, unknown.refusal) from None
        except TokenInactive:
            source.request_fetch()  # its issuer may have changed the key, or publish it again
            raise
        if not verify(key, algorithm, jwt.signed, jwt.signature):
            source.request_fetch()  # its issuer may have replaced the key under the same name
            raise TokenInactive(Refusal(RefusalReason.SIGNATURE))
        claims = read_claims(jwt, issuer, self._rules, self._now())
        verified = _Verified(
            key,
            claims.facts.subject,
            claims.expires_at,
            claims.not_before,
            claims.rights,
            no_right(claims.facts, claims.rights),
        )
        if self._is_small(claims):
            self._cache.put(cache_key, verified)
        return verified

    def _is_small(self, claims: Claims) -> bool:
        """Whether a token takes little memory when it is remembered."""
        subject = claims.facts.subject or ""
        return len(claims.rights) <= self._max_rights and len(subject) <= _MAX_REMEMBERED_SUBJECT


def choose_key(keys: KeySet | None, key_id: str | None, algorithm: str) -> Key:
    """Return the one key with which a token may have been signed.

    Args:
        keys: the keys of its issuer; None: they are being fetched.
        key_id: ``kid`` of the token; None: it has none.
        algorithm: ``alg`` of the token.

    Raises:
        UnknownKey: the next fetch may find the key.
        TokenInactive: several keys fit, the key is not for this algorithm, or it was withdrawn.
    """
    if keys is None:
        raise UnknownKey(key_id, Refusal(RefusalReason.UNKNOWN_KEY, "there are no keys yet"))
    found = keys.find(key_id, algorithm)
    if len(found) == 1:
        return found[0]
    name = "kid is missing" if key_id is None else f"kid is {quoted(key_id)}"
    if found:
        raise TokenInactive(
            Refusal(RefusalReason.UNKNOWN_KEY, f"{name}, and {len(found)} keys fit")
        )
    if key_id is not None and keys.has(key_id):
        raise TokenInactive(
            Refusal(RefusalReason.ALGORITHM, f"the key {quoted(key_id)} is not for {algorithm}")
        )
    names = quoted_list(key.key_id for key in keys.keys if key.key_id is not None)
    refusal = Refusal(RefusalReason.UNKNOWN_KEY, f"{name}; keys of the issuer: {names}")
    if key_id in keys.withdrawn:
        raise TokenInactive(refusal)
    raise UnknownKey(key_id, refusal)


class _Wait(Exception):
    """The token must wait for the next fetch of `source`."""

    def __init__(
        self,
        source: KeySource | FixedKeys,
        key_id: str | None,
        algorithm: str,
        refusal: Refusal,
    ) -> None:
        super().__init__()
        self.source = source
        self.key_id = key_id
        self.algorithm = algorithm
        self.refusal = refusal

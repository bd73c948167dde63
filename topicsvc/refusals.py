"""The reasons for which tokens are refused, with advice for operators.

The client sees `Token inactive` alone. The reason goes to the log and to the metrics. A validator
gives it with the exception, or with a grant that lacks rights::

    raise TokenInactive(
        Refusal(RefusalReason.AUDIENCE, f"{quoted(expected)} is required, it has {quoted(seen)}")
    )
    Grant(subject, expires_at, False, False, Refusal(RefusalReason.NO_RIGHT, "no rule matches"))

Wrappers pass the exception and the grant on as they are. The session log, the log of refused
sends, `topicsvc doctor` and the metrics read the refusal.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

__all__ = ["MAX_QUOTED", "MAX_QUOTED_VALUES", "Refusal", "RefusalReason", "quoted", "quoted_list"]

MAX_QUOTED = 80
"""Most characters of a value of a token in a detail; values may be written by anybody."""

MAX_QUOTED_VALUES = 3
"""Most values of a list in a detail."""


class RefusalReason(Enum):
    """Why a token is refused. The set is fixed, so that refusals can be counted by reason.

    Attributes:
        label: its name in metrics and in the log's JSON; it stays the same in later versions.
        text: the reason in words.
        advice: what an operator can do.
    """

    def __init__(self, label: str, text: str, advice: str) -> None:
        self.label = label
        self.text = text
        self.advice = advice

    MALFORMED = (
        "malformed",
        "it is no token of the configured kind",
        "check which token the client sends, and validator.kind",
    )
    CLAIMS = (
        "invalid_claims",
        "a claim is missing or invalid",
        "correct the claims that the issuer of the token writes",
    )
    HEADER = (
        "invalid_header",
        "its header is not allowed",
        "let the issuer of the token write another header",
    )
    TOKEN_TYPE = (
        "wrong_type",
        "another type of token",
        "the client must present an access token; see docs/validators.md",
    )
    ALGORITHM = (
        "wrong_algorithm",
        "another signature algorithm",
        "let the issuer sign with an allowed algorithm; see docs/validators.md",
    )
    UNKNOWN_KEY = (
        "unknown_key",
        "it was signed with an unknown key",
        "compare the keys that the issuer publishes with the key ID of its tokens",
    )
    SIGNATURE = (
        "invalid_signature",
        "its signature is not valid",
        "the token was signed with another key, or was changed: compare the keys of the issuer "
        "and of topicsvc",
    )
    ISSUER = (
        "wrong_issuer",
        "another issuer",
        "correct the issuer in [validator], or let the client get its token from that issuer",
    )
    AUDIENCE = (
        "wrong_audience",
        "another audience",
        "correct the audience in [validator], or let the client request a token for that audience",
    )
    EXPIRED = (
        "expired",
        "it has expired",
        "the client must present a new token in time; if many clients are refused, compare the "
        "clocks of this host and of the token issuer",
    )
    NOT_YET_VALID = (
        "not_yet_valid",
        "it is not valid yet",
        "compare the clocks of this host and of the token issuer",
    )
    NOT_ACTIVE = (
        "not_active",
        "its server says that it is not active",
        "the token has expired, was revoked, or is from another server: let the client get a new "
        "one",
    )
    UNIT_REFUSED = (
        "refused_by_unit",
        "the unit refuses it",
        "the token needs read-properties on the collection; see docs/validators.md",
    )
    NO_CELL = (
        "no_cell",
        "the cell does not exist",
        "check the URL that the client opens, and validator.cell_urls",
    )
    NO_COLLECTION = (
        "no_collection",
        "the collection does not exist",
        "check the URL that the client opens, and validator.cell_urls",
    )
    NOT_REGISTERED = (
        "topic_not_registered",
        "the topic is not registered in a stream collection",
        "register the topic in its collection, or correct the URL that the client opens",
    )
    NOT_LISTED = (
        "topic_not_listed",
        "the topic is not in the setting topics",
        "add the topic to the setting topics, or correct the URL that the client opens",
    )
    TOPIC_NAME = (
        "topic_name",
        "the broker cannot have a topic of this name",
        "use another name for the topic; see docs/brokers.md",
    )
    NO_RIGHT = (
        "no_right",
        "it gives no right on this topic",
        "grant its owner a right on the topic; see docs/validators.md",
    )
    MAY_NOT_RECEIVE = (
        "may_not_receive",
        "it may send to this topic, and not receive from it",
        "grant its owner the right to receive; see docs/validators.md",
    )
    MAY_NOT_SEND = (
        "may_not_send",
        "it may receive from this topic, and not send to it",
        "grant its owner the right to send; see docs/validators.md",
    )
    OTHER = ("other", "the validator refuses it", "see docs/validators.md")


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why one token is refused.

    Attributes:
        reason: one of the fixed reasons.
        detail: the configured and the seen value, for example; empty: nothing to add. It has no
            token, no secret and no subject, and quotes values of a token with `quoted`.
        specific_advice: replaces the advice of the reason; empty: that advice fits.
    """

    reason: RefusalReason
    detail: str = ""
    specific_advice: str = ""

    def __str__(self) -> str:
        return f"{self.reason.text}: {self.detail}" if self.detail else self.reason.text

    @property
    def advice(self) -> str:
        """What an operator can do."""
        return self.specific_advice or self.reason.advice


def quoted(value: str) -> str:
    """Return an untrusted value for a detail: in ASCII, on one line, in quotes, not too long."""
    text = json.dumps(value[:MAX_QUOTED])
    return f"{text}..." if len(value) > MAX_QUOTED else text


def quoted_list(values: Iterable[str]) -> str:
    """Return untrusted values for a detail, sorted; of many, the first and their number."""
    ordered = sorted(values)
    shown = ", ".join(map(quoted, ordered[:MAX_QUOTED_VALUES])) or "none"
    left = len(ordered) - MAX_QUOTED_VALUES
    return f"{shown} and {left} more" if left > 0 else shown

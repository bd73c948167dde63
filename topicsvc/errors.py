"""Defines every exception that topicsvc raises on purpose.

::

    TopicsvcError
    |-- AddressError            a URL that is not the URL of a topic
    |   |-- HostRefused         the Host header is wrong            (HTTP 400)
    |   `-- PathRefused         the path is not a topic's path      (HTTP 404)
    |-- InvalidMessage          a message that is not a token message
    |-- InvalidBody             a sent body that is not one JSON value
    |-- TokenInactive           the token is refused
    |   `-- TopicNotFound       the token is valid, the topic does not exist
    |-- Unavailable             no result now; the same request may succeed later
    |   |-- ValidatorUnavailable
    |   |   `-- CollectionUnreadable    what the unit says about one collection is not usable
    |   |-- BrokerUnavailable
    |   |-- WorkerUnavailable       a worker process does not answer
    |   |   `-- WorkerFailed        it has answered that it could not do what it was asked to
    |   |-- TooManyFailedTokens     an address has presented too many invalid tokens
    |   `-- TooManySessions         a cell has too many sessions
    |-- StompError              bytes that are not STOMP 1.2
    `-- ConfigError             invalid settings, each with its key
"""

from __future__ import annotations

from collections.abc import Sequence

from topicsvc.refusals import Refusal

__all__ = [
    "AddressError",
    "BrokerUnavailable",
    "CollectionUnreadable",
    "ConfigError",
    "HostRefused",
    "InvalidBody",
    "InvalidMessage",
    "PathRefused",
    "StompError",
    "TokenInactive",
    "TooManyFailedTokens",
    "TooManySessions",
    "TopicNotFound",
    "TopicsvcError",
    "Unavailable",
    "ValidatorUnavailable",
    "WorkerFailed",
    "WorkerUnavailable",
]


class TopicsvcError(Exception):
    """The base class of all of them."""


class AddressError(TopicsvcError):
    """A URL is not the URL of a topic."""


class HostRefused(AddressError):
    """The Host header is missing, repeated, malformed or names another server."""


class PathRefused(AddressError):
    """The path is not that of a topic: a wrong shape, or a name outside the grammar."""


class InvalidMessage(TopicsvcError):
    """A client's message is not a token message."""


class InvalidBody(TopicsvcError):
    """A sent body is not one JSON value in UTF-8."""


class TokenInactive(TopicsvcError):
    """The token was validated and is refused.

    Attributes:
        refusal: the reason, for the operator; the client is not told.
    """

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(str(refusal))
        self.refusal = refusal


class TopicNotFound(TokenInactive):
    """The token is valid, but the topic does not exist.

    A WebSocket client gets the same reply as for any refused token. A send gets HTTP 404.
    """


class Unavailable(TopicsvcError):
    """There is no result now; the same request may succeed later.

    Attributes:
        advice: what an operator can do.
    """

    advice = "check the validator and the broker: see /health/ready and earlier lines of the log"


class ValidatorUnavailable(Unavailable):
    """The validator cannot be reached, is too slow, or its response cannot be parsed."""

    advice = "check the validator; see docs/validators.md"


class CollectionUnreadable(ValidatorUnavailable):
    """What the unit says about one collection cannot be parsed. Its owner may have caused it."""


class BrokerUnavailable(Unavailable):
    """The broker cannot accept a message or confirm a subscription now."""

    advice = "check the broker; see docs/brokers.md"


class WorkerUnavailable(Unavailable):
    """A worker process does not answer the parent; the text says why."""

    advice = "see the log of the worker"


class WorkerFailed(WorkerUnavailable):
    """A worker process has answered with an error; the text is the error."""


class TooManyFailedTokens(Unavailable):
    """The token was not validated, because its address presented too many invalid ones.

    Attributes:
        seconds: until tokens of this address are validated again.
    """

    advice = (
        "find out which invalid tokens this address sends; behind a proxy, pass the addresses of "
        "clients on (docs/security.md)"
    )

    def __init__(self, seconds: float) -> None:
        super().__init__("too many tokens from this address were not valid")
        self.seconds = seconds


class TooManySessions(Unavailable):
    """A session cannot start, because its cell has as many as one cell may have."""

    advice = "find out which clients of the cell connect, or raise limits.connections_per_cell"

    def __init__(self) -> None:
        super().__init__("the cell has as many sessions as limits.connections_per_cell allows")


class StompError(TopicsvcError):
    """A broker's bytes, or a frame for the broker, are not STOMP 1.2."""


class ConfigError(TopicsvcError):
    """The settings cannot be used.

    Attributes:
        problems: one line for each problem, with the key, the problem and the allowed values.
    """

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = tuple(problems)

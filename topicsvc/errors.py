"""Pure: every exception that topicsvc raises on purpose.

::

    TopicsvcError
    |-- AddressError            a URL that names nothing here
    |   |-- HostRefused         the Host is not this unit            (HTTP 400)
    |   `-- PathRefused         the path is no topic of this unit    (HTTP 404)
    |-- InvalidMessage          a request that is not a token message
    |-- InvalidBody             a sent body that is not one JSON value
    |-- TokenInactive           a plain "no" about a token
    |   `-- TopicNotFound       the token lives, the topic does not exist
    |-- Unavailable             nobody could be asked
    |   |-- ValidatorUnavailable
    |   |-- BrokerUnavailable
    |   `-- TooManyFailedTokens     who shows a token has shown too many bad ones
    |-- StompError              bytes that are not STOMP 1.2
    `-- ConfigError             settings that cannot be used, each with its key
"""

from __future__ import annotations

from collections.abc import Sequence

__all__ = [
    "AddressError",
    "BrokerUnavailable",
    "ConfigError",
    "HostRefused",
    "InvalidBody",
    "InvalidMessage",
    "PathRefused",
    "StompError",
    "TokenInactive",
    "TooManyFailedTokens",
    "TopicNotFound",
    "TopicsvcError",
    "Unavailable",
    "ValidatorUnavailable",
]


class TopicsvcError(Exception):
    """The root of the tree."""


class AddressError(TopicsvcError):
    """A URL that names nothing here."""


class HostRefused(AddressError):
    """The Host header is missing, repeated, malformed or names another server."""


class PathRefused(AddressError):
    """The path is not that of a topic: a wrong shape or a name outside the grammar."""


class InvalidMessage(TopicsvcError):
    """A client's message that is not a token message."""


class InvalidBody(TopicsvcError):
    """A sent body that is not one JSON value in UTF-8."""


class TokenInactive(TopicsvcError):
    """The token was judged, and the answer is no."""


class TopicNotFound(TokenInactive):
    """The token is live but the topic does not exist.

    A WebSocket client is told no more than for any other refused token; the send side
    answers 404.
    """


class Unavailable(TopicsvcError):
    """The question could not be decided now; the same request may succeed later."""


class ValidatorUnavailable(Unavailable):
    """The token could not be judged: its judge is down, slow or answers nonsense."""


class BrokerUnavailable(Unavailable):
    """The broker cannot take a message or confirm a subscription now."""


class TooManyFailedTokens(Unavailable):
    """Nobody was asked about a token: too many from its address were no good.

    Attributes:
        seconds: until tokens from there are looked at again.
    """

    def __init__(self, seconds: float) -> None:
        super().__init__("too many tokens from this address were no good")
        self.seconds = seconds


class StompError(TopicsvcError):
    """A broker's bytes, or a frame for it, are not STOMP 1.2."""


class ConfigError(TopicsvcError):
    """Settings that cannot be used.

    Attributes:
        problems: one line for each, naming the key, what is wrong and what is allowed.
    """

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = tuple(problems)

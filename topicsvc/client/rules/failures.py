"""The exceptions that an application sees."""

from __future__ import annotations

from .close_codes import TOKEN_INACTIVE
from .effects import End

__all__ = ["Failed", "SendFailed", "TokenRefused", "failure"]


class Failed(Exception):
    """The client has given up.

    Attributes:
        end: why the last connection ended.
    """

    def __init__(self, end: End) -> None:
        super().__init__(str(end))
        self.end = end


class TokenRefused(Failed):
    """The token was refused, and so was a fresh one; or the application has none.

    An application raises it in its function ``get_token`` if it will not have a token again.
    """

    def __init__(self, why: str | End = TOKEN_INACTIVE) -> None:
        super().__init__(why if isinstance(why, End) else End(reason=TOKEN_INACTIVE, detail=why))


class SendFailed(Exception):
    """A message was not accepted.

    Attributes:
        status: the HTTP status; 0: there was no response.
        code: the code in the response, such as ``PR403-AU-0002``; empty if there is none.
    """

    def __init__(self, text: str, status: int = 0, code: str = "") -> None:
        super().__init__(text)
        self.status = status
        self.code = code


def failure(end: End | None) -> Failed:
    """The exception of a client that has given up."""
    end = end or End()
    return TokenRefused(end) if end.reason == TOKEN_INACTIVE else Failed(end)

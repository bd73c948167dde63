"""Checks the token of ``admin.token_file``, which ends sessions."""

from __future__ import annotations

import re
from collections.abc import Sequence
from hashlib import sha256
from hmac import compare_digest

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from topicsvc.admin.answers import Answer, error_answer
from topicsvc.scheduling.log_throttle import LogThrottle

__all__ = ["OperatorToken"]

_BEARER = re.compile(rb"(?i:bearer) +([!-~]+) *")
_CHALLENGE = ((b"www-authenticate", b'Bearer realm="topicsvc admin"'),)


class OperatorToken:
    """The token of an operator.

    Args:
        clock: limits the lines of the log.
        token: the token that requests must have; None: there is none.
    """

    _log = Logger()

    def __init__(self, clock: IReactorTime, token: str | None) -> None:
        self._clock = clock
        self._throttle = LogThrottle(60)
        self.set(token)

    def set(self, token: str | None) -> None:
        """Set the token; None: there is none."""
        self._digest = None if token is None else sha256(token.encode()).digest()

    @property
    def is_set(self) -> bool:
        """Whether there is a token."""
        return self._digest is not None

    def refusal(self, authorization: Sequence[bytes], caller: str) -> Answer | None:
        """The response to a request without the token; None: it has the token.

        Args:
            authorization: the values of its ``Authorization`` headers.
            caller: the address of its client, for the log.
        """
        match = _BEARER.fullmatch(authorization[0]) if len(authorization) == 1 else None
        if match is None:
            error = "the token is missing; allowed: Authorization: Bearer, with admin.token_file"
            return error_answer(401, error, _CHALLENGE)
        # Digests have one length, so the comparison takes the same time for each token.
        if self._digest is None or not compare_digest(sha256(match[1]).digest(), self._digest):
            if self._throttle.allow("", self._clock.seconds()):
                self._log.warn(
                    "a request of {caller} to end sessions has a wrong token: see admin.token_file",
                    caller=caller,
                )
            return error_answer(401, "wrong token; allowed: that of admin.token_file", _CHALLENGE)
        return None

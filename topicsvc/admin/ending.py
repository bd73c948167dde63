"""Ends sessions on behalf of an operator with the token of ``admin.token_file``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from hashlib import sha256
from hmac import compare_digest

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from topicsvc.admin.answers import Answer, error_answer, json_answer
from topicsvc.admin.inspection import selector
from topicsvc.admin.query import read_end
from topicsvc.printable import printable
from topicsvc.scheduling.log_throttle import LogThrottle
from topicsvc.scheduling.pieces import Pieces
from topicsvc.websocket.server import WebSocketServer

__all__ = ["Ending"]

PIECE = 16
"""Sessions of a piece of work that only looks for those to end."""

_BEARER = re.compile(rb"(?i:bearer) +([!-~]+) *")
_CHALLENGE = ((b"www-authenticate", b'Bearer realm="topicsvc admin"'),)


class Ending:
    """Ends sessions.

    Args:
        websocket_server: the sessions.
        clock: limits the lines of the log.
        token: the token that requests must have; None: no session can be ended.
    """

    _log = Logger()

    def __init__(
        self, websocket_server: WebSocketServer, clock: IReactorTime, token: str | None
    ) -> None:
        self._websocket_server = websocket_server
        self._clock = clock
        self._throttle = LogThrottle(60)
        self.set_token(token)

    def set_token(self, token: str | None) -> None:
        """Set the token; None: no session can be ended."""
        self._digest = None if token is None else sha256(token.encode()).digest()

    @property
    def is_enabled(self) -> bool:
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

    def end(self, body: bytes, caller: str) -> Pieces[Answer]:
        """End the sessions that `body` selects, in pieces.

        Raises:
            InvalidRequest: `body` cannot be used.
        """
        key, value, reason = read_end(body)
        return self._end(key, value, printable(reason), caller)

    def _end(self, key: str, value: object, reason: str, caller: str) -> Pieces[Answer]:
        matches = selector(key, value)
        ended = 0
        for number, connection in enumerate(self._websocket_server.active_sessions(), 1):
            if matches(connection):
                try:
                    connection.end_by_operator(reason)
                except Exception:
                    self._log.failure("could not end {peer}", peer=connection.peer)
                ended += 1
                yield
            elif not number % PIECE:
                yield
        has_subjects = self._websocket_server.context.session_log.has_subjects
        is_left_out = key == "subject" and not has_subjects  # by log.subjects
        self._log.info(
            "{ended} {sessions} of {key} {value} ended by the operator at {caller}: {reason}",
            ended=ended,
            sessions="session" if ended == 1 else "sessions",
            key=key,
            value="-" if is_left_out else printable(str(getattr(value, "path", value)))[:200],
            caller=caller,
            reason=reason,
        )
        return json_answer({"ended": ended})

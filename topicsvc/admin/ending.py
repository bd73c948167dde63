"""Ends sessions on behalf of an operator with the token of ``admin.token_file``."""

from __future__ import annotations

from twisted.logger import Logger

from topicsvc.admin.answers import Answer, json_answer
from topicsvc.admin.inspection import selector
from topicsvc.admin.query import read_end
from topicsvc.printable import printable
from topicsvc.scheduling.pieces import Pieces
from topicsvc.websocket.server import WebSocketServer

__all__ = ["Ending"]

PIECE = 16
"""Sessions of a piece of work that only looks for those to end."""


class Ending:
    """Ends sessions.

    Args:
        websocket_server: the sessions.
    """

    _log = Logger()

    def __init__(self, websocket_server: WebSocketServer) -> None:
        self._websocket_server = websocket_server

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

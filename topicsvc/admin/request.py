"""A request to the admin pages, whichever way it has come."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["AdminRequest"]


@dataclass(frozen=True, slots=True)
class AdminRequest:
    """A request: it came over HTTP, or over the control socket of a worker.

    Attributes:
        method: its method.
        path: the path of its URL, percent-encoded.
        query: the query of its URL, percent-encoded.
        accept: its ``Accept`` headers, joined.
        authorization: its ``Authorization`` headers.
        body: its body.
        caller: the address of its client, for the log.
        is_of_parent: whether the parent of this worker asks, to merge the answers of its workers.
            It has checked that the page is switched on, and the token.
    """

    method: bytes
    path: bytes
    query: bytes = b""
    accept: str = ""
    authorization: tuple[bytes, ...] = ()
    body: bytes = b""
    caller: str = ""
    is_of_parent: bool = False

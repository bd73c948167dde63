"""Which Redis it is: a server that has lost messages has another identity than before."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Final

from topicsvc.brokers.redis.scripts import InvalidReply

__all__ = ["IDENTIFY", "Identity", "parse_info"]

IDENTIFY: Final = ("INFO", "server", "replication", "persistence")
"""The command whose reply `parse_info` parses."""


@dataclass(frozen=True, slots=True)
class Identity:
    """A Redis process, and its time as the primary.

    Attributes:
        run_id: of the process; another one after each restart.
        replication_id: of the data; another one after each promotion of a replica.
        unusable: why it can be used for nothing now; empty: it can be used.
    """

    run_id: str
    replication_id: str = ""
    unusable: str = ""

    @classmethod
    def unknown(cls) -> Identity:
        """An identity that no server has, because this one does not tell its own."""
        return cls(secrets.token_hex(16))

    def epoch(self, topic: str, generation: int) -> str:
        """Return the epoch of a topic's log: 20 characters of ``0-9 a-f``."""
        parts = ("redis", self.run_id, self.replication_id, topic, str(generation))
        return sha256("\n".join(parts).encode("utf-8")).hexdigest()[:20]


def parse_info(reply: Any) -> Identity:
    """Parse the reply to `IDENTIFY`.

    Raises:
        InvalidReply: it does not name the process.
    """
    try:
        lines = reply.decode("utf-8", "replace").splitlines()
    except AttributeError:
        raise InvalidReply("not the text of INFO") from None
    values = dict(line.split(":", 1) for line in lines if ":" in line)
    if not values.get("run_id"):
        raise InvalidReply("INFO does not contain run_id")
    unusable = ""
    if values.get("loading", "0") != "0":
        unusable = "it is loading its data"
    elif values.get("role") == "slave":
        unusable = "it is a replica"
    return Identity(values["run_id"], values.get("master_replid", ""), unusable)

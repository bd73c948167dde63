"""What the log of a worker needs to know, so that the logs of all workers can be read as one.

The parent passes it in the environment: other users can see a command line, and not this.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from dataclasses import dataclass, field

__all__ = ["WorkerIdentity"]

_NUMBER = "TOPICSVC_WORKER_NUMBER"
_KEY = "TOPICSVC_TOKEN_ID_KEY"


@dataclass(frozen=True, slots=True)
class WorkerIdentity:
    """One worker among all that its parent has started.

    Attributes:
        number: from 1 on; no other worker of the parent has it.
        token_id_key: the key of `topicsvc.validators.token_id.TokenIds`; all workers have it.
    """

    number: int
    token_id_key: bytes = field(repr=False)

    def environment(self) -> dict[str, str]:
        """The variables for the worker."""
        return {_NUMBER: str(self.number), _KEY: self.token_id_key.hex()}

    @classmethod
    def take(cls, environment: MutableMapping[str, str]) -> WorkerIdentity:
        """Read the variables, and remove them."""
        return cls(int(environment.pop(_NUMBER)), bytes.fromhex(environment.pop(_KEY)))

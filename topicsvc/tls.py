"""Adapter: TLS connections that are freed when they are lost.

When a TLS connection ends in a fault, as most do, Twisted keeps the fault with its traceback
in a local variable of one of the traceback's own frames. That is a cycle, and in its frames
are the connection and a buffer of 32 KiB. The garbage collector, which is kept rare here,
would find them long after; 1,000 such connections were 25 MB.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.interfaces import IListeningPort
from twisted.protocols.tls import BufferingTLSTransport, TLSMemoryBIOFactory
from twisted.python.failure import Failure

__all__ = ["FreedTransport", "free_when_lost"]


class FreedTransport(BufferingTLSTransport):
    """A TLS connection whose faults hold on to nothing."""

    def _tlsShutdownFinished(self, reason: Failure | None) -> None:
        if reason is not None:
            reason.cleanFailure()
        super()._tlsShutdownFinished(reason)  # type: ignore[no-untyped-call]


def free_when_lost(port: IListeningPort) -> None:
    """See to it that connections of `port` are freed at once, if it has TLS."""
    factory: Any = getattr(port, "factory", None)
    if isinstance(factory, TLSMemoryBIOFactory):
        factory.protocol = FreedTransport

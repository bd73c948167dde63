"""Registers ``twistd topicsvc``."""

from twisted.application.service import ServiceMaker

topicsvc = ServiceMaker(
    "topicsvc",
    "topicsvc.service",
    "Token-guarded topics over WebSocket for Personium stream collections.",
    "topicsvc",
)

"""Composition: a message's whole way, through a service that is made for it alone."""

from __future__ import annotations

import json
import secrets
from dataclasses import replace
from typing import Any

from autobahn.twisted.websocket import WebSocketClientFactory
from twisted.internet.defer import Deferred
from twisted.internet.defer import TimeoutError as TimedOut
from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.internet.task import deferLater
from twisted.python.failure import Failure

from topicsvc.cli.doctor.report import Reporter
from topicsvc.cli.send import post
from topicsvc.cli.subscribe import Subscriber
from topicsvc.errors import TokenInactive, TopicNotFound, Unavailable
from topicsvc.interfaces import Grant
from topicsvc.service import TopicService
from topicsvc.settings import StopSettings
from topicsvc.topics import TopicAddress
from topicsvc.validators.http_client import AsciiUrl

__all__ = ["TIMEOUT", "RoundTrip"]

TIMEOUT = 15.0
"""Seconds for a broker to come up, and for a message to arrive."""

_LOOPBACK = "127.0.0.1"


class RoundTrip(Reporter):
    """Subscribes, sends and receives. For the arguments see `Reporter`."""

    async def all(self, token: str, topic: TopicAddress) -> None:
        """Go as far as the token's rights and the parts on the way allow."""
        settings = replace(
            self._settings,
            listen=(f"tcp:0:interface={_LOOPBACK}",),
            admin=None,
            stop=StopSettings(0),
        )
        service = TopicService(settings, self._reactor)
        service.privilegedStartService()
        service.startService()
        try:
            until = self._reactor.seconds() + TIMEOUT
            while not service.broker.is_up and self._reactor.seconds() < until:
                await deferLater(self._reactor, 0.1)
            grant = await self._judge(service, token, topic)
            if grant is not None:
                port = service.ports[0].getHost().port  # type: ignore[attr-defined]
                await self._go(token, topic, grant, port)
        finally:
            await service.stopService()

    async def _judge(self, service: TopicService, token: str, topic: TopicAddress) -> Grant | None:
        try:
            grant = await service.websocket_server.context.validator.validate(token, topic)
        except TopicNotFound:
            self.fail("token", f"it lives, but {topic.path} does not exist")
            return None
        except TokenInactive:
            self.fail(
                "token", f"it is refused for {topic.path}: expired, of another issuer, or no right"
            )
            return None
        except Unavailable as error:
            self.fail("token", f"it cannot be judged: {error}")
            return None
        rights = ["receive"] * grant.may_receive + ["send"] * grant.may_send
        if not rights:
            self.fail(
                "token", f"it lives, but may neither receive from {topic.path} nor send to it"
            )
            return None
        left = int(grant.expires_at - self._now())
        self.ok("token", f"it may {' and '.join(rights)}, for {left} s")
        return grant

    async def _go(self, token: str, topic: TopicAddress, grant: Grant, port: int) -> None:
        nonce = secrets.token_hex(8)
        arrival = _Arrival(nonce)
        if grant.may_receive:
            arrival.wait_at(self._reactor, self._host, port, token, topic)
            if not await self._reached("subscribe", topic.path, arrival.welcomed):
                return
        if not grant.may_send:
            return
        if not self._settings.send.enabled:
            self.warn("send", "switched off: [send] enabled")
            return
        url = AsciiUrl.from_text(f"http://{_LOOPBACK}:{port}{topic.send_path}")
        body = json.dumps({"topicsvc doctor": nonce}).encode("ascii")
        refused = await post(url, token, body, self._host)
        if refused:
            self.fail("send", refused)
            return
        self.ok("send", topic.path)
        if grant.may_receive:
            await self._reached("receive", "what was sent has arrived", arrival.arrived)

    async def _reached(self, what: str, text: str, reached: Deferred[None]) -> bool:
        try:
            await reached.addTimeout(TIMEOUT, self._reactor)
        except TimedOut:
            self.fail(what, f"nothing within {TIMEOUT:.0f} s")
            return False
        except Exception as error:  # whatever ends a connection
            self.fail(what, str(error) or type(error).__name__)
            return False
        self.ok(what, text)
        return True

    @property
    def _host(self) -> str:
        return min(self._settings.unit.hosts)


class _Arrival:
    """Waits on a topic for one message among others.

    Attributes:
        welcomed: fires when the session has begun, or fails with why it has not.
        arrived: fires when the message is there; it never is when the session has ended.
    """

    def __init__(self, nonce: str) -> None:
        self._nonce = nonce
        self.welcomed: Deferred[None] = Deferred()
        self.arrived: Deferred[None] = Deferred()

    def wait_at(self, reactor: Any, host: str, port: int, token: str, topic: TopicAddress) -> None:
        """Connect and show the token."""
        done: Deferred[None] = Deferred()
        done.addBoth(self._end)
        factory = WebSocketClientFactory(f"ws://{host}:{port}{topic.websocket_path}")
        factory.protocol = lambda: Subscriber(token, done, None, self._take, self._welcome)
        connecting = TCP4ClientEndpoint(reactor, _LOOPBACK, port).connect(factory)
        connecting.addErrback(self._end)

    def _welcome(self, _: int) -> None:
        self.welcomed.callback(None)

    def _take(self, line: str) -> bool:
        return self._nonce not in line

    def _end(self, result: Failure | None) -> None:
        if not isinstance(result, Failure):
            self.arrived.callback(None)
        elif not self.welcomed.called:
            self.welcomed.errback(result)

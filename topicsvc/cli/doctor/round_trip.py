"""Sends a message through a temporary service on a loopback port, and receives it."""

from __future__ import annotations

import json
import secrets
from dataclasses import replace
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.defer import TimeoutError as TimedOut
from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.internet.task import deferLater

from topicsvc.cli.doctor.report import Reporter
from topicsvc.cli.send import Sender
from topicsvc.cli.terminal import CommandFailed
from topicsvc.client import Message, State, TopicClient
from topicsvc.errors import TokenInactive, TopicNotFound, Unavailable
from topicsvc.interfaces import Grant
from topicsvc.refusals import Refusal
from topicsvc.service import TopicService
from topicsvc.settings import StopSettings
from topicsvc.topics import TopicAddress
from topicsvc.validators.http_client import AsciiUrl

__all__ = ["TIMEOUT", "RoundTrip"]

TIMEOUT = 15.0
"""Seconds for the broker to connect, for the subscription, and for the message to arrive."""

_LOOPBACK = "127.0.0.1"


class RoundTrip(Reporter):
    """Subscribes, sends and receives. For the arguments see `Reporter`."""

    async def all(self, token: str, topic: TopicAddress) -> None:
        """Validate the token, then subscribe, send and receive as far as its rights allow."""
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
            deadline = self._reactor.seconds() + TIMEOUT
            while not service.broker.is_up and self._reactor.seconds() < deadline:
                await deferLater(self._reactor, 0.1)
            grant = await self._validate(service, token, topic)
            if grant is not None:
                port = service.ports[0].getHost().port  # type: ignore[attr-defined]
                await self._exchange(token, topic, grant, port)
        finally:
            await service.stopService()

    async def _validate(
        self, service: TopicService, token: str, topic: TopicAddress
    ) -> Grant | None:
        try:
            grant = await service.rights_validator.validate(token, topic)
        except TopicNotFound as error:
            self.fail("token", f"valid, but {topic.path} does not exist: {_why(error.refusal)}")
            return None
        except TokenInactive as error:
            self.fail("token", f"rejected for {topic.path}: {_why(error.refusal)}")
            return None
        except Unavailable as error:
            self.fail("token", f"cannot be validated: {error}")
            return None
        rights = ["receive"] * grant.may_receive + ["send"] * grant.may_send
        if not rights:
            self.fail(
                "token",
                f"valid, but it may neither receive from {topic.path} nor send to it: "
                f"{_why(grant.refusal_to_receive)}",
            )
            return None
        left = int(grant.expires_at - self._now())
        self.ok("token", f"it may {' and '.join(rights)}, for {left} s")
        return grant

    async def _exchange(self, token: str, topic: TopicAddress, grant: Grant, port: int) -> None:
        nonce = secrets.token_hex(8)
        arrival = _Arrival(nonce)
        try:
            await self._send_and_receive(token, topic, grant, port, nonce, arrival)
        finally:
            arrival.stop()

    async def _send_and_receive(
        self,
        token: str,
        topic: TopicAddress,
        grant: Grant,
        port: int,
        nonce: str,
        arrival: _Arrival,
    ) -> None:
        if grant.may_receive:
            arrival.subscribe(self._reactor, self._host, port, token, topic)
            if not await self._reached("subscribe", topic.path, arrival.subscribed):
                return
        if not grant.may_send:
            return
        if not self._settings.send.enabled:
            self.warn("send", "switched off: send.enabled is false")
            return
        url = AsciiUrl.from_text(f"http://{_LOOPBACK}:{port}{topic.send_path}")
        body = json.dumps({"topicsvc doctor": nonce}).encode("ascii")
        refused = await Sender(self._reactor, url, token, self._host).post(body)
        if refused:
            self.fail("send", refused)
            return
        self.ok("send", topic.path)
        if grant.may_receive:
            await self._reached("receive", "the message has arrived", arrival.arrived)

    async def _reached(self, subject: str, text: str, reached: Deferred[None]) -> bool:
        try:
            await reached.addTimeout(TIMEOUT, self._reactor)
        except TimedOut:
            self.fail(subject, f"timed out after {TIMEOUT:.0f} s")
            return False
        except Exception as error:  # of many types
            self.fail(subject, str(error) or type(error).__name__)
            return False
        self.ok(subject, text)
        return True

    @property
    def _host(self) -> str:
        return min(self._settings.unit.hosts)


def _why(refusal: Refusal) -> str:
    """Return why a token is refused, and what to do."""
    return f"{refusal}; {refusal.advice}"


class _Arrival:
    """Subscribes to a topic and waits for one message, which contains `nonce`.

    Attributes:
        subscribed: fires when the session has started, or fails if it has not.
        arrived: fires when the message has arrived. It never fires if the session has ended.
    """

    def __init__(self, nonce: str) -> None:
        self._nonce = nonce
        self._client: TopicClient | None = None
        self.subscribed: Deferred[None] = Deferred()
        self.arrived: Deferred[None] = Deferred()

    def subscribe(
        self, reactor: Any, host: str, port: int, token: str, topic: TopicAddress
    ) -> None:
        """Connect and present the token."""
        client = self._client = TopicClient(
            reactor,
            f"ws://{host}:{port}{topic.websocket_path}",
            lambda _: token,
            self._on_message,
            recover=False,
            on_state=lambda state: self._on_state(client, state),
            endpoint=TCP4ClientEndpoint(reactor, _LOOPBACK, port),
        )
        client.startService()

    def stop(self) -> None:
        """Close the connection."""
        if self._client is not None:
            self._client.stopService()

    def _on_message(self, message: Message) -> None:
        if self._nonce in message.text and not self.arrived.called:
            self.arrived.callback(None)

    def _on_state(self, client: TopicClient, state: State) -> None:
        if self.subscribed.called:
            return
        if state == "live":
            self.subscribed.callback(None)
        elif state in ("waiting", "failed"):
            end = client.end
            was_open = end is not None and end.was_open
            self.subscribed.errback(CommandFailed(f"closed: {end}" if was_open else str(end)))

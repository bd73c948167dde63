"""The Twisted client with the scripted servers, in virtual time."""

from __future__ import annotations

from typing import Any

import txaio
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from tests.support.fake_server import FakeEndpoint, FakeServer
from tests.support.scripted_servers import ScriptedClient, ScriptedServerTestCase, add_cases
from topicsvc.client import Failed, Gap, Policy, TokenRefused, TopicClient


class _Call:
    """A call whose result the script decides."""

    def __init__(self, name: str, runner: ScriptedClient) -> None:
        self.result: Deferred[Any] = Deferred(lambda _: runner.aborted(name, self))

    def returns(self, value: Any) -> None:
        self.result.callback(value)

    def fails(self) -> None:
        self.result.errback(OSError("unreachable"))


class TwistedClient(ScriptedClient):
    """Runs a script with `TopicClient`."""

    def __init__(self, case: dict[str, Any]) -> None:
        super().__init__(case)
        self._clock = Clock()
        self._loop, txaio.config.loop = txaio.config.loop, self._clock
        self._client = TopicClient(
            self._clock,
            "ws://localhost/",
            self._get_token,
            self.got,
            recover=self.options["recover"],
            since=self.options["since"],
            on_gap=self._handle_gap if self.has_on_gap else None,
            on_state=self.changed,
            on_note=self.note,
            endpoint=FakeEndpoint(self._make_server),
            policy=Policy(**self.policy()),
            random=self.random,
        )
        self._client.when_ended().addErrback(self._failed)

    def _make_server(self) -> FakeServer:
        server = FakeServer(self.sent, self.closed)
        self.connected(server)
        return server

    def _failed(self, failure: Failure) -> None:
        failure.trap(Failed)
        self.seen["error"].append("refused" if failure.check(TokenRefused) else "failed")

    def _get_token(self, reason: str) -> Deferred[str]:
        call = _Call("getToken", self)
        self.called_get_token(reason, call)
        return call.result

    def _handle_gap(self, gap: Gap) -> Deferred[None]:
        call = _Call("onGap", self)
        self.called_on_gap(gap, call)
        return call.result

    def start(self) -> None:
        self._client.startService()

    def refresh(self) -> None:
        self._client.refresh()

    def close(self) -> None:
        self._client.stopService()

    def run_until(self, seconds: float) -> None:
        while times := [each.getTime() for each in self._clock.getDelayedCalls()]:
            if min(times) > seconds:
                break
            self._clock.advance(max(0.0, min(times) - self._clock.seconds()))
        self._clock.advance(max(0.0, seconds - self._clock.seconds()))

    def position(self) -> str | None:
        return self._client.position

    def stop(self) -> None:
        self._client.stopService()
        self._clock.advance(10)
        txaio.config.loop = self._loop
        assert not self._clock.getDelayedCalls(), self._clock.getDelayedCalls()


@add_cases
class TwistedScriptTests(ScriptedServerTestCase):
    client_class = TwistedClient

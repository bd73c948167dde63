"""Sessions and sends when the settings change."""

from __future__ import annotations

from dataclasses import replace

from tests.support.fakes import FakeValidator
from tests.support.harness import SEND_PATH, ServiceTestCase
from topicsvc.interfaces import Revocation
from topicsvc.settings import SessionSettings

AUTHORIZED = {"Authorization": "Bearer x"}


class ReconfigureTests(ServiceTestCase):
    settings = SessionSettings(ping_interval=60, token_timeout=60)

    def change(
        self, validator: FakeValidator | None = None, recheck: float = 0, **new: object
    ) -> None:
        revocation = Revocation(self.rechecker, recheck, 2) if recheck else None
        self.websocket_server.configure(
            validator or self.validator, replace(self.settings, **new), 0, revocation
        )

    def test_an_open_session_gets_the_new_ping_interval(self) -> None:
        client = self.subscribe()
        self.change(ping_interval=6)
        self.advance(6.1)
        [(opcode, _)] = client.frames()
        self.assertEqual(opcode, 9)
        self.change(ping_interval=600)
        self.advance(60)
        client.assert_nothing()
        client.disconnect()
        self.assert_nothing_left()

    def test_new_settings_apply_to_new_sessions_only(self) -> None:
        old = self.subscribe()
        self.change(max_message=1024, timestamps="milliseconds")
        old.send_text("x" * 2000)
        old.assert_refused("Unknown", "Invalid message", 1008)
        new = self.connect()
        new.send_text("x" * 2000)
        [(opcode, payload)] = new.frames()
        self.assertEqual((opcode, payload[:2]), (8, b"\x03\xf1"))
        refused = self.connect()
        refused.present("t")
        self.validator.last.refuse()
        self.assertIn(b'"Timestamp":%d}' % (self.now * 1000), refused.frames()[0][1])
        for client in (old, new, refused):
            client.disconnect()

    def test_a_shorter_token_timeout_applies_to_new_connections(self) -> None:
        early = self.connect()
        self.advance(1)
        self.change(token_timeout=5)
        early.disconnect()
        late = self.connect()
        self.advance(5.1)
        late.assert_closed(1008, "Token timeout")
        late.disconnect()
        self.assert_nothing_left()

    def test_new_checks_use_the_new_validator_and_checks_in_flight_the_old(self) -> None:
        waiting = self.connect()
        waiting.present("old")
        other = FakeValidator()
        self.change(other)
        client = self.connect()
        client.present("new")
        self.assertEqual(other.last.token, "new")
        self.assertEqual(self.validator.last.token, "old")
        self.validator.last.grant(self.now + 60)
        self.broker.confirm()
        waiting.assert_success(60)
        other.last.refuse()
        client.assert_refused("AccessToken", "Token inactive", 1008)
        waiting.disconnect()
        client.disconnect()

    def test_rechecks_can_be_switched_on_and_off(self) -> None:
        old = self.subscribe()
        self.change(recheck=60)
        new = self.subscribe()
        self.advance(61)
        self.assertEqual(len(self.rechecker.checks), 1, "the old session keeps no token")
        self.rechecker.last.refuse()
        self.assertEqual([frame[0] for frame in new.frames()][-1], 8)
        old.present("again")
        self.validator.last.grant(self.now + 3600)
        self.advance(61)
        self.assertEqual(len(self.rechecker.checks), 2, "but a token that it presents later")
        self.change(recheck=0)
        self.rechecker.last.grant(self.now + 3600)
        self.advance(200)
        self.assertEqual(len(self.rechecker.checks), 2)
        old.disconnect()
        new.disconnect()

    def test_sends_use_the_new_validator_and_can_be_switched_off(self) -> None:
        tree = self.site.resource
        send = tree._send
        other = FakeValidator()
        send.configure(other, True, 10)
        client = self.client()
        client.request("POST", SEND_PATH, {**AUTHORIZED, "X-Personium-Via": "https://c/"}, b"1")
        other.last.grant(self.now + 60)
        client.read_answer()
        self.assertEqual(client.status, 200)
        self.assertEqual(self.broker.published[-1].sender, "https://c/")
        self.site.max_body = 1
        client = self.client()
        client.request("POST", SEND_PATH, AUTHORIZED, b"12")
        self.assertEqual(client.status, 413)
        tree.set_send(None)
        client = self.client()
        client.request("POST", SEND_PATH, AUTHORIZED, b"1")
        self.assertEqual(client.status, 404)

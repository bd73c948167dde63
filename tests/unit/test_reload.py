"""Sessions and sends when the settings change under them."""

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

    def test_a_live_session_is_pinged_in_the_new_interval(self) -> None:
        client = self.subscribe()
        self.change(ping_interval=6)
        self.advance(6.1)
        [(opcode, _)] = client.frames()
        self.assertEqual(opcode, 9)
        self.change(ping_interval=600)
        self.advance(60)
        client.assert_nothing()
        client.vanish()
        self.assert_nothing_left()

    def test_new_sessions_have_the_new_bounds_and_old_ones_theirs(self) -> None:
        old = self.subscribe()
        self.change(max_message=1024, timestamps="milliseconds")
        old.send_text("x" * 2000)
        old.assert_refused("Unknown", "Invalid message", 1008)
        new = self.connect()
        new.send_text("x" * 2000)
        [(opcode, payload)] = new.frames()
        self.assertEqual((opcode, payload[:2]), (8, b"\x03\xf1"))
        told = self.connect()
        told.present("t")
        self.validator.last.refuse()
        self.assertIn(b'"Timestamp":%d}' % (self.now * 1000), told.frames()[0][1])
        for client in (old, new, told):
            client.vanish()

    def test_a_shorter_time_for_tokens_holds_for_those_who_come(self) -> None:
        early = self.connect()
        self.advance(1)
        self.change(token_timeout=5)
        early.vanish()
        late = self.connect()
        self.advance(5.1)
        late.assert_closed(1008, "Token timeout")
        late.vanish()
        self.assert_nothing_left()

    def test_tokens_are_shown_to_the_new_judge_and_old_questions_end_with_the_old_one(self) -> None:
        asked = self.connect()
        asked.present("old")
        other = FakeValidator()
        self.change(other)
        client = self.connect()
        client.present("new")
        self.assertEqual(other.last.token, "new")
        self.assertEqual(self.validator.last.token, "old")
        self.validator.last.grant(self.now + 60)
        self.broker.confirm()
        asked.assert_success(60)
        other.last.refuse()
        client.assert_refused("AccessToken", "Token inactive", 1008)
        asked.vanish()
        client.vanish()

    def test_revocation_is_looked_for_from_now_on(self) -> None:
        old = self.subscribe()
        self.change(recheck=60)
        new = self.subscribe()
        self.advance(61)
        self.assertEqual(len(self.rechecker.questions), 1, "the old session keeps no token")
        self.rechecker.last.refuse()
        self.assertEqual([frame[0] for frame in new.frames()][-1], 8)
        old.present("again")
        self.validator.last.grant(self.now + 3600)
        self.advance(61)
        self.assertEqual(len(self.rechecker.questions), 2, "but the one that is shown")
        self.change(recheck=0)
        self.rechecker.last.grant(self.now + 3600)
        self.advance(200)
        self.assertEqual(len(self.rechecker.questions), 2)
        old.vanish()
        new.vanish()

    def test_sends_are_judged_by_the_new_one_and_can_be_switched_off(self) -> None:
        tree = self.site.resource
        send = tree._send
        other = FakeValidator()
        send.configure(other, True)
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

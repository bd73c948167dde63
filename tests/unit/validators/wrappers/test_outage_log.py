"""The log of outages."""

from __future__ import annotations

from twisted.logger import capturedLogs, formatEvent

from tests.support.fakes import FakeValidator
from tests.support.validator_cases import TOPIC, WrapperTestCase
from topicsvc.errors import CollectionUnreadable
from topicsvc.validators.wrappers.outage_log import LOG_INTERVAL, OutageLog


class OutageLogTests(WrapperTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.validator = OutageLog(self.inner, self.clock)

    def logged(self, *answers: str) -> list[str]:
        """The log lines of checks that end with `answers`, methods of `FakeCheck`."""
        with capturedLogs() as events:
            for answer in answers:
                check = self.validator.validate("canary-token", TOPIC)
                getattr(self.inner.last, answer)(*([2000] if answer == "grant" else []))
                check.addErrback(lambda _: None)
        return [formatEvent(event) for event in events]

    def test_the_start_and_the_end_of_an_outage_are_logged(self) -> None:
        self.assertEqual(self.logged("grant", "refuse"), [])
        [line] = self.logged("be_unavailable", "be_unavailable", "be_unavailable")
        self.assertEqual(line, "tokens cannot be validated: injected by the test")
        self.advance(LOG_INTERVAL)
        self.assertEqual(self.logged("refuse"), ["tokens can be validated again"])
        self.assertEqual(self.logged("grant"), [])

    def test_a_long_outage_is_logged_again_at_intervals(self) -> None:
        self.assertEqual(len(self.logged("be_unavailable")), 1)
        self.advance(LOG_INTERVAL - 1)
        self.assertEqual(len(self.logged("be_unavailable", "grant")), 0)
        self.advance(1)
        self.assertEqual(len(self.logged("be_unavailable")), 1)

    def test_an_answer_about_one_collection_is_no_outage(self) -> None:
        def unreadable(count: int) -> list[str]:
            with capturedLogs() as events:
                for _ in range(count):
                    check = self.validator.validate("canary-token", TOPIC)
                    self.inner.last.result.errback(CollectionUnreadable("PROPFIND: not XML"))
                    self.failureResultOf(check, CollectionUnreadable)
            return [formatEvent(event) for event in events]

        self.assertEqual(
            unreadable(3),
            [
                "the response about the collection of /cell1/box1/col/topic/name cannot be used: "
                "PROPFIND: not XML"
            ],
        )
        self.assertEqual(self.logged("grant"), [], "no outage has ended")
        self.advance(LOG_INTERVAL)
        self.assertEqual(len(unreadable(2)), 1)
        self.assertEqual(len(self.logged("be_unavailable")), 1, "an outage is still logged")
        self.assertEqual(unreadable(1), [])
        self.advance(LOG_INTERVAL)
        self.assertEqual(self.logged("grant"), ["tokens can be validated again"])

    def test_two_validators_with_one_server_have_one_outage(self) -> None:
        other = FakeValidator()
        beside = OutageLog(other, self.clock, self.validator)
        [_] = self.logged("be_unavailable")
        with capturedLogs() as events:
            check = beside.validate("canary-token", TOPIC)
            other.last.be_unavailable()
            self.failureResultOf(check)
            self.advance(LOG_INTERVAL)
            check = beside.validate("canary-token", TOPIC)
            other.last.grant(2000)
            self.successResultOf(check)
        self.assertEqual(
            [formatEvent(event) for event in events], ["tokens can be validated again"]
        )
        self.assertEqual(self.logged("grant"), [])

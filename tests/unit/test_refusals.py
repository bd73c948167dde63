"""The reasons for which tokens are refused."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from topicsvc.errors import TokenInactive
from topicsvc.refusals import (
    MAX_QUOTED,
    MAX_QUOTED_VALUES,
    Refusal,
    RefusalReason,
    quoted,
    quoted_list,
)


class RefusalReasonTests(SynchronousTestCase):
    def test_each_reason_has_a_label_a_text_and_advice(self) -> None:
        for reason in RefusalReason:
            with self.subTest(reason=reason.name):
                self.assertRegex(reason.label, r"\A[a-z]+(_[a-z]+)*\Z")
                self.assertTrue(reason.text)
                self.assertTrue(reason.advice)
                self.assertFalse(re.search(r"[.\n]\Z", reason.text + reason.advice))
        self.assertEqual(len({reason.label for reason in RefusalReason}), len(RefusalReason))
        self.assertEqual(len({reason.text for reason in RefusalReason}), len(RefusalReason))

    def test_only_reasons_about_time_advise_to_compare_clocks(self) -> None:
        about_time = {reason for reason in RefusalReason if "clock" in reason.advice}
        self.assertEqual(about_time, {RefusalReason.EXPIRED, RefusalReason.NOT_YET_VALID})


class RefusalTests(SynchronousTestCase):
    def test_the_text_has_the_reason_and_the_detail(self) -> None:
        self.assertEqual(str(Refusal(RefusalReason.EXPIRED)), "it has expired")
        refusal = Refusal(RefusalReason.AUDIENCE, '"a" is required, the token has "b"')
        self.assertEqual(str(refusal), 'another audience: "a" is required, the token has "b"')
        self.assertEqual(str(TokenInactive(refusal)), str(refusal))

    def test_the_advice_is_that_of_the_reason_unless_a_validator_gives_another(self) -> None:
        self.assertEqual(
            Refusal(RefusalReason.EXPIRED).advice,
            RefusalReason.EXPIRED.advice,
        )
        self.assertEqual(Refusal(RefusalReason.EXPIRED, "", "wait").advice, "wait")


class QuotedTests(SynchronousTestCase):
    @given(st.text())
    def test_any_value_is_short_and_on_one_line_of_printable_ascii(self, value: str) -> None:
        text = quoted(value)
        self.assertTrue(text.isascii() and text.isprintable())
        self.assertLessEqual(len(text), 12 * MAX_QUOTED + 5)

    def test_a_long_value_is_cut(self) -> None:
        self.assertEqual(quoted("x" * MAX_QUOTED), f'"{"x" * MAX_QUOTED}"')
        self.assertEqual(quoted("x" * (MAX_QUOTED + 1)), f'"{"x" * MAX_QUOTED}"...')

    def test_a_list_is_sorted_and_of_many_values_the_first_are_named(self) -> None:
        self.assertEqual(quoted_list([]), "none")
        self.assertEqual(quoted_list("ba"), '"a", "b"')
        many = [f"v{number}" for number in range(MAX_QUOTED_VALUES + 7)]
        self.assertEqual(quoted_list(many), '"v0", "v1", "v2" and 7 more')

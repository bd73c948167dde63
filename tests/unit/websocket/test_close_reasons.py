"""Close reasons, their labels and their advice."""

from __future__ import annotations

import re
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from topicsvc.websocket import close_reasons

PROTOCOL = Path(__file__).parents[3] / "docs" / "protocol.md"


class CloseReasonTests(SynchronousTestCase):
    def test_every_reason_of_the_protocol_page_is_listed(self) -> None:
        text = PROTOCOL.read_text("utf-8")
        rows = re.findall(r"^\| 1\d{3} \|([^|]*)\|", text, re.MULTILINE)
        reasons = {each.strip() for row in rows for each in row.split(",")}
        self.assertGreaterEqual(len(reasons), 9)
        self.assertLessEqual(reasons, set(close_reasons.CLOSE_REASONS))

    def test_labels_are_unique_and_valid(self) -> None:
        labels = {close_reasons.metric_label(reason) for reason in close_reasons.CLOSE_REASONS}
        self.assertEqual(len(labels), len(close_reasons.CLOSE_REASONS))
        for label in labels:
            self.assertRegex(label, r"^[a-z][a-z0-9_]*$")

    def test_an_unknown_reason_is_counted_as_other(self) -> None:
        self.assertEqual(close_reasons.metric_label("an unknown reason"), "other")
        self.assertEqual(close_reasons.advice("an unknown reason"), "")

"""Tables as text."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from topicsvc.cli.table import fit, table


class TableTests(SynchronousTestCase):
    def test_numbers_are_aligned_at_the_right_and_texts_at_the_left(self) -> None:
        lines = table(("N", "NAME", "REASON"), [(5, "b", "x"), (1234, "longer", None)], 1)
        self.assertEqual(
            lines,
            [
                "   N  NAME    REASON",
                "   5  b       x",
                "1234  longer  -",
            ],
        )

    def test_a_table_without_rows_is_its_head(self) -> None:
        self.assertEqual(table(("N", "NAME"), [], 1), ["N  NAME"])

    def test_names_cannot_drive_a_terminal_or_break_a_line(self) -> None:
        names = ["\x1b[2J\x07", "a\nb\r", "\x9b31m", "\u202eevil", "\u2028", "\ud800"]
        lines = table(("NAME",), [(name,) for name in names], 0)
        self.assertEqual(len(lines), len(names) + 1)
        for line in lines:
            self.assertTrue(line.isprintable(), line)
        self.assertEqual(lines[1], r"\u001b[2J\u0007")

    def test_wide_and_combining_characters_keep_the_columns(self) -> None:
        lines = table(("NAME", "X"), [("日本", 1), ("e\u0301", 1), ("abcd", 1)], 0)
        self.assertEqual(lines, ["NAME  X", "日本  1", "e\u0301     1", "abcd  1"])


class FitTests(SynchronousTestCase):
    def test_a_line_is_cut_at_the_columns_of_the_terminal(self) -> None:
        for line, columns, expected in (
            ("abcdef", 6, "abcdef"),
            ("abcdef", 5, "abcde"),
            ("日本語", 5, "日本"),
            ("日本語", 6, "日本語"),
            ("e\u0301e\u0301", 1, "e\u0301"),
            ("", 5, ""),
        ):
            self.assertEqual(fit(line, columns), expected)

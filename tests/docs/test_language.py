"""The language of the documentation and of docstrings, as far as it can be counted.

Readers are often tired, and English is often their second language. The limits keep sentences
in the order of subject, verb and object, and paragraphs short.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from statistics import median

from twisted.trial.unittest import SynchronousTestCase

from tests.docs.test_docs import ROOT, pages
from tests.docs.test_layers import ROOT as PACKAGE

MAX_COLUMNS = 120
MAX_CELL = 25
"""Words in a cell of a table."""

MAX_MEDIAN_PARAGRAPH = 27
"""Words; the median paragraph is shorter."""

MAX_RELATIVE_SUBJECTS = 0.5
"""In 1,000 words."""

PRONOUN = r"\b(?:who|whoever|what|whatever|whichever)"
AUXILIARY = (
    r"is|are|was|were|has|have|had|does|do|did|"
    r"can|could|may|might|must|should|will|would|needs?|cannot"
)
RELATIVE_SUBJECT = re.compile(rf"{PRONOUN} (?:{AUXILIARY}|[a-z]{{3,}}s|[a-z]{{2,}}ed)\b", re.I)
"""A clause as a subject: "who is connected", "what comes next", "whoever asked"."""

AVOIDED = re.compile(r"\b(?:strangers?|judge[sd]?|judging|whoever|of ours)\b", re.I)
"""Words of earlier versions; the terms of the field replace them."""

LAYER_WORDS = ("Pure:", "Application:", "Adapter:", "Adapters:", "Composition:")


def without_code(text: str) -> str:
    """Remove fenced blocks and indented lines."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"^ {4}.*$", "", text, flags=re.MULTILINE)


def paragraphs(text: str) -> Iterator[list[str]]:
    """Yield the words of each paragraph and of each item of a list."""
    for block in re.split(r"\n\s*\n", re.sub(r"^(#|\|).*$", "", text, flags=re.MULTILINE)):
        for piece in re.split(r"^\s*(?:[*-]|\d+\.) ", block, flags=re.MULTILINE):
            if piece.strip():
                yield piece.split()


def cells(text: str) -> Iterator[str]:
    """Yield the cells of all tables."""
    for row in re.findall(r"^\|(.*)\|$", text, re.MULTILINE):
        yield from re.split(r"(?<!\\)\|", row)


class PageTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.texts = {str(path.relative_to(ROOT)): path.read_text("utf-8") for path in pages()}
        self.assertGreater(len(self.texts), 10)

    def test_no_line_is_wider_than_120_columns(self) -> None:
        wide = [
            f"{name}:{number}"
            for name, text in self.texts.items()
            for number, line in enumerate(text.splitlines(), 1)
            if len(line) > MAX_COLUMNS
        ]
        self.assertEqual(wide, [])

    def test_no_cell_of_a_table_has_more_than_25_words(self) -> None:
        long = [
            f"{name}: {cell.strip()}"
            for name, text in self.texts.items()
            for cell in cells(without_code(text))
            if len(cell.split()) > MAX_CELL
        ]
        self.assertEqual(long, [])

    def test_the_median_paragraph_is_short(self) -> None:
        lengths = [
            len(words) for text in self.texts.values() for words in paragraphs(without_code(text))
        ]
        self.assertLess(median(lengths), MAX_MEDIAN_PARAGRAPH)

    def test_relative_clauses_are_rarely_subjects(self) -> None:
        body = "\n".join(map(without_code, self.texts.values()))
        found = [match[0] for match in RELATIVE_SUBJECT.finditer(body)]
        words = len(re.findall(r"[A-Za-z'`]+", body))
        self.assertLess(1000 * len(found) / words, MAX_RELATIVE_SUBJECTS, found)

    def test_the_search_finds_relative_subjects_and_no_questions(self) -> None:
        for text in ("who is connected", "what comes next", "Whoever asked first"):
            self.assertTrue(RELATIVE_SUBJECT.search(text), text)
        for text in ("which ports are open", "a client that asks", "what to do"):
            self.assertFalse(RELATIVE_SUBJECT.search(text), text)


class SourceTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.sources = {
            path: path.read_text("utf-8")
            for root in (PACKAGE, ROOT / "tests", ROOT / "bench", ROOT / "examples")
            for path in root.rglob("*.py")
            if path != Path(__file__) and not {"node_modules", "venv"} & set(path.parts)
        }

    def test_no_docstring_begins_with_the_name_of_a_layer(self) -> None:
        wrong = [
            f"{path}: {docstring}"
            for path, source in self.sources.items()
            for docstring in docstrings(ast.parse(source))
            if docstring.startswith(LAYER_WORDS)
        ]
        self.assertEqual(wrong, [])

    def test_pages_and_sources_avoid_earlier_words(self) -> None:
        found = [
            f"{path}: {match[0]}"
            for path, text in [
                *self.sources.items(),
                *((path, path.read_text("utf-8")) for path in pages()),
            ]
            for match in AVOIDED.finditer(text)
        ]
        self.assertEqual(found, [])


def docstrings(tree: ast.Module) -> Iterator[str]:
    """Yield all docstrings of a module."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            docstring = ast.get_docstring(node)
            if docstring is not None:
                yield docstring

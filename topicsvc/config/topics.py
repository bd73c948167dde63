"""Reads topic patterns."""

from __future__ import annotations

from collections.abc import Iterable

from topicsvc.config.toml_table import Table
from topicsvc.errors import PathRefused
from topicsvc.topics import SubjectPattern, TopicPattern

__all__ = ["read_rule_topics", "read_topics"]


def read_topics(table: Table) -> Iterable[TopicPattern]:
    """Read ``topics``, a list of topic patterns."""
    for text in table.texts("topics"):
        try:
            yield TopicPattern.parse(text)
        except PathRefused as error:
            table.problem(
                "topics", f"{text!r}: {error}", '"/cell1/box1/col/topic/name" or "/cell1/box1/*"'
            )


def read_rule_topics(table: Table) -> Iterable[TopicPattern | SubjectPattern]:
    """Read ``topics`` of a rule, in which ``{sub}`` may stand for a part."""
    for text in table.texts("topics"):
        try:
            yield SubjectPattern.parse(text) if "{" in text else TopicPattern.parse(text)
        except PathRefused as error:
            table.problem(
                "topics",
                f"{text!r}: {error}",
                '"/cell1/box1/col/topic/name", "/cell1/box1/*" or "/{sub}/inbox/*"',
            )

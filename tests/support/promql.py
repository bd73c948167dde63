"""Parses the names and labels of PromQL expressions, to compare them with a scrape."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

OVER_TIME = {"rate", "increase"}
"""Functions that make something of a counter."""

FUNCTIONS = {"histogram_quantile", "sum", "max", "time", *OVER_TIME}

_TOKEN = re.compile(
    r'\s+|(?P<string>"(?:\\.|[^"\\])*")|(?P<range>\[[^\]]*\])|(?P<word>[a-zA-Z_:][\w:]*)'
    r"|(?P<number>\d+(?:\.\d+)?)|(?P<sign>=~|!~|!=|==|>=|<=|[-+*/%(){},=<>])"
)


@dataclass
class Use:
    """One metric in an expression.

    Attributes:
        name: of the sample.
        matchers: label, operator, value.
        functions: the functions and aggregations around it, the outermost first.
    """

    name: str
    matchers: list[tuple[str, str, str]] = field(default_factory=list)
    functions: tuple[str, ...] = ()


@dataclass
class Expression:
    """What is used, and by which labels it is grouped."""

    uses: list[Use] = field(default_factory=list)
    groups: list[str] = field(default_factory=list)


def read(text: str) -> Expression:
    """Read `text`; raises ValueError where it is not understood."""
    tokens = list(_tokens(text))
    found = Expression()
    around: list[str] = []
    at = 0
    while at < len(tokens):
        kind, token = tokens[at]
        following = tokens[at + 1][1] if at + 1 < len(tokens) else ""
        if token == "by":
            end = tokens.index(("sign", ")"), at)
            found.groups += [word for kind, word in tokens[at:end] if kind == "word"][1:]
            at = end
        elif kind == "word" and following in ("(", "by"):
            if token not in FUNCTIONS:
                raise ValueError(f"{token}: an unknown function")
            around.append(token)
            if following == "by":
                at += 1
                continue
            at += 1
        elif kind == "word":
            use = Use(token, functions=tuple(name for name in around if name))
            if following == "{":
                at = _matchers(tokens, at + 2, use)
            found.uses.append(use)
        elif token == "(":
            if not (at and tokens[at - 1][1] == ")" and around and _awaits(tokens, at)):
                around.append("")
        elif token == ")":
            around.pop()
        at += 1
    return found


def _awaits(tokens: list[tuple[str, str]], at: int) -> bool:
    """Whether the bracket at `at` follows ``sum by (...)``."""
    start = at - 1
    while tokens[start][1] != "(":
        start -= 1
    return tokens[start - 1][1] == "by"


def _matchers(tokens: list[tuple[str, str]], at: int, use: Use) -> int:
    while tokens[at][1] != "}":
        (_, label), (_, operator), (kind, value) = tokens[at : at + 3]
        if kind != "string":
            raise ValueError(f"{value}: no string")
        use.matchers.append((label, operator, value[1:-1]))
        at += 3
        if tokens[at][1] == ",":
            at += 1
    return at


def _tokens(text: str) -> Iterator[tuple[str, str]]:
    at = 0
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            raise ValueError(f"{text[at:]!r} is not understood")
        if match.lastgroup is not None:
            yield match.lastgroup, match[0]
        at = match.end()

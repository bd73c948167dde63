"""Hypothesis strategies for topic addresses and JSON values."""

from __future__ import annotations

from hypothesis import strategies as st

from topicsvc.topics import TopicAddress

cells = st.from_regex(r"[a-z0-9][a-z0-9-]{0,20}", fullmatch=True)
boxes = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_-]{0,20}", fullmatch=True) | st.just("__")
_first = st.characters(categories=("L", "Nd"), include_characters="_-")
_later = st.characters(categories=("L", "Nd", "M"), include_characters="_-")
parts = st.tuples(_first, st.text(_later, max_size=11)).map("".join)
topics = st.builds(
    TopicAddress, cells, boxes, st.lists(parts, min_size=1, max_size=8).map(tuple), parts
)

json_values = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)

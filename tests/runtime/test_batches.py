"""Batches against what they promise."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from runtime.batches import batched, batched_within


@given(st.lists(st.integers()), st.integers(1, 5))
def test_batches_are_the_items_in_order(items: list[int], size: int) -> None:
    batches = list(batched(items, size))
    assert [item for batch in batches for item in batch] == items
    assert all(len(batch) == size for batch in batches[:-1])
    assert all(1 <= len(batch) <= size for batch in batches)


@given(st.lists(st.integers(0, 9)), st.integers(1, 5), st.integers(0, 12))
def test_weighed_batches_are_as_full_as_both_bounds_allow(items: list[int], size: int, limit: int) -> None:
    batches = list(batched_within(items, size, limit, lambda item: item))
    assert [item for batch in batches for item in batch] == items
    for batch in batches:
        assert 1 <= len(batch) <= size
        assert sum(batch) <= limit or len(batch) == 1
    for batch, following in pairwise(batches):
        assert len(batch) == size or sum(batch) + following[0] > limit

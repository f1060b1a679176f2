"""Iterables in batches (``itertools.batched`` came with Python 3.12; 3.11 is supported)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import TypeVar

T = TypeVar("T")


def batched(iterable: Iterable[T], size: int) -> Iterator[list[T]]:
    """Yield lists of `size` items in order; the last may be shorter."""
    iterator = iter(iterable)
    while batch := list(islice(iterator, size)):
        yield batch


def batched_within(
    iterable: Iterable[T], size: int, limit: int, weigh: Callable[[T], int]
) -> Iterator[list[T]]:
    """Yield lists of at most `size` items whose weights add up to at most `limit`; a heavier item goes alone."""
    batch: list[T] = []
    weight = 0
    for item in iterable:
        heavier = weigh(item)
        if batch and (len(batch) == size or weight + heavier > limit):
            yield batch
            batch, weight = [], 0
        batch.append(item)
        weight += heavier
    if batch:
        yield batch

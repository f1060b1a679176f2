"""Iterables in batches (``itertools.batched`` came with Python 3.12; 3.11 is supported)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TypeVar

T = TypeVar("T")


def batched(iterable: Iterable[T], size: int) -> Iterator[list[T]]:
    """Yield lists of `size` items in order; the last may be shorter."""
    iterator = iter(iterable)
    while batch := list(islice(iterator, size)):
        yield batch

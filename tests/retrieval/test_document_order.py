"""The order of documents: a permutation, the same every time, and no cut worse than none."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench import document_order as ordering
from bench.document_order import SMALLEST, cut_of, document_order
from runtime.activations import SparseActivations

Documents = list[dict[int, float]]
Terms = list[list[int]]


def as_rows(documents: Documents, num_units: int) -> SparseActivations:
    indptr = np.cumsum([0, *(len(document) for document in documents)], dtype=np.int64)
    units = np.array([unit for document in documents for unit in sorted(document)], np.int32)
    weights = np.array([document[unit] for document in documents for unit in sorted(document)], np.float32)
    return SparseActivations(indptr, units, weights, num_units)


def some_documents(max_size: int = 80) -> st.SearchStrategy[Documents]:
    document = st.dictionaries(st.integers(0, 11), st.sampled_from([0.0, 0.5, 1.0, 2.5]), max_size=8)
    return st.lists(document, max_size=max_size)


def some_terms(min_size: int) -> st.SearchStrategy[Terms]:
    return st.lists(st.lists(st.integers(0, 11), unique=True, max_size=6), min_size=min_size, max_size=30)


def slow_cost(first: Terms, second: Terms) -> float:
    """Bits for the gaps of the terms that two documents share, in both halves (Dhulipala et al.)."""
    cost = 0.0
    for half in (first, second):
        for term in range(12):
            degree = sum(term in document for document in half)
            if sum(term in document for document in first + second) > 1:
                cost += degree * math.log2(len(half) / (degree + 1))
    return cost


class Cut:
    """A range of documents cut in the middle, as the kernels have it."""

    def __init__(self, documents: Terms, cut: int) -> None:
        self.documents, self.cut, size = documents, cut, len(documents)
        self.terms = np.zeros((size, 6), np.uint16)
        self.lengths = np.array([len(document) for document in documents], np.uint16)
        for row, document in zip(self.terms, documents, strict=True):
            row[: len(document)] = document
        self.bits = ordering.degree_bits(size)
        self.scratch = ordering.new_scratch(12, size)

    def halves(self) -> tuple[Terms, Terms]:
        first, second = (
            [document for document, on in zip(self.documents, self.scratch.side, strict=True) if on == side]
            for side in (0, 1)
        )
        return first, second

    def bisect(self, iterations: int) -> None:
        ordering.bisect(
            self.terms,
            self.lengths,
            0,
            self.cut,
            len(self.documents),
            self.bits,
            iterations,
            self.scratch,
        )


@given(some_terms(min_size=2), st.data())
def test_costs_and_preferences_are_those_of_the_paper(documents: Terms, data: st.DataObject) -> None:
    cut, size = data.draw(st.integers(1, len(documents) - 1)), len(documents)
    state = Cut(documents, cut)
    present = ordering.count_terms(state.terms, state.lengths, 0, cut, size, state.scratch)
    cost = ordering.weigh_terms(present, cut, size - cut, state.bits, state.scratch)
    ordering.prefer(state.terms, state.lengths, 0, cut, size, state.scratch)
    first, second = state.halves()
    assert cost == pytest.approx(slow_cost(first, second), abs=1e-3)
    for number, document in enumerate(documents):
        saved = 0.0
        for term in document:
            degrees = [sum(term in other for other in half) for half in (first, second)]
            if sum(degrees) == 1:
                continue
            here, there = (0, 1) if number < cut else (1, 0)
            moved = list(degrees)
            moved[here] -= 1
            moved[there] += 1
            # As in the paper, the halves keep their sizes: another document is to come back.
            saved += sum(
                old * math.log2(len(half) / (old + 1)) - new * math.log2(len(half) / (new + 1))
                for half, old, new in zip((first, second), degrees, moved, strict=True)
            )
        wanted = saved if number < cut else -saved
        assert state.scratch.preference[number] == pytest.approx(wanted, abs=1e-3)


@given(some_terms(min_size=2), st.integers(1, 20), st.data())
def test_a_cut_keeps_its_sizes_and_never_costs_more_than_the_one_before(
    documents: Terms, iterations: int, data: st.DataObject
) -> None:
    cut = data.draw(st.integers(1, len(documents) - 1))
    state = Cut(documents, cut)
    state.bisect(iterations)
    first, second = state.halves()
    assert len(first) == cut
    assert slow_cost(first, second) <= slow_cost(documents[:cut], documents[cut:]) + 1e-3
    assert not state.scratch.total.any()
    assert not state.scratch.in_first.any()
    for row, length, document in zip(state.terms, state.lengths, documents, strict=True):
        shared = [term for term in document if sum(term in other for other in documents) > 1]
        assert row[:length].tolist() == shared


def test_a_move_that_goes_too_far_is_tried_in_part() -> None:
    """Swapping every pair that wants to only mirrors these halves."""
    state = Cut([[1, 2], [3, 4], [1, 2], [3, 4], [1, 2], [3, 4], [1, 2], [3, 4]], 4)
    state.bisect(20)
    assert sorted(map(str, state.halves())) == [str([[1, 2]] * 4), str([[3, 4]] * 4)]


@given(st.lists(st.sampled_from([-1.5, 0.0, 0.25, 3.0, np.inf]), min_size=1), st.data())
def test_smallest_is_that_of_sorting(values: list[float], data: st.DataObject) -> None:
    count = data.draw(st.integers(1, len(values)))
    array = np.array([*values, 9.0, -9.0], np.float32)
    assert ordering.smallest(array, len(values), count) == sorted(values)[count - 1]
    assert sorted(array[: len(values)].tolist()) == sorted(values)


@given(some_documents(), st.integers(1, 6))
def test_sketches_are_the_heaviest_shared_terms(documents: Documents, heaviest: int) -> None:
    sketches = ordering.sketch_documents(as_rows(documents, 12), heaviest)
    frequencies = [sum(unit in document for document in documents) for unit in range(12)]
    shared = [unit for unit in range(12) if frequencies[unit] > 1]
    assert sketches.num_terms == len(shared)
    for row, length, document in zip(sketches.terms, sketches.lengths, documents, strict=True):
        worth = {
            unit: np.float32(weight) * np.float32(np.log((len(documents) + 1) / frequencies[unit]))
            for unit, weight in sorted(document.items())
            if weight > 0 and unit in shared
        }
        expected = sorted(worth, key=lambda unit: -worth[unit])[:heaviest]
        assert [shared[term] for term in row[:length]] == sorted(expected)


@given(some_documents(max_size=150), st.sampled_from([1, 2, 3, 8]))
def test_an_order_is_a_permutation_whatever_the_threads(documents: Documents, threads: int) -> None:
    rows = as_rows(documents, 12)
    order = document_order(rows, heaviest=4, threads=threads)
    assert order.dtype == np.int64
    assert sorted(order.tolist()) == list(range(len(documents)))
    assert order.tolist() == document_order(rows, heaviest=4).tolist()


@given(st.integers(SMALLEST + 1, 10_000))
def test_cuts_fall_between_blocks(documents: int) -> None:
    cut = cut_of(documents)
    assert 0 < cut < documents
    for block in (8, 16, 32, 64):
        assert cut % block == 0 or 2 * block > documents
    assert abs(2 * cut - documents) < 128


def test_topics_that_came_mixed_end_up_in_blocks_of_their_own() -> None:
    random = np.random.default_rng(5)
    topics = random.integers(0, 16, 2000)
    documents = [
        {int(unit): float(random.uniform(1, 2)) for unit in 40 * topic + random.choice(40, 10, replace=False)}
        | {int(unit): 0.5 for unit in 640 + random.choice(60, 10, replace=False)}
        for topic in topics
    ]
    order = document_order(as_rows(documents, 700))
    in_block = [len(set(topics[order[start : start + 32]])) for start in range(0, 2000, 32)]
    assert np.mean(in_block) < 1.6


def test_rows_must_have_ascending_units() -> None:
    rows = SparseActivations(np.array([0, 2]), np.array([3, 3]), np.ones(2, np.float32), 5)
    with pytest.raises(ValueError, match="must ascend"):
        document_order(rows)

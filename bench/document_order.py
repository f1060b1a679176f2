"""An order of documents that puts similar ones next to each other, so that blocks of them have tight bounds.

Recursive graph bisection (Dhulipala et al., "Compressing Graphs and Indexes with Recursive Graph Bisection",
KDD 2016): a range of documents is cut in half, documents change sides as long as that lowers the estimated size
of the gaps between the postings of a term, then each half is cut in turn. Three things differ, for speed and for
bounds rather than gaps:

- A document is represented by its few heaviest terms (weight × idf); a term that only one document of a range has
  is dropped for good, so that the lower levels, which have most of the work, touch ever less.
- The halves are chosen by one selection around the median, as in Mackenzie et al., "Faster Index Reordering with
  Bipartite Graph Partitioning" (SIGIR 2021), instead of two sorts.
- Documents that move together may overshoot. When the cost has not fallen, the move is taken back and the better
  half of it is tried, and so on; the cost of a range never rises.

Cuts fall on multiples of 64, 32, 16 and 8 documents, so that no block of these sizes straddles a cut above it.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray

from runtime.activations import SparseActivations

SMALLEST = 8
"""Ranges of this many documents are left as they are."""

ALIGNMENT = 64

SETTLED = 0.02
"""A range is settled when no more than this share of its documents changed sides."""

SMALLEST_STEP = 0.2
"""The share of a move that is not divided further."""


def document_order(
    rows: SparseActivations, *, heaviest: int = 32, iterations: int = 8, threads: int = 1
) -> NDArray[np.int64]:
    """The order in which to store documents: row ``order[i]`` belongs at position ``i``.

    Deterministic, whatever the number of threads. Beside the rows it takes about ``4 × heaviest + 40`` bytes a
    document, or twice that if more than 65,536 terms are shared. What it costs and brings is measured in
    ``docs/index-design.md``.

    Args:
        rows: one row per document, NumPy arrays, units ascending within a row.
        heaviest: how many terms stand for a document, at least 1.
        iterations: how often the documents of a range may change sides.
        threads: how many ranges are worked on at the same time.

    Raises:
        ValueError: the units of a row do not ascend.
    """
    sketches = sketch_documents(rows, heaviest)
    num_documents = rows.num_rows
    order = np.arange(num_documents, dtype=np.int64)
    bits = degree_bits(num_documents)

    def work(part: tuple[int, int], levels: int) -> list[tuple[int, int]]:
        start, end = part
        return bisect_range(
            sketches.terms[start:end],
            sketches.lengths[start:end],
            order[start:end],
            sketches.num_terms,
            bits,
            iterations,
            levels,
        )

    parts = [(0, num_documents)]
    with ThreadPoolExecutor(threads) as pool:
        while len(parts) < threads and any(end - start > SMALLEST for start, end in parts):
            cut = list(pool.map(lambda part: work(part, 1), parts))
            parts = [
                (start + first, start + last)
                for (start, _), halves in zip(parts, cut, strict=True)
                for first, last in halves
            ]
        list(pool.map(lambda part: work(part, num_documents.bit_length()), parts))
    return order


class Sketches(NamedTuple):
    """The heaviest terms of every document, numbered anew: ``terms[i, :lengths[i]]`` are those of document i."""

    terms: NDArray[Any]
    lengths: NDArray[np.uint16]
    num_terms: int


def sketch_documents(rows: SparseActivations, heaviest: int) -> Sketches:
    """The terms of each document with the largest weight × idf, of those that two documents share."""
    frequencies = document_frequencies(rows.indptr, rows.units, rows.num_units)
    idf = np.log((rows.num_rows + 1) / np.maximum(frequencies, 1)).astype(np.float32)
    idf[frequencies < 2] = 0
    numbers = np.cumsum(frequencies > 1) - 1
    num_terms = int(numbers[-1]) + 1 if len(numbers) else 0
    dtype = np.uint16 if num_terms <= 1 << 16 else np.uint32
    terms = np.zeros((rows.num_rows, heaviest), dtype)
    lengths = np.zeros(rows.num_rows, np.uint16)
    select_heaviest(rows.indptr, rows.units, rows.weights, idf, numbers, terms, lengths)
    return Sketches(terms, lengths, num_terms)


@numba.njit(nogil=True, cache=True)
def document_frequencies(indptr: NDArray[np.int64], units: NDArray[Any], num_units: int) -> NDArray[np.int64]:
    frequencies = np.zeros(num_units, np.int64)
    for row in range(len(indptr) - 1):
        for place in range(indptr[row], indptr[row + 1]):
            if place > indptr[row] and units[place] <= units[place - 1]:
                raise ValueError("the units of a row must ascend")
            frequencies[units[place]] += 1
    return frequencies


@numba.njit(nogil=True, cache=True)
def smallest(values: NDArray[np.float32], size: int, count: int) -> Any:
    """The largest of the `count` smallest among ``values[:size]``, which it leaves in another order."""
    low, high = 0, size - 1
    wanted = count - 1
    while low < high:
        first, middle, last = values[low], values[(low + high) >> 1], values[high]
        pivot = max(min(first, middle), min(max(first, middle), last))
        left, right = low, high
        while left <= right:
            while values[left] < pivot:
                left += 1
            while values[right] > pivot:
                right -= 1
            if left <= right:
                values[left], values[right] = values[right], values[left]
                left += 1
                right -= 1
        if wanted <= right:
            high = right
        elif wanted >= left:
            low = left
        else:
            break
    return values[wanted]


DROPPED_BITS = 21
"""Of a float32: two bits after its exponent are left."""


@numba.njit(nogil=True, cache=True)
def select_heaviest(
    indptr: NDArray[np.int64],
    units: NDArray[Any],
    weights: NDArray[Any],
    idf: NDArray[np.float32],
    numbers: NDArray[np.int64],
    terms: NDArray[Any],
    lengths: NDArray[np.uint16],
) -> None:
    """Fill `terms`, in the order of units, and `lengths`; `numbers` are the terms' own by unit.

    The least of the heaviest is found by counting values by their leading bits, then among those that share its.
    """
    heaviest = terms.shape[1]
    longest = 0
    for row in range(len(indptr) - 1):
        longest = max(longest, indptr[row + 1] - indptr[row])
    worth = np.empty(longest, np.float32)
    bits = worth.view(np.int32)  # positive floats are in the order of their bits
    alike = np.empty(longest, np.float32)
    counts = np.zeros(1 << (31 - DROPPED_BITS), np.int32)
    for row in range(len(indptr) - 1):
        start, length = indptr[row], indptr[row + 1] - indptr[row]
        highest = 0
        for place in range(length):
            value = np.float32(weights[start + place]) * idf[units[start + place]]
            worth[place] = value if value > 0 else np.float32(0)
            leading = bits[place] >> DROPPED_BITS
            counts[leading] += 1
            highest = max(highest, leading)
        above, leading = 0, highest
        while leading > 0 and above + counts[leading] < heaviest:
            above += counts[leading]
            leading -= 1
        least = np.float32(0)
        if leading > 0:
            found = 0
            for place in range(length):
                if bits[place] >> DROPPED_BITS == leading:
                    alike[found] = -worth[place]
                    found += 1
            least = -smallest(alike, found, heaviest - above)
            for place in range(found):
                above += -alike[place] > least
        size = 0
        for place in range(length):
            counts[bits[place] >> DROPPED_BITS] = 0
            value = worth[place]
            if value > least or (value == least and value > 0 and above < heaviest):
                above += value == least
                terms[row, size] = numbers[units[start + place]]
                size += 1
        lengths[row] = size


@numba.njit(nogil=True, cache=True)
def cut_of(documents: int) -> int:
    """How many of some documents belong into their first half."""
    half = (documents + 1) // 2
    unit = ALIGNMENT
    while 2 * unit > documents:
        unit //= 2
    return (half + unit - 1) // unit * unit


class DegreeBits(NamedTuple):
    """A term of degree d among n documents costs d log2(n / (d + 1)) = d log2(n) - all[d] bits."""

    all: NDArray[np.float64]
    last: NDArray[np.float32]  # all[d] - all[d - 1]


def degree_bits(num_documents: int) -> DegreeBits:
    """For degrees up to one more than the documents."""
    degrees = np.arange(num_documents + 2)
    bits = degrees * np.log2(degrees + 1)
    return DegreeBits(bits.astype(np.float64), np.diff(bits, prepend=0).astype(np.float32))


class Scratch(NamedTuple):
    """Arrays that the ranges of one thread share, by term (`total` and `in_first` all zeros) or by document."""

    total: NDArray[np.int32]  # documents of the range that have the term
    in_first: NDArray[np.int32]  # those of them in the first half
    gains: NDArray[np.float32]  # by term, bits saved by leaving the first, or by staying in the second half
    present: NDArray[np.int32]  # the terms of the range
    side: NDArray[np.uint8]  # 0: first half, 1: second
    preference: NDArray[np.float32]  # of a document for the second half
    excess: NDArray[np.float32]  # how far beyond the median those are that may move, -1 for the others
    work: NDArray[np.float32]
    moved: NDArray[np.int32]


@numba.njit(nogil=True, cache=True)
def new_scratch(num_terms: int, num_documents: int) -> Scratch:
    return Scratch(
        np.zeros(num_terms, np.int32),
        np.zeros(num_terms, np.int32),
        np.zeros((num_terms, 2), np.float32),
        np.empty(num_terms, np.int32),
        np.empty(num_documents, np.uint8),
        np.empty(num_documents, np.float32),
        np.empty(num_documents, np.float32),
        np.empty(num_documents, np.float32),
        np.empty(num_documents, np.int32),
    )


@numba.njit(nogil=True, cache=True)
def count_terms(
    terms: NDArray[Any], lengths: NDArray[np.uint16], start: int, cut: int, end: int, scratch: Scratch
) -> int:
    """Count the terms of both halves and drop those of one document; returns how many are left."""
    found = 0
    for document in range(start, end):
        second = document >= cut
        scratch.side[document - start] = second
        for place in range(lengths[document]):
            term = terms[document, place]
            if scratch.total[term] == 0:
                scratch.present[found] = term
                found += 1
            scratch.total[term] += 1
            if not second:
                scratch.in_first[term] += 1
    shared = 0
    for number in range(found):
        term = scratch.present[number]
        if scratch.total[term] > 1:
            scratch.present[shared] = term
            shared += 1
        else:
            scratch.total[term] = 0
            scratch.in_first[term] = 0
    for document in range(start, end):
        kept = 0
        for place in range(lengths[document]):
            term = terms[document, place]
            if scratch.total[term] > 0:
                terms[document, kept] = term
                kept += 1
        lengths[document] = kept
    return shared


@numba.njit(nogil=True, cache=True)
def weigh_terms(num_present: int, in_first: int, in_second: int, bits: DegreeBits, scratch: Scratch) -> float:
    """The cost of the two halves as the paper estimates it, and the gains of each term."""
    log_first, log_second = np.log2(float(in_first)), np.log2(float(in_second))
    advantage = np.float32(log_first - log_second)
    cost = 0.0
    for number in range(num_present):
        term = scratch.present[number]
        first = scratch.in_first[term]
        second = scratch.total[term] - first
        cost += first * log_first + second * log_second - bits.all[first] - bits.all[second]
        scratch.gains[term, 0] = advantage + bits.last[second + 1] - bits.last[first]
        scratch.gains[term, 1] = advantage + bits.last[second] - bits.last[first + 1]
    return cost


@numba.njit(nogil=True, cache=True)
def prefer(
    terms: NDArray[Any], lengths: NDArray[np.uint16], start: int, cut: int, end: int, scratch: Scratch
) -> tuple[float, int]:
    """How much each document wants to be in the second half; returns the median and how many pairs want to swap."""
    documents = end - start
    for document in range(documents):
        total = np.float32(0)
        side = scratch.side[document]
        for place in range(lengths[start + document]):
            total += scratch.gains[terms[start + document, place], side]
        scratch.preference[document] = total
        scratch.work[document] = total
    median = smallest(scratch.work, documents, cut - start)
    out_of_first = out_of_second = 0
    for document in range(documents):
        if scratch.side[document] == 0:
            out_of_first += scratch.preference[document] > median
        else:
            out_of_second += scratch.preference[document] < median
    # Beyond the median are as many of one half as of the other, but for those that are on it.
    return median, max(out_of_first, out_of_second)


@numba.njit(nogil=True, cache=True)
def change_side(
    terms: NDArray[Any], lengths: NDArray[np.uint16], start: int, document: int, scratch: Scratch
) -> None:
    step = 1 if scratch.side[document] else -1
    scratch.side[document] ^= 1
    for place in range(lengths[start + document]):
        scratch.in_first[terms[start + document, place]] += step


@numba.njit(nogil=True, cache=True)
def swap(
    terms: NDArray[Any],
    lengths: NDArray[np.uint16],
    start: int,
    end: int,
    median: float,
    pairs: int,
    scratch: Scratch,
) -> None:
    """Let the `pairs` documents of each half that want it most change sides; writes them into `moved`."""
    moved = 0
    for side in range(2):
        wanting = 0
        for document in range(end - start):
            excess = scratch.preference[document] - median
            if side == 1:
                excess = -excess
            if scratch.side[document] != side or excess < 0:
                scratch.excess[document] = -1
                continue
            scratch.excess[document] = excess
            scratch.work[wanting] = -excess
            wanting += 1
        least = -smallest(scratch.work, wanting, pairs)
        at_least = pairs
        for number in range(wanting):
            at_least -= -scratch.work[number] > least
        # Equal ones are taken from the outside, lest two halves alike swap documents alike for ever.
        for place in range(end - start):
            document = place if side == 0 else end - start - 1 - place
            excess = scratch.excess[document]
            if excess > least or (excess == least and at_least > 0):
                at_least -= excess == least
                scratch.moved[moved] = document
                moved += 1
    for number in range(moved):
        change_side(terms, lengths, start, scratch.moved[number], scratch)


@numba.njit(nogil=True, cache=True)
def bisect(
    terms: NDArray[Any],
    lengths: NDArray[np.uint16],
    start: int,
    cut: int,
    end: int,
    bits: DegreeBits,
    iterations: int,
    scratch: Scratch,
) -> None:
    """Decide for each document from `start` to `end` on which side of `cut` it belongs, in `scratch.side`."""
    num_present = count_terms(terms, lengths, start, cut, end, scratch)
    lowest = weigh_terms(num_present, cut - start, end - cut, bits, scratch)
    share = 1.0
    median, wanting = prefer(terms, lengths, start, cut, end, scratch)
    for _ in range(iterations):
        if wanting == 0:
            break
        pairs = max(1, int(wanting * share))
        swap(terms, lengths, start, end, median, pairs, scratch)
        cost = weigh_terms(num_present, cut - start, end - cut, bits, scratch)
        if cost < lowest:
            lowest = cost
            if 2 * pairs <= SETTLED * (end - start):
                break
            median, wanting = prefer(terms, lengths, start, cut, end, scratch)
        else:
            for number in range(2 * pairs):
                change_side(terms, lengths, start, scratch.moved[number], scratch)
            share *= 0.5
            if share < SMALLEST_STEP:
                break
    for number in range(num_present):
        scratch.total[scratch.present[number]] = 0
        scratch.in_first[scratch.present[number]] = 0


@numba.njit(nogil=True, cache=True)
def arrange(
    terms: NDArray[Any],
    lengths: NDArray[np.uint16],
    order: NDArray[np.int64],
    start: int,
    cut: int,
    end: int,
    side: NDArray[np.uint8],
    moved: tuple[NDArray[Any], NDArray[np.uint16], NDArray[np.int64]],
) -> None:
    """Put the documents of each side together, in the order that they have, by way of `moved`."""
    moved_terms, moved_lengths, moved_order = moved
    first, second = start, cut
    for document in range(start, end):
        if side[document - start]:
            target = second
            second += 1
        else:
            target = first
            first += 1
        for place in range(lengths[document]):
            moved_terms[target, place] = terms[document, place]
        moved_lengths[target] = lengths[document]
        moved_order[target] = order[document]
    for document in range(start, end):
        for place in range(moved_lengths[document]):
            terms[document, place] = moved_terms[document, place]
    lengths[start:end] = moved_lengths[start:end]
    order[start:end] = moved_order[start:end]


@numba.njit(nogil=True, cache=True)
def bisect_range(
    terms: NDArray[Any],
    lengths: NDArray[np.uint16],
    order: NDArray[np.int64],
    num_terms: int,
    bits: DegreeBits,
    iterations: int,
    levels: int,
) -> list[tuple[int, int]]:
    """Reorder documents, with their sketches, by `levels` levels of bisection; returns the ranges of the last one."""
    num_documents, width = terms.shape
    scratch = new_scratch(num_terms, num_documents)
    moved = (
        np.empty((num_documents, width), terms.dtype),
        np.empty(num_documents, np.uint16),
        np.empty(num_documents, np.int64),
    )
    ranges = [(0, num_documents)]
    for _ in range(levels):
        halves = ranges[:0]
        for start, end in ranges:
            if end - start <= SMALLEST:
                halves.append((start, end))
                continue
            cut = start + cut_of(end - start)
            bisect(terms, lengths, start, cut, end, bits, iterations, scratch)
            arrange(terms, lengths, order, start, cut, end, scratch.side, moved)
            halves.append((start, cut))
            halves.append((cut, end))
        ranges = halves
    return ranges

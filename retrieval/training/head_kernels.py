"""Kernels of the vocabulary head's maximum and of its gradients, on the processor."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numba
import numpy as np
from numpy.typing import NDArray


@numba.njit(nogil=True, cache=True, boundscheck=False)
def update_maxima(
    logits: NDArray[np.float32],
    owners: NDArray[np.int64],
    first_token: int,
    first_term: int,
    highest: NDArray[np.float32],
    positions: NDArray[np.int32],
) -> None:
    """Take a tile of logits into running maxima; of equal ones the first token stays.

    Args:
        logits: ``[tokens, terms of the tile]``, of the tokens from `first_token` and the terms from `first_term`.
        owners: ``[tokens]``, the row of each.
        highest: ``[rows, terms]``, changed.
        positions: ``[rows, terms]``, the token of each maximum, changed; a NaN is taken as a maximum, and stays.
    """
    for token in range(logits.shape[0]):
        row = owners[token]
        position = np.int32(first_token + token)
        best = highest[row, first_term : first_term + logits.shape[1]]
        where = positions[row, first_term : first_term + logits.shape[1]]
        for term in range(logits.shape[1]):
            value = logits[token, term]
            # a NaN must come out, so that training stops on it
            better = value > best[term] or value != value
            best[term] = value if better else best[term]
            where[term] = position if better else where[term]


def scatter_gradients(
    gradient: NDArray[np.float32],
    positions: NDArray[np.int32],
    weight: NDArray[np.float32],
    for_hidden: NDArray[np.float32],
    num_threads: int,
) -> None:
    """``for_hidden[positions[r, j]] += gradient[r, j] · weight[j]``; each row has tokens of its own."""
    _in_parts(
        len(gradient),
        num_threads,
        lambda begin, end: _scatter(gradient[begin:end], positions[begin:end], weight, for_hidden),
    )


def gather_gradients(
    gradient: NDArray[np.float32],
    positions: NDArray[np.int32],
    hidden: NDArray[np.float32],
    for_weight: NDArray[np.float32],
    num_threads: int,
) -> None:
    """``for_weight[j] += Σ_r gradient[r, j] · hidden[positions[r, j]]``."""
    _in_parts(
        len(for_weight),
        num_threads,
        lambda begin, end: _gather(gradient, positions, hidden, for_weight, begin, end),
    )


@numba.njit(nogil=True, cache=True, boundscheck=False)
def _scatter(
    gradient: NDArray[np.float32],
    positions: NDArray[np.int32],
    weight: NDArray[np.float32],
    for_hidden: NDArray[np.float32],
) -> None:
    for row in range(gradient.shape[0]):
        for term in range(gradient.shape[1]):
            scale = gradient[row, term]
            if scale != 0:
                into = for_hidden[positions[row, term]]
                for i in range(weight.shape[1]):
                    into[i] += scale * weight[term, i]


@numba.njit(nogil=True, cache=True, boundscheck=False)
def _gather(
    gradient: NDArray[np.float32],
    positions: NDArray[np.int32],
    hidden: NDArray[np.float32],
    for_weight: NDArray[np.float32],
    begin: int,
    end: int,
) -> None:
    # rows outside: one row's tokens stay in the cache while all its terms are added
    for row in range(gradient.shape[0]):
        for term in range(begin, end):
            scale = gradient[row, term]
            if scale != 0:
                token = positions[row, term]
                for i in range(hidden.shape[1]):
                    for_weight[term, i] += scale * hidden[token, i]


def _in_parts(count: int, num_threads: int, work: Callable[[int, int], None]) -> None:
    """Call `work` for ranges that cover ``[0, count)``, each on a thread; sums do not depend on their number."""
    parts = max(1, min(num_threads, count))
    bounds = [count * part // parts for part in range(parts + 1)]
    if parts == 1:
        work(0, count)
        return
    with ThreadPoolExecutor(parts) as threads:
        for done in [threads.submit(work, *bounds[part : part + 2]) for part in range(parts)]:
            done.result()

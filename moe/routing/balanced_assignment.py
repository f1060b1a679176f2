"""The assignment of tokens to experts, all equally loaded, that has the highest sum of scores."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from runtime.errors import InputError

SCALE = 2**32
"""Scores become whole numbers up to this one, so that no rounding error makes a cycle look like a gain."""

UNREACHED = 2**61
"""Above the cost of any path, and still a whole number of 64 bits when a score is taken from it."""


def balanced_assignment(scores: NDArray[np.float32]) -> NDArray[np.int32]:
    """The expert of each token, so that loads differ by at most 1 and the sum of the scores is the highest.

    Successive shortest paths over the experts (a transportation problem): tokens come one by one, and each takes
    the cheapest way to an expert with room, moving others on from expert to expert where that pays. Exact for
    scores rounded to 2⁻³² of their range, and deterministic; a token costs about ``experts²`` operations.

    Args:
        scores: finite ``[tokens, experts]``.

    Returns:
        int32 ``[tokens]``.

    Raises:
        InputError: a score is infinite or NaN.
    """
    if not np.isfinite(scores).all():
        raise InputError("a balanced assignment needs finite scores; some are infinite or NaN")
    if not len(scores):
        return np.zeros(0, np.int32)
    exact = scores.astype(np.float64)
    spread = exact.max() - exact.min()
    # Without a spread any even assignment will do, and there is nothing to divide by.
    gains = np.rint((exact - exact.min()) / (spread or 1.0) * SCALE)
    return _assign(gains.astype(np.int64))


@njit(nogil=True, cache=True)
def _assign(gains: NDArray[np.int64]) -> NDArray[np.int32]:
    num_tokens, num_experts = gains.shape
    least = num_tokens // num_experts
    expert_of = np.empty(num_tokens, np.int32)
    load = np.zeros(num_experts, np.int64)
    members = np.empty((num_experts, least + 1), np.int64)
    place = np.zeros(num_tokens, np.int64)
    # For each pair of experts, which token of the first loses least by going over, and how much that is.
    mover = np.full((num_experts, num_experts), -1, np.int64)
    loss = np.full((num_experts, num_experts), UNREACHED, np.int64)
    distance = np.empty(num_experts, np.int64)
    previous = np.empty(num_experts, np.int64)
    for token in range(num_tokens):
        # All experts fill up to the least load before any takes the one token more that is left over.
        room = least if token < least * num_experts else least + 1
        for expert in range(num_experts):
            distance[expert] = -gains[token, expert]
            previous[expert] = -1
        _relax(loss, distance, previous)
        expert, lowest = -1, UNREACHED
        for candidate in range(num_experts):
            if load[candidate] < room and distance[candidate] < lowest:
                expert, lowest = candidate, distance[candidate]
        # Back along the path: each expert sends a token on and takes one from the expert before it.
        sent, free = -1, load[expert]
        load[expert] += 1
        while True:
            source = previous[expert]
            taken = token if source < 0 else mover[source, expert]
            left = place[taken]
            place[taken] = free
            members[expert, free] = taken
            expert_of[taken] = expert
            # The movers of the expert before are still needed; its row is rewritten in its own turn.
            _rewrite(gains, members[expert, : load[expert]], expert, taken, sent, mover[expert], loss[expert])
            if source < 0:
                break
            sent, free, expert = taken, left, source
    return expert_of


@njit(nogil=True, cache=True)
def _relax(loss: NDArray[np.int64], distance: NDArray[np.int64], previous: NDArray[np.int64]) -> None:
    """Shortest paths by Bellman and Ford: losses may be negative, but no cycle of them is."""
    num_experts = len(distance)
    changed = True
    while changed:
        changed = False
        for source in range(num_experts):
            for target in range(num_experts):
                through = distance[source] + loss[source, target]
                if through < distance[target]:
                    distance[target] = through
                    previous[target] = source
                    changed = True


@njit(nogil=True, cache=True)
def _rewrite(
    gains: NDArray[np.int64],
    members: NDArray[np.int64],
    expert: int,
    taken: int,
    sent: int,
    mover: NDArray[np.int64],
    loss: NDArray[np.int64],
) -> None:
    """The movers of one expert, after it took one token and sent another (-1 for none) on."""
    for target in range(len(mover)):
        if target == expert:
            continue
        if sent >= 0 and mover[target] == sent:
            loss[target] = UNREACHED
            for member in members:
                if gains[member, expert] - gains[member, target] < loss[target]:
                    loss[target] = gains[member, expert] - gains[member, target]
                    mover[target] = member
        elif gains[taken, expert] - gains[taken, target] < loss[target]:
            loss[target] = gains[taken, expert] - gains[taken, target]
            mover[target] = taken

"""Selectors: which few units of each row of dense scores light up.

Each is called with scores ``[rows, units]``, NumPy or torch, and returns a `SparseActivations` whose weights
are the scores that were kept, with int32 units ascending in each row. Of equal scores the lower unit wins.
NaN has no place in an order and is refused. With torch, gradients flow to the scores that were kept.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from runtime.activations import Array, SparseActivations, is_tensor
from runtime.errors import InputError, UsageError
from runtime.kernels.registry import kernel


@dataclass(frozen=True, slots=True)
class TopK:
    """The `k` highest scores of each row; all of them where there are fewer units."""

    k: int

    def __post_init__(self) -> None:
        if not isinstance(self.k, int | np.integer) or isinstance(self.k, bool) or self.k < 1:
            raise UsageError(f"top-k needs a whole k of 1 or more, not {self.k!r}")

    def __call__(self, scores: Array) -> SparseActivations:
        units, kept = self._of_tile(scores)
        return SparseActivations.from_topk(units, kept, scores.shape[1])

    def over_tiles(self, tiles: Iterable[Array]) -> SparseActivations:
        """The same over scores that come in tiles, so that ``[rows, units]`` never exists.

        Args:
            tiles: ``[rows, width]`` scores of consecutive units, first to last; widths may differ.

        Raises:
            UsageError: there is no tile, or tiles differ in their number of rows.
        """
        best: tuple[Any, Any] | None = None
        num_units = 0
        for tile in tiles:
            units, scores = self._of_tile(tile)
            units = units + num_units
            num_units += tile.shape[1]
            if best is not None:
                if len(best[0]) != len(units):
                    raise UsageError(f"a tile of {len(units)} rows follows one of {len(best[0])}")
                # What was kept so far stands first, so that the lower unit still wins a tie.
                units, scores = _beside(best[0], units), _beside(best[1], scores)
                columns, scores = self._of_tile(scores)
                units = _pick(units, columns)
            best = units, scores
        if best is None:
            raise UsageError("top-k got no tile of scores")
        return SparseActivations.from_topk(*best, num_units=num_units)

    def _of_tile(self, scores: Array) -> tuple[Any, Any]:
        _check_scores(scores)
        units, kept = kernel("top_k", scores)(scores, min(self.k, scores.shape[1]))
        return units, kept


@dataclass(frozen=True, slots=True)
class Threshold:
    """The scores above `threshold`, strictly, so that 0 keeps what a ReLU lets through."""

    threshold: float

    def __post_init__(self) -> None:
        if np.isnan(self.threshold):
            raise UsageError("the threshold is NaN")

    def __call__(self, scores: Array) -> SparseActivations:
        _check_scores(scores)
        return SparseActivations.from_mask(scores, scores > self.threshold)


@dataclass(frozen=True, slots=True)
class TopP:
    """The fewest highest scores that make up the fraction `p` of the row's sum (nucleus; XMoE, Yang et al. 2024).

    Scores are non-negative masses such as softmax probabilities and need not add up to 1. A row with any mass
    keeps at least one unit; a row of zeros keeps none.
    """

    p: float

    def __post_init__(self) -> None:
        if not 0 < self.p <= 1:
            raise UsageError(f"top-p needs a p above 0 and up to 1, not {self.p}")

    def __call__(self, scores: Array) -> SparseActivations:
        _check_scores(scores)
        if bool((scores < 0).any()):
            raise InputError("top-p got negative scores; it takes masses, for example a softmax")
        return SparseActivations.from_mask(scores, kernel("top_p", scores)(scores, self.p))


@dataclass(frozen=True, slots=True, eq=False)
class OutputMagnitude:
    """The neurons whose contribution to the output has a norm of at least `epsilon`.

    Neuron `j` with activation a_j adds a_j · w_j to the output of a feed-forward block, with norm
    ``|a_j| · ‖w_j‖``; below ε it counts as inactive (Zhang et al. 2024, "ReLU² Wins"). An activation
    of 0 contributes nothing and is never kept.

    Attributes:
        epsilon: ≥ 0.
        output_norms: ``[units]``, the norm ‖w_j‖ of each neuron's output weights.
    """

    epsilon: float
    output_norms: Array

    def __post_init__(self) -> None:
        if not self.epsilon >= 0:
            raise UsageError(f"output magnitude needs an epsilon of 0 or more, not {self.epsilon}")

    def __call__(self, scores: Array) -> SparseActivations:
        _check_scores(scores)
        norms: Any = self.output_norms
        if tuple(norms.shape) != (scores.shape[1],):
            raise UsageError(
                f"output norms {tuple(norms.shape)} do not fit scores of {scores.shape[1]} units"
            )
        if is_tensor(scores):
            import torch

            norms = torch.as_tensor(norms, device=scores.device)
        return SparseActivations.from_mask(scores, (abs(scores * norms) >= self.epsilon) & (scores != 0))


def _check_scores(scores: Any) -> None:
    if scores.ndim != 2:
        raise UsageError(f"scores must be [rows, units], not of shape {tuple(scores.shape)}")
    unordered = scores != scores  # true for NaN alone, in both libraries
    if bool(unordered.any()):
        rows = unordered.any(1).nonzero()
        row = int(rows[0] if is_tensor(rows) else rows[0][0])
        raise InputError(f"the scores of row {row} hold NaN; nothing can be selected from them")


def _beside(left: Any, right: Any) -> Any:
    if is_tensor(left):
        import torch

        return torch.cat([left, right], 1)
    return np.concatenate([left, right], 1)


def _pick(values: Any, columns: Any) -> Any:
    if is_tensor(values):
        return values.gather(1, columns.long())
    return np.take_along_axis(values, columns, axis=1)

"""What keeps activations sparse and even, and the schedules of its strength.

Everything takes NumPy arrays or torch tensors and returns a scalar of the same kind, with gradients in torch.
FLOPS and load balance are penalties on one quantity, the mean activity of each unit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.activations import Array, SparseActivations, is_tensor
from runtime.errors import UsageError
from runtime.kernels.registry import kernel


def mean_activity(weights: Array) -> Array:
    """``mean_i |w_ij|`` of each unit: ``[rows, units]`` to ``[units]``; zeros for a batch without rows.

    Under data parallelism, average this over the devices before squaring, or the penalty depends on their
    number.
    """
    magnitudes: Any = abs(weights)
    activity: Array = magnitudes.sum(0) / max(len(weights), 1)
    return activity


def flops(weights: Array) -> Array:
    """``Σ_j (mean_i |w_ij|)²``, a smooth bound on the operations of scoring (Paria et al. 2020; SPLADE).

    Args:
        weights: ``[rows, units]``.
    """
    return _sum_of_squares(mean_activity(weights))


def idf_flops(weights: Array, idf: Array) -> Array:
    """FLOPS in which rare terms are cheaper: ``Σ_j (mean_i |w_ij| / idf_j)²``.

    For documents whose queries weigh terms by idf (Geng et al. 2024, inference-free retrieval): what a common
    term adds to all scores alike is penalised most.

    Args:
        weights: ``[rows, units]``.
        idf: positive ``[units]``.
    """
    if not bool((idf > 0).all()):
        raise UsageError("idf must be positive for every unit; add a floor for terms that all documents have")
    return _sum_of_squares(mean_activity(weights) / idf)


def l1(weights: Array) -> Array:
    """``mean_i Σ_j |w_ij|``.

    Args:
        weights: ``[rows, units]``.
    """
    return mean_activity(weights).sum()


def load_balance(selected: SparseActivations, probabilities: Array) -> Array:
    """``E · Σ_e f_e · P_e`` of one layer; 1 when even, up to the number of experts E when collapsed.

    f_e is the share of the selections that went to expert `e`, P_e its mean probability (Fedus et al. 2021,
    Switch Transformers, eq. 4–6, divided by k so that the even value is 1 for any k). Gradients flow through P.
    Call it once per layer: pooled over layers, each collapsed onto other experts, it would look even.

    Args:
        selected: ``[rows, E]``, the experts of each row.
        probabilities: ``[rows, E]``, the router's softmax.
    """
    if (selected.num_rows, selected.num_units) != tuple(probabilities.shape):
        raise UsageError(
            f"selected experts [{selected.num_rows}, {selected.num_units}] do not fit probabilities "
            f"{tuple(probabilities.shape)}"
        )
    arrays = selected.indptr, selected.units
    share: Any = kernel("count_units", *arrays)(*arrays, selected.num_units) / max(selected.nnz, 1)
    share = share.to(probabilities.dtype) if is_tensor(probabilities) else share
    balance: Array = selected.num_units * (share * mean_activity(probabilities)).sum()
    return balance


def z_loss(logits: Array) -> Array:
    """``mean_i (log Σ_j exp x_ij)²``, which keeps a router's logits small (Zoph et al. 2022, ST-MoE, eq. 5).

    Args:
        logits: ``[rows, units]`` before the softmax, of one unit or more. No rows give 0; a row whose units are
            all -∞, or one of them ∞, gives ∞.

    Raises:
        UsageError: there are no units, so that there is nothing to add up.
    """
    if logits.ndim != 2 or not logits.shape[1]:
        raise UsageError(f"z-loss needs logits [rows, units] of 1 unit or more, not {tuple(logits.shape)}")
    if is_tensor(logits):
        return logits.logsumexp(1).square().sum() / max(len(logits), 1)
    highest: NDArray[Any] = np.max(logits, 1, keepdims=True)
    highest[~np.isfinite(highest)] = 0  # ∞ - ∞ has no value
    with np.errstate(divide="ignore"):  # log 0 is -∞
        normaliser = highest[:, 0] + np.log(np.exp(logits - highest).sum(1))
    loss: Array = np.square(normaliser).sum() / max(len(logits), 1)
    return loss


@dataclass(frozen=True, slots=True)
class Constant:
    """The same strength at every step."""

    strength: float

    def __call__(self, step: int) -> float:
        del step
        return self.strength


@dataclass(frozen=True, slots=True)
class QuadraticRamp:
    """``λ · min(1, (t / T)²)``: nearly free at first, so that training does not collapse to empty vectors.

    Attributes:
        strength: λ, reached at step T.
        steps: T, at least 1.
    """

    strength: float
    steps: int

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise UsageError(f"a ramp takes 1 step or more, not {self.steps}; use Constant for none")

    def __call__(self, step: int) -> float:
        return self.strength * min(1.0, (step / self.steps) ** 2)


def _sum_of_squares(activity: Any) -> Array:
    total: Array = (activity * activity).sum()
    return total

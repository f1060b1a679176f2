"""What keeps term weights sparse in training, of one value whatever the number of processes.

FLOPS squares the mean activity of a term over the batch, and the square of a mean is not the mean of squares: where
each process squares its own mean, as usual data parallelism has it, the penalty grows with the number of processes
at equal batches. Here the mean is taken over the rows of all processes before it is squared.

Gradients: data parallelism averages those of the processes, so each must give the gradient of the whole value times
the number of processes. The sum over processes that the mean is made of does so on its way back.
"""

from __future__ import annotations

from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from runtime.errors import UsageError

PenaltyKind = Literal["flops", "l1", "idf_flops"]


class Penalty(Protocol):
    """A penalty of term weights."""

    def __call__(self, weights: Tensor, counts: Tensor | None = None) -> Tensor:
        """A scalar, the same on each process.

        Args:
            weights: float32 ``[rows, terms]``, of the rows on this process.
            counts: float32 ``[terms]``, how many terms each stands for, see `retrieval.training.term_sample`; None
                for 1.
        """
        ...


def make_penalty(kind: PenaltyKind, idf: Tensor | None = None, free_terms: int = 0) -> Penalty:
    """A penalty by name.

    Args:
        kind: ``"flops"``: ``Σ_j (mean_i |w_ij|)²`` (Paria et al. 2020); ``"l1"``: ``mean_i Σ_j |w_ij|`` (Lassance
            and Clinchant 2022, for queries); ``"idf_flops"``: ``Σ_j (mean_i |w_ij| / idf_j)²`` (Geng et al. 2024).
        idf: positive ``[terms]``, for ``"idf_flops"``.
        free_terms: rows of so many terms or fewer are free, and count as rows without weight: the ℓ0 mask (Shen et
            al. 2025, "Exploring ℓ0 sparsification for inference-free sparse retrievers"). 0 frees none.

    Raises:
        UsageError: `idf` is missing, or not positive.
    """
    if kind == "idf_flops":
        if idf is None:
            raise UsageError(
                "the penalty idf_flops needs the idf of terms, which an encoder with a query table has"
            )
        if not bool((idf > 0).all()):
            raise UsageError(
                "idf must be positive for every term; add a floor for terms that all passages have"
            )

    def penalty(weights: Tensor, counts: Tensor | None = None) -> Tensor:
        if free_terms:
            weights = weights * (active_terms(weights, counts) > free_terms).unsqueeze(1)
        activity = mean_activity(weights)
        if kind != "l1":
            activity = (activity if idf is None else activity / idf.to(activity.device)).square()
        return (activity if counts is None else activity * counts).sum()

    return penalty


def active_terms(weights: Tensor, counts: Tensor | None) -> Tensor:
    """Number of terms above 0 in each row, float32 ``[rows]``, of which each stands for so many."""
    lit = (weights > 0).float()
    return lit.sum(1) if counts is None else lit @ counts


def mean_activity(weights: Tensor) -> Tensor:
    """``mean_i |w_ij|`` over the rows of all processes, float32 ``[terms]``; processes may have different numbers."""
    total, rows = weights.abs().sum(0), torch.tensor(float(len(weights)), device=weights.device)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        total = _SumOverProcesses.apply(total)
        torch.distributed.all_reduce(rows)
    return total / rows.clamp(min=1.0)


class _SumOverProcesses(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        del ctx
        summed = values.clone()
        torch.distributed.all_reduce(summed)
        return summed

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        del ctx
        summed = gradients[0].clone()
        torch.distributed.all_reduce(summed)
        return summed

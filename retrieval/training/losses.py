"""What a student's scores are trained to be: contrastive losses and distillation, over matrices of scores.

A batch has ``q`` queries and ``p`` passages. The passages of query ``i`` that were listed for it, its positive first
and then its negatives, are at ``listed[i]``; every other passage of the batch is a candidate too.
"""

from __future__ import annotations

import torch
from torch import Tensor

LOWEST = -1e9
"""Score of what is left out of a softmax; not -∞, whose gradients have no number in rows without candidates."""


def contrastive_loss(scores: Tensor, positives: Tensor, known: Tensor | None, temperature: float) -> Tensor:
    """``-log softmax`` of each query's positive over all passages of the batch (SPLADE-max; InfoNCE).

    Args:
        scores: ``[q, p]``.
        positives: int64 ``[q]``, columns.
        known: bool ``[q, p]``, passages that are positives of the query too and therefore no negatives; None for
            none. The column in `positives` counts in any case.
        temperature: what scores are divided by.
    """
    logits = scores / temperature
    if known is not None:
        itself = torch.zeros_like(known).scatter_(1, positives.unsqueeze(1), True)
        logits = logits.masked_fill(known & ~itself, LOWEST)
    return torch.nn.functional.cross_entropy(logits, positives)


def margin_mse_loss(scores: Tensor, teacher: Tensor, known: Tensor) -> Tensor:
    """Mean squared difference of margins between the positive and each negative (Hofstätter et al. 2020, eq. 5).

    Args:
        scores: ``[q, n]`` of the student, the positive's first.
        teacher: ``[q, n]``, of the teacher.
        known: bool ``[q, n]``, which of them there are; the positive is always there.

    Returns:
        A scalar; 0 where no query has a negative.
    """
    apart = (scores[:, :1] - scores[:, 1:]) - (teacher[:, :1] - teacher[:, 1:])
    counted = known[:, 1:]
    return apart.masked_fill(~counted, 0.0).square().sum() / counted.sum().clamp(min=1)


def distillation_loss(
    scores: Tensor, teacher: Tensor, known: Tensor | None, temperature: float, scale: float
) -> Tensor:
    """``KL(softmax(scale · teacher) ‖ softmax(scores / temperature))``, the mean over queries.

    Args:
        scores: ``[q, n]`` of the student: over the listed passages, or over all of the batch.
        teacher: ``[q, n]``.
        known: bool ``[q, n]``, which candidates count; None for all. At least one of each query does.
        temperature: of the student's scores.
        scale: what the teacher's scores are multiplied by: normalised to [0, 1], they say little unless stretched.
    """
    student, target = scores / temperature, teacher * scale
    if known is not None:
        student, target = student.masked_fill(~known, LOWEST), target.masked_fill(~known, LOWEST)
    return torch.nn.functional.kl_div(
        student.log_softmax(1), target.log_softmax(1), reduction="batchmean", log_target=True
    )


def listed_scores(scores: Tensor, listed: Tensor) -> tuple[Tensor, Tensor]:
    """Columns of each query's own passages.

    Args:
        scores: ``[q, p]``.
        listed: int64 ``[q, n]``, columns; -1 where a query has fewer passages than another.

    Returns:
        ``[q, n]``, and bool ``[q, n]``: whether there is one.
    """
    return scores.gather(1, listed.clamp(min=0)), listed >= 0

"""What a router of transformers weighs its experts by: the softmax of its logits, or their sigmoids."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

TOLERANCE = 0.03
"""Most by which a share of a token's weights may differ; bfloat16 rounds by 0.4 %."""

TOKENS = 256
"""Looked at to tell the two apart."""


def router_probabilities(logits: Tensor, units: Tensor, outputs: Sequence[Any]) -> Tensor | None:
    """What the balance loss of a router takes for its probabilities, ``[tokens, experts]``; rows add up to 1.

    The softmax of all logits (Switch Transformers), or, of a router that weighs by sigmoids, these divided by their
    sum (DeepSeek-V3, arXiv:2412.19437, eq. 17-20). Which of the two it is shows in the weights of the chosen experts,
    however they are scaled. Groups and selection biases change what is chosen, and not these.

    Args:
        logits: float32 ``[tokens, experts]``.
        units: ``[tokens, k]``, the chosen experts.
        outputs: all that the router returned.

    Returns:
        None where the weights are proportional to neither.
    """
    softmax, sigmoid = logits.softmax(1), logits.sigmoid()
    weights = next((value for value in outputs if _are_weights(value, logits, units)), None)
    if weights is None:
        return softmax
    units = units.long()[:TOKENS]
    weights = weights.detach().float().reshape(len(logits), -1)[:TOKENS]
    if weights.shape[1] != units.shape[1]:
        weights = weights.gather(1, units)
    distances = [
        _distance(weights, scores.detach()[:TOKENS].gather(1, units)) for scores in (softmax, sigmoid)
    ]
    if min(distances) > TOLERANCE:
        return None
    return softmax if distances[0] <= distances[1] else sigmoid / sigmoid.sum(1, keepdim=True)


def _are_weights(value: Any, logits: Tensor, units: Tensor) -> bool:
    if not isinstance(value, Tensor) or not value.is_floating_point() or value.ndim < 2:
        return False
    width = value.shape[-1]
    if value.numel() != len(logits) * width or width not in (units.shape[1], logits.shape[1]):
        return False
    return not (width == logits.shape[1] and torch.equal(value.reshape(logits.shape).float(), logits))


def _distance(weights: Tensor, scores: Tensor) -> float:
    """Largest difference of the shares that a token's experts have; of single experts, of the weights themselves."""
    if not len(weights):
        return 0.0
    if weights.shape[1] == 1:
        off = torch.minimum((weights - scores).abs(), (weights - 1).abs())
    else:
        off = (weights / weights.sum(1, keepdim=True) - scores / scores.sum(1, keepdim=True)).abs()
    return float(off.max())

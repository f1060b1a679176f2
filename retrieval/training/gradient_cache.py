"""Gradients of a large batch with the memory of a part of it (Gao et al. 2021, "Scaling deep contrastive learning").

A contrastive loss needs the vectors of all texts at once, but not what the model kept on the way to them. So all
parts are encoded without gradients; the loss gives the gradient of each vector; and each part is encoded once more,
with gradients, to take it through the model. The random state of the first pass is restored in the second, so that
dropout is the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Encode = Callable[[], Tensor]
"""Vectors of one part, ``[rows, terms]``."""


def backward_in_parts(parts: Sequence[Encode], loss_of: Callable[[list[Tensor]], Tensor]) -> Tensor:
    """Add the gradients of ``loss_of(vectors of all parts)`` to the parameters behind it, part by part.

    Equals encoding all parts at once and going back through them, within rounding.

    Returns:
        The loss, without gradients.
    """
    states, vectors = [], []
    with torch.no_grad():
        for encode in parts:
            states.append(_random_state())
            vectors.append(encode())
    leaves = [part.requires_grad_() for part in vectors]
    loss = loss_of(leaves)
    loss.backward()
    after = _random_state()
    for encode, state, leaf in zip(parts, states, leaves, strict=True):
        _restore(state)
        again = encode()
        if again.requires_grad and leaf.grad is not None:
            again.backward(leaf.grad)
    _restore(after)
    return loss.detach()


def _random_state() -> tuple[Tensor, list[Tensor]]:
    return torch.get_rng_state(), torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []


def _restore(state: tuple[Tensor, list[Tensor]]) -> None:
    torch.set_rng_state(state[0])
    if state[1]:
        torch.cuda.set_rng_state_all(state[1])

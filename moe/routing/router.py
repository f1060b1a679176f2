"""What every router takes and returns: tokens in, the experts of each token out."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from numbers import Real

import torch
from torch import Tensor

from runtime.activations import SparseActivations
from runtime.errors import UsageError


@dataclass(frozen=True, slots=True, eq=False)
class Tokens:
    """What a router sees of a batch, all sequences one after the other.

    Attributes:
        hidden: ``[tokens, width]``, of any floating dtype; routers compute in float32.
        sequences: int64 ``[tokens]``, the sequence that each token is of, ascending from 0; None where the
            caller does not say.
        ids: int64 ``[tokens]``, vocabulary ids.
        tasks: int64 ``[tokens]``, the task of each token.
        classes: int64 ``[tokens]``, the super-class of each token's sequence, for a router that is taught it;
            -100 where it is not known.
    """

    hidden: Tensor
    sequences: Tensor | None = None
    ids: Tensor | None = None
    tasks: Tensor | None = None
    classes: Tensor | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Routing:
    """What a router decided.

    Attributes:
        gates: torch, ``[tokens, experts]``; int32 units and float32 weights, which scale the outputs of the
            experts and through which gradients reach the router.
        scores: float32 ``[tokens, experts]``, what each expert was worth to each token: probabilities, or
            sigmoids.
        losses: scalars, not scaled by any coefficient; ``"load_balance"`` is 1 when even.
        capacity: most entries that one expert takes, for `runtime.dispatch.dispatch`; None drops nothing.
    """

    gates: SparseActivations
    scores: Tensor
    losses: dict[str, Tensor]
    capacity: int | None = None


class Router(torch.nn.Module):
    """Base of all routers. A subclass says in `route` what it decides.

    Attributes:
        num_experts: experts to choose from.
        width: of the hidden states; None where they do not matter.
        is_causal: whether the experts of a token depend on nothing that comes after it when the model is used.
            What is not causal has no place in a decoder.
        looks_ahead: for one that is not causal, what it looks at, as half a sentence.
    """

    is_causal = True
    looks_ahead = ""

    def __init__(self, num_experts: int, width: int | None = None) -> None:
        super().__init__()
        for name, number in (("num_experts", num_experts), ("width", 1 if width is None else width)):
            if not isinstance(number, int) or isinstance(number, bool) or number < 1:
                raise UsageError(f"{name} is {number!r}, but a router needs a whole number of 1 or more")
        self.num_experts = num_experts
        self.width = width

    def forward(self, tokens: Tokens) -> Routing:
        """Choose the experts of each token, in float32 whatever the dtype of `tokens` and under autocast.

        Raises:
            UsageError: `tokens` do not fit, or lack what this router decides by.
            InputError: hidden states are NaN.
        """
        hidden = tokens.hidden
        if hidden.ndim != 2 or self.width not in (None, hidden.shape[1]):
            raise UsageError(
                f"hidden states are {tuple(hidden.shape)}, but the router takes [tokens, {self.width or 'width'}]"
            )
        # bfloat16 logits tie, and break the equality with a dense parent, for some tokens in a thousand.
        with torch.autocast(hidden.device.type, enabled=False):
            return self.route(tokens)

    @abstractmethod
    def route(self, tokens: Tokens) -> Routing:
        """What `forward` returns; called with autocast off and hidden states of the right shape."""


def require_causal(router: Router) -> None:
    """Refuse a router that cannot be used in a decoder.

    Raises:
        UsageError: what it decides for a token depends on tokens after it, which do not exist yet when a
            decoder generates, so that training would leak the future and generation would route otherwise.
    """
    if not router.is_causal:
        raise UsageError(
            f"{type(router).__name__} {router.looks_ahead}, later tokens included, which a decoder does not have "
            "when it generates; use a token-choice router such as top_k there, or this one in an encoder"
        )


def require_top_k(top_k: int, num_experts: int) -> int:
    """`top_k` itself.

    Raises:
        UsageError: it is not a whole number from 1 to `num_experts`.
    """
    if not isinstance(top_k, int) or isinstance(top_k, bool) or not 1 <= top_k <= num_experts:
        raise UsageError(
            f"top_k is {top_k!r}, but a token can go to 1 to {num_experts} of {num_experts} experts"
        )
    return top_k


def require_capacity_factor(factor: float | None) -> float | None:
    """`factor` itself.

    Raises:
        UsageError: it is neither None nor a finite number above 0.
    """
    is_number = isinstance(factor, Real) and not isinstance(factor, bool)
    if factor is not None and not (is_number and 0 < float(factor) < math.inf):
        raise UsageError(
            f"the capacity factor is {factor!r}, but must be a number above 0, or None to drop nothing"
        )
    return factor


def capacity_of(factor: float | None, entries: int, num_experts: int) -> int | None:
    """``⌈factor · entries / num_experts⌉``, or None for no `factor`."""
    if factor is None:
        return None
    # 1.1 · 10 / 11 is a little more than 1 in binary, and would become 2.
    return math.ceil(factor * entries / num_experts - 1e-9)


def renormalised(weights: Tensor) -> Tensor:
    """Each row of ``[tokens, k]`` divided by its sum; a row of zeros stays one."""
    return weights / weights.sum(1, keepdim=True).clamp(min=torch.finfo(weights.dtype).tiny)


def of_tokens(tokens: Tokens, name: str, router: str) -> Tensor:
    """The field `name` of `tokens`, int64 ``[tokens]``.

    Raises:
        UsageError: it is missing, of another shape, or of no whole numbers.
    """
    values: Tensor | None = getattr(tokens, name)
    if values is None:
        raise UsageError(f"{router} needs Tokens.{name}, which is None; pass int64 [tokens]")
    if values.shape != tokens.hidden.shape[:1]:
        raise UsageError(
            f"Tokens.{name} is {tuple(values.shape)}, but there are {len(tokens.hidden)} hidden states"
        )
    if values.dtype not in (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8):
        raise UsageError(
            f"Tokens.{name} is {values.dtype}, but {router} needs whole numbers; pass int64 [tokens]"
        )
    return values.long()

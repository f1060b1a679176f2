"""A mixture-of-experts layer: route, dispatch, grouped matmul, combine."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from moe.experts import Experts
from moe.routing.router import Router, Routing, Tokens
from runtime.errors import UsageError

if TYPE_CHECKING:
    from runtime.meter import ActivityMeter


class MoELayer(nn.Module):
    """Takes the place of a feed-forward block: a router sends each token through a few experts.

    Under `torch.compile` the layer itself runs as it is between the compiled parts of the model; with
    ``fullgraph=True`` it is refused.

    Attributes:
        router: chooses, in float32.
        experts: compute, in the dtype of their weights.
        meter: counts the experts that tokens are sent to, capacity or not, when set; None at first.

    Args:
        causal: whether the layer stands in a decoder, where no token may depend on later ones.

    Raises:
        UsageError: router and experts do not fit each other, or the router has no place in a decoder.
    """

    def __init__(self, router: Router, experts: Experts, *, causal: bool = False) -> None:
        super().__init__()
        if router.num_experts != experts.num_experts:
            raise UsageError(
                f"the router knows {router.num_experts} experts, but there are {experts.num_experts}"
            )
        if router.width not in (None, experts.width):
            raise UsageError(
                f"the router takes hidden states of width {router.width}, but experts of {experts.width}"
            )
        if causal and not router.is_causal:
            raise UsageError(
                f"{type(router).__name__} looks at later tokens to choose the experts of earlier ones, which a "
                "decoder cannot do when it generates; choose a router that is causal, for example top-k"
            )
        self.router = router
        self.experts = experts
        self.meter: ActivityMeter | None = None

    @torch.compiler.disable(reason="how many tokens an expert has is not known before the layer runs")
    def forward(
        self,
        hidden: Tensor,
        *,
        sequences: Tensor | None = None,
        ids: Tensor | None = None,
        tasks: Tensor | None = None,
        classes: Tensor | None = None,
    ) -> tuple[Tensor, Routing]:
        """The output for each token, and what the router decided, with its losses.

        Args:
            hidden: ``[…, width]``; leading dimensions are taken as one row of tokens. Of three dimensions, the
                first is the sequences.
            sequences: int64, one per token, ascending; None where `hidden` has three dimensions says them by
                itself.
            ids: int64, vocabulary id of each token.
            tasks: int64, task of each token.
            classes: int64, the super-class of each token's sequence, for a router that is taught it; -100 where
                it is not known.

        Returns:
            ``[…, width]`` of the dtype of `hidden`, and the `Routing`.
        """
        tokens = hidden.reshape(-1, hidden.shape[-1])
        if sequences is None and hidden.ndim == 3:
            sequences = _sequence_of_each_token(hidden)
        routing = self.router(Tokens(tokens, _flat(sequences), _flat(ids), _flat(tasks), _flat(classes)))
        if self.meter is not None:
            self.meter.update(routing.gates)
        output = self.experts(tokens, routing.gates, routing.capacity)
        return output.reshape(hidden.shape), routing


def _flat(of_tokens: Tensor | None) -> Tensor | None:
    return None if of_tokens is None else of_tokens.reshape(-1)


def _sequence_of_each_token(hidden: Tensor) -> Tensor:
    return torch.arange(len(hidden), device=hidden.device).repeat_interleave(hidden.shape[1])

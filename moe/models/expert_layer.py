"""Experts in the place of a feed-forward block: how our encoders make them, start them and keep them exact."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import initialization as init

from moe.experts import Experts
from moe.layer import MoELayer
from moe.routing.balance import BiasBalance
from moe.routing.catalogue import build_router

IN_FLOAT32 = ["router"]
"""Modules that a model keeps in float32 when it is loaded in a narrower dtype."""


def expert_layer(
    config: Any, width: int, inner: int, activation: str, *, gated: bool, bias: bool
) -> MoELayer:
    """The experts that a configuration asks for, in the place of a feed-forward block.

    Args:
        config: with the fields of `ExpertConfiguration`.
        width: of the hidden states.
        inner: of the dense block, which ``moe_intermediate_size`` overrides.
        activation: transformers' name.
        gated: see `runtime.expert_mlp.expert_mlp`.
        bias: whether both projections have one.
    """
    router = build_router(config.router, width, config.num_experts, **config.router_options)
    experts = Experts(
        config.num_experts,
        width,
        config.moe_intermediate_size or inner,
        activation=activation,
        gated=gated,
        bias=bias,
    )
    return MoELayer(router, experts)


class ExpertInitialisation:
    """Mixed into a transformers model in front of the dense one: initialises experts and routers as linear layers.

    Routers are loaded in float32 whatever the model's dtype: bfloat16 logits tie, see `moe.routing.router`.
    """

    _keep_in_fp32_modules_strict: set[str] | list[str] | None = IN_FLOAT32
    # A Trainer that accumulates gradients then divides by the steps, as the routers' losses need it: they are no
    # sums over the masked tokens.
    accepts_loss_kwargs = False

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)  # type: ignore[misc]  # of the model it is mixed into
        if isinstance(module, MoELayer):
            for name, parameter in module.named_parameters():
                if "bias" in name:
                    init.zeros_(parameter)
                else:
                    init.normal_(parameter, std=self.config.initializer_range)  # type: ignore[attr-defined]
        elif isinstance(module, BiasBalance):
            init.zeros_(module.load)  # not in the checkpoint

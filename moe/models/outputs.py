"""What our encoders return: transformers' outputs, with what the routers decided."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Self

from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling, MaskedLMOutput
from transformers.utils import ModelOutput

from moe.models.routed_tokens import RoutedTokens
from moe.routing import Routing

LEFT_OUT_OF_PREDICTIONS = ["routings", "router_loss"]
"""Fields that a Trainer must not gather as predictions (``keys_to_ignore_at_inference``)."""


@dataclass
class MoeEncoderOutput(BaseModelOutputWithPooling):
    """Hidden states of an encoder with experts; those at padding mean nothing.

    Attributes:
        routings: one `Routing` for each layer with experts, from the bottom, over the tokens that are no padding,
            sequence after sequence.
        router_loss: scalar, the losses of all routers, each times its coefficient; None without experts.
    """

    routings: tuple[Routing, ...] | None = None
    router_loss: Tensor | None = None

    @classmethod
    def of(cls, dense: ModelOutput, routed: RoutedTokens, coefficients: Mapping[str, float] | None) -> Self:
        """Add what was routed to the output of the dense model; `coefficients` as in `RoutedTokens.loss`."""
        return cls(**_fields(cls, dense), routings=routed.routings, router_loss=routed.loss(coefficients))


@dataclass
class MoeMaskedLMOutput(MaskedLMOutput):
    """Logits of an encoder with experts; those at padding mean nothing.

    Attributes:
        loss: of the masked tokens; in training with `router_loss` added.
        routings: see `MoeEncoderOutput`.
        router_loss: see `MoeEncoderOutput`.
    """

    routings: tuple[Routing, ...] | None = None
    router_loss: Tensor | None = None

    @classmethod
    def of(
        cls,
        dense: ModelOutput,
        routed: RoutedTokens,
        coefficients: Mapping[str, float] | None,
        training: bool,
    ) -> Self:
        """Add what was routed to the output of the dense model.

        Args:
            coefficients: as in `RoutedTokens.loss`.
            training: whether the loss takes in what the routers add. Without it, losses of dense and sparse models
                compare.
        """
        output = cls(**_fields(cls, dense), routings=routed.routings, router_loss=routed.loss(coefficients))
        if training and output.loss is not None and output.router_loss is not None:
            output.loss = output.loss + output.router_loss
        return output


def _fields(cls: type[MoeEncoderOutput | MoeMaskedLMOutput], dense: ModelOutput) -> dict[str, Any]:
    return {field.name: dense[field.name] for field in fields(cls) if dense.get(field.name) is not None}

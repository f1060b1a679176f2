"""What the configurations of all our encoders share: which layers have experts, and how tokens are routed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from runtime.errors import UsageError


@dataclass(kw_only=True)
class ExpertConfiguration:
    """Mixed into a transformers configuration in front of the dense one.

    Attributes:
        num_experts: experts of each layer that has them.
        moe_layers: those layers, ascending from 0; None is every other, from the second on (Komatsuzaki et al.
            2022, Sparse Upcycling).
        moe_intermediate_size: inner width of an expert; None is the dense feed-forward block's.
        router: a name of `moe.routing.catalogue`.
        router_options: options of that router, such as ``{"top_k": 2}``.
        router_losses: the share of each of the router's losses in the loss of training, added up over layers;
            None takes ``DEFAULT_LOSSES`` where the router has them.
    """

    num_experts: int = 8
    moe_layers: list[int] | None = None
    moe_intermediate_size: int | None = None
    router: str = "top_k"
    router_options: dict[str, Any] = field(default_factory=dict)
    router_losses: dict[str, float] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)  # type: ignore[misc]  # of the configuration it is mixed into
        num_layers: int = self.num_hidden_layers  # type: ignore[attr-defined]
        if self.moe_layers is None:
            self.moe_layers = list(range(1, num_layers, 2))
        self.moe_layers = list(self.moe_layers)
        if self.moe_layers != sorted(set(self.moe_layers) & set(range(num_layers))):
            raise UsageError(
                f"moe_layers is {self.moe_layers}, but must be distinct, ascending, and of the layers 0 to "
                f"{num_layers - 1}"
            )
        if self.router in NOT_IN_ENCODERS:
            raise UsageError(
                f"router is {self.router!r}, which {NOT_IN_ENCODERS[self.router]}; choose another, such as top_k, or "
                "call a moe.layer.MoELayer yourself"
            )
        if getattr(self, "is_decoder", False) or getattr(self, "add_cross_attention", False):
            raise UsageError(
                f"{type(self).model_type} is an encoder; "  # type: ignore[attr-defined]
                "set is_decoder and add_cross_attention to false"
            )

    def has_experts(self, layer: int) -> bool:
        return layer in (self.moe_layers or ())


NOT_IN_ENCODERS = {"task_aware": "needs the task of each token, and an encoder is not told it"}
"""Routers that lack in an encoder what they decide by, and what that is."""

DEFAULT_LOSSES = {"load_balance": 0.01, "z": 0.001}
"""Coefficients of Switch Transformers (Fedus et al. 2021) and ST-MoE (Zoph et al. 2022)."""

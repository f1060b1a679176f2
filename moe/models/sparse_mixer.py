"""Sparse Mixer: an encoder that mixes tokens in place of most attention, with experts in its middle layers.

Lee-Thorp and Ainslie 2022, Sparse Mixers: Combining MoE and Mixing to build a more efficient BERT. Its layers are
BERT's; attention remains in the top ones alone.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import initialization as init

from moe.models.bert import MoeBertConfig, MoeBertForMaskedLM, MoeBertLayer, MoeBertModel
from moe.models.mixing import FourierMixing, LinearMixing
from moe.models.routed_tokens import RoutedTokens
from runtime.errors import UsageError

MIXINGS = ("linear", "fourier")


class SparseMixerConfig(MoeBertConfig):
    """BERT's configuration with the sizes of the paper's base model.

    Attributes:
        num_attention_layers: layers at the top that attend; those below mix.
        mixing: ``"linear"`` (learned) or ``"fourier"`` (without parameters).
        max_position_embeddings: positions that mixing stands for; longer sequences are refused.
        num_moe_layers: layers with experts, in the middle, where `moe_layers` does not name them.
        router, router_options: expert choice; ``{"capacity_factor": 0.5}`` is the paper's fast variant. Unless the
            options say otherwise, experts choose within each sequence, so that what becomes of one does not
            depend on what else is in the batch; the paper chooses within groups of 4,096 tokens.
    """

    model_type = "moe_sparse_mixer"

    hidden_size: int = 512
    num_hidden_layers: int = 14
    num_attention_heads: int = 8
    intermediate_size: int = 2048
    num_attention_layers: int = 4
    mixing: str = "linear"
    num_experts: int = 16
    num_moe_layers: int = 4
    router: str = "expert_choice"

    def __post_init__(self, **kwargs: Any) -> None:
        layers = self.num_hidden_layers
        for name, count in (
            ("num_attention_layers", self.num_attention_layers),
            ("num_moe_layers", self.num_moe_layers),
        ):
            if not 0 <= count <= layers:
                raise UsageError(f"{name} is {count}, but must be 0 to {layers}, the number of layers")
        if self.mixing not in MIXINGS:
            raise UsageError(f"mixing is {self.mixing!r}; known are {', '.join(MIXINGS)}")
        if self.moe_layers is None:
            first = (layers - self.num_moe_layers + 1) // 2
            self.moe_layers = list(range(first, first + self.num_moe_layers))
        if self.router == "expert_choice":
            self.router_options = {"per_sequence": True} | self.router_options
        super().__post_init__(**kwargs)


class SparseMixerLayer(MoeBertLayer):
    """``LayerNorm(x + mixing(x))`` in place of attention, below the top layers."""

    def __init__(self, config: SparseMixerConfig, layer: int) -> None:
        super().__init__(config, layer)
        self.mixing = None
        if layer < config.num_hidden_layers - config.num_attention_layers:
            positions, width = config.max_position_embeddings, config.hidden_size
            linear = config.mixing == "linear"
            self.mixing = LinearMixing(positions, width) if linear else FourierMixing(positions)
            self.mixing_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
            del self.attention

    def attend(
        self, hidden_states: Tensor, attention_mask: Tensor | None, routed: RoutedTokens, **options: Any
    ) -> Tensor:
        if self.mixing is None:
            return super().attend(hidden_states, attention_mask, routed, **options)
        return self.mixing_norm(hidden_states + self.mixing(hidden_states, routed.mask))


class SparseMixerModel(MoeBertModel):
    """The encoder."""

    config_class = SparseMixerConfig
    layer_class = SparseMixerLayer

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        initialise_mixing(module, self.config.initializer_range)


class SparseMixerForMaskedLM(MoeBertForMaskedLM):
    """The encoder with BERT's vocabulary head."""

    config_class = SparseMixerConfig
    base_class = SparseMixerModel

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        initialise_mixing(module, self.config.initializer_range)


def initialise_mixing(module: nn.Module, deviation: float) -> None:
    """Draw the maps of a `LinearMixing` from N(0, deviation²), as the paper does."""
    if isinstance(module, LinearMixing):
        for parameter in module.parameters():
            init.normal_(parameter, std=deviation)

"""ModernBERT with experts in the place of some feed-forward blocks."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import ModernBertConfig, ModernBertForMaskedLM, ModernBertModel
from transformers.models.modernbert.modeling_modernbert import ModernBertEncoderLayer
from transformers.utils.generic import can_return_tuple

from moe.models.expert_configuration import ExpertConfiguration
from moe.models.expert_layer import ExpertInitialisation, expert_layer
from moe.models.outputs import LEFT_OUT_OF_PREDICTIONS, MoeEncoderOutput, MoeMaskedLMOutput
from moe.models.routed_tokens import RoutedTokens
from runtime.errors import UsageError


class MoeModernBertConfig(ExpertConfiguration, ModernBertConfig):
    """ModernBERT's configuration with the fields of `ExpertConfiguration`."""

    model_type = "moe_modernbert"
    keys_to_ignore_at_inference = LEFT_OUT_OF_PREDICTIONS

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        if self.mlp_dropout:
            raise UsageError(
                f"experts have no dropout inside; set mlp_dropout to 0, not {self.mlp_dropout:g}"
            )


NOT_SPLIT = ["ModernBertEmbeddings", "MoeModernBertLayer"]
"""Modules that stay on one device."""


class MoeModernBertLayer(ModernBertEncoderLayer):
    """``x + experts(LayerNorm(x))`` after attention; dense where the configuration has no experts.

    An expert is ModernBERT's gated block: the first half of ``Wi`` is the gate, to which the activation goes.
    """

    def __init__(self, config: MoeModernBertConfig, layer: int) -> None:
        super().__init__(config, layer)
        self.index = layer
        self.moe = None
        if config.has_experts(layer):
            del self.mlp
            self.moe = expert_layer(
                config,
                config.hidden_size,
                config.intermediate_size,
                config.hidden_activation,
                gated=True,
                bias=config.mlp_bias,
            )

    def forward(  # type: ignore[override]  # called by the encoder alone
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        position_embeddings: Any = None,
        *,
        routed: RoutedTokens,
        **options: Any,
    ) -> Tensor:
        if self.moe is None:
            return super().forward(hidden_states, attention_mask, position_embeddings, **options)
        attended, _ = self.attn(
            self.attn_norm(hidden_states),
            position_embeddings=position_embeddings,
            attention_mask=attention_mask,
            **options,
        )
        hidden_states = hidden_states + attended
        return hidden_states + routed.through(self.moe, self.index, self.mlp_norm(hidden_states))


class MoeModernBertModel(ExpertInitialisation, ModernBertModel):
    """ModernBERT's encoder with experts."""

    config_class = MoeModernBertConfig
    _no_split_modules = NOT_SPLIT

    def __init__(self, config: MoeModernBertConfig) -> None:
        super().__init__(config)
        layers = range(config.num_hidden_layers)
        self.layers = nn.ModuleList(MoeModernBertLayer(config, layer) for layer in layers)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        routed: RoutedTokens | None = None,
        **options: Any,
    ) -> MoeEncoderOutput:
        """As ModernBERT; `routed` comes from the model with the vocabulary head around this one."""
        routed = routed or RoutedTokens.of_inputs(input_ids, inputs_embeds, attention_mask)
        output = super().forward(
            input_ids,
            attention_mask,
            position_ids,
            inputs_embeds,
            routed=routed,
            return_dict=True,
            **options,
        )
        return MoeEncoderOutput.of(output, routed, self.config.router_losses)


class MoeModernBertForMaskedLM(ExpertInitialisation, ModernBertForMaskedLM):
    """ModernBERT with experts and its vocabulary head."""

    config_class = MoeModernBertConfig

    def __init__(self, config: MoeModernBertConfig) -> None:
        super().__init__(config)
        self.model = MoeModernBertModel(config)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        **options: Any,
    ) -> MoeMaskedLMOutput:
        """As ModernBERT; `labels` are int64 ``[batch, length]``, -100 where nothing is to be predicted."""
        routed = RoutedTokens.of_inputs(input_ids, inputs_embeds, attention_mask)
        output = super().forward(
            input_ids,
            attention_mask,
            position_ids,
            inputs_embeds,
            labels,
            routed=routed,
            return_dict=True,
            **options,
        )
        return MoeMaskedLMOutput.of(output, routed, self.config.router_losses, self.training)

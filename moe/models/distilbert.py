"""DistilBERT with experts in the place of some feed-forward blocks."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import DistilBertConfig, DistilBertForMaskedLM, DistilBertModel
from transformers.models.distilbert.modeling_distilbert import TransformerBlock
from transformers.utils.generic import can_return_tuple

from moe.models.expert_configuration import ExpertConfiguration
from moe.models.expert_layer import ExpertInitialisation, expert_layer
from moe.models.outputs import LEFT_OUT_OF_PREDICTIONS, MoeEncoderOutput, MoeMaskedLMOutput
from moe.models.routed_tokens import RoutedTokens


class MoeDistilBertConfig(ExpertConfiguration, DistilBertConfig):
    """DistilBERT's configuration with the fields of `ExpertConfiguration`."""

    model_type = "moe_distilbert"
    keys_to_ignore_at_inference = LEFT_OUT_OF_PREDICTIONS


NOT_SPLIT = ["MoeDistilBertBlock"]
"""Modules that stay on one device."""


class MoeDistilBertBlock(TransformerBlock):
    """``LayerNorm(x + experts(x))`` after attention; dense where the configuration has no experts."""

    def __init__(self, config: MoeDistilBertConfig, layer: int) -> None:
        super().__init__(config)
        self.index = layer
        self.moe = None
        if config.has_experts(layer):
            del self.ffn
            self.moe = expert_layer(
                config, config.dim, config.hidden_dim, config.activation, gated=False, bias=True
            )
            self.dropout = nn.Dropout(config.dropout)

    def forward(  # type: ignore[override]  # called by the encoder alone
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        *,
        routed: RoutedTokens,
        **options: Any,
    ) -> Tensor:
        if self.moe is None:
            return super().forward(hidden_states, attention_mask, **options)
        attended, _ = self.attention(hidden_states, attention_mask=attention_mask, **options)
        attended = self.sa_layer_norm(attended + hidden_states)
        output = self.dropout(routed.through(self.moe, self.index, attended))
        return self.output_layer_norm(output + attended)


class MoeDistilBertModel(ExpertInitialisation, DistilBertModel):
    """DistilBERT's encoder with experts."""

    config_class = MoeDistilBertConfig
    _no_split_modules = NOT_SPLIT

    def __init__(self, config: MoeDistilBertConfig) -> None:
        super().__init__(config)
        layers = range(config.n_layers)
        self.transformer.layer = nn.ModuleList(MoeDistilBertBlock(config, layer) for layer in layers)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        position_ids: Tensor | None = None,
        routed: RoutedTokens | None = None,
        **options: Any,
    ) -> MoeEncoderOutput:
        """As DistilBERT; `routed` comes from the model with the vocabulary head around this one."""
        routed = routed or RoutedTokens.of_inputs(
            input_ids, inputs_embeds, attention_mask, self.config.max_position_embeddings
        )
        output = super().forward(
            input_ids,
            attention_mask,
            inputs_embeds,
            position_ids,
            routed=routed,
            return_dict=True,
            **options,
        )
        return MoeEncoderOutput.of(output, routed, self.config.router_losses)


class MoeDistilBertForMaskedLM(ExpertInitialisation, DistilBertForMaskedLM):
    """DistilBERT with experts and its vocabulary head."""

    config_class = MoeDistilBertConfig

    def __init__(self, config: MoeDistilBertConfig) -> None:
        super().__init__(config)
        self.distilbert = MoeDistilBertModel(config)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        position_ids: Tensor | None = None,
        **options: Any,
    ) -> MoeMaskedLMOutput:
        """As DistilBERT; `labels` are int64 ``[batch, length]``, -100 where nothing is to be predicted."""
        routed = RoutedTokens.of_inputs(
            input_ids, inputs_embeds, attention_mask, self.config.max_position_embeddings
        )
        output = super().forward(
            input_ids,
            attention_mask,
            inputs_embeds,
            labels,
            position_ids,
            routed=routed,
            return_dict=True,
            **options,
        )
        return MoeMaskedLMOutput.of(output, routed, self.config.router_losses, self.training)

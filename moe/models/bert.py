"""BERT with experts in the place of some feed-forward blocks."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import BertConfig, BertForMaskedLM, BertModel
from transformers.models.bert.modeling_bert import BertLayer
from transformers.utils.generic import can_return_tuple

from moe.models.expert_configuration import ExpertConfiguration
from moe.models.expert_layer import ExpertInitialisation, expert_layer
from moe.models.outputs import LEFT_OUT_OF_PREDICTIONS, MoeEncoderOutput, MoeMaskedLMOutput
from moe.models.routed_tokens import RoutedTokens


class MoeBertConfig(ExpertConfiguration, BertConfig):
    """BERT's configuration with the fields of `ExpertConfiguration`."""

    model_type = "moe_bert"
    keys_to_ignore_at_inference = LEFT_OUT_OF_PREDICTIONS


NOT_SPLIT = ["BertEmbeddings", "MoeBertLayer", "SparseMixerLayer"]
"""Modules that stay on one device."""


class MoeBertLayer(BertLayer):
    """``LayerNorm(x + experts(x))`` after attention; dense as in BERT where the configuration has no experts."""

    def __init__(self, config: MoeBertConfig, layer: int) -> None:
        super().__init__(config, layer_idx=layer)
        self.index = layer
        self.moe = None
        if config.has_experts(layer):
            del self.intermediate, self.output.dense
            self.moe = expert_layer(
                config,
                config.hidden_size,
                config.intermediate_size,
                config.hidden_act,
                gated=False,
                bias=True,
            )

    def forward(  # type: ignore[override]  # called by the encoder alone
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        encoder_hidden_states: None = None,  # noqa: ARG002 - BERT passes both, for decoders
        encoder_attention_mask: None = None,  # noqa: ARG002
        *,
        routed: RoutedTokens,
        **options: Any,
    ) -> Tensor:
        attended = self.attend(hidden_states, attention_mask, routed, **options)
        if self.moe is None:
            return self.feed_forward_chunk(attended)
        output = self.output.dropout(routed.through(self.moe, self.index, attended))
        return self.output.LayerNorm(output + attended)

    def attend(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None,
        routed: RoutedTokens,  # noqa: ARG002 - layers that mix instead need it
        **options: Any,
    ) -> Tensor:
        attended, _ = self.attention(hidden_states, attention_mask, **options)
        return attended


class MoeBertModel(ExpertInitialisation, BertModel):
    """BERT's encoder with experts."""

    config_class = MoeBertConfig
    layer_class: type[MoeBertLayer] = MoeBertLayer
    _no_split_modules = NOT_SPLIT

    def __init__(self, config: MoeBertConfig, add_pooling_layer: bool = True) -> None:
        super().__init__(config, add_pooling_layer)
        layers = range(config.num_hidden_layers)
        self.encoder.layer = nn.ModuleList(self.layer_class(config, layer) for layer in layers)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        routed: RoutedTokens | None = None,
        **options: Any,
    ) -> MoeEncoderOutput:
        """As BERT; `routed` comes from the model with the vocabulary head around this one."""
        routed = routed or RoutedTokens.of_inputs(
            input_ids, inputs_embeds, attention_mask, self.config.max_position_embeddings
        )
        output = super().forward(
            input_ids,
            attention_mask,
            token_type_ids,
            position_ids,
            inputs_embeds,
            routed=routed,
            return_dict=True,
            **options,
        )
        return MoeEncoderOutput.of(output, routed, self.config.router_losses)


class MoeBertForMaskedLM(ExpertInitialisation, BertForMaskedLM):
    """BERT with experts and its vocabulary head."""

    config_class = MoeBertConfig
    base_class: type[MoeBertModel] = MoeBertModel

    def __init__(self, config: MoeBertConfig) -> None:
        super().__init__(config)
        self.bert = self.base_class(config, add_pooling_layer=False)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        **options: Any,
    ) -> MoeMaskedLMOutput:
        """As BERT; `labels` are int64 ``[batch, length]``, -100 where nothing is to be predicted."""
        routed = RoutedTokens.of_inputs(
            input_ids, inputs_embeds, attention_mask, self.config.max_position_embeddings
        )
        output = super().forward(
            input_ids,
            attention_mask,
            token_type_ids,
            position_ids,
            inputs_embeds,
            labels=labels,
            routed=routed,
            return_dict=True,
            **options,
        )
        return MoeMaskedLMOutput.of(output, routed, self.config.router_losses, self.training)

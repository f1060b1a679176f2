"""Encoders with experts, as models of transformers: importing this registers them with its Auto classes.

``AutoConfig``, ``AutoModel`` and ``AutoModelForMaskedLM`` then build and load the model types ``moe_bert``,
``moe_distilbert``, ``moe_modernbert`` and ``moe_sparse_mixer``, and ``AutoTokenizer`` reads a bare ``vocab.txt`` beside
the models that come from BERT.
"""

from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM, AutoTokenizer, BertTokenizer

from moe.models.bert import MoeBertConfig, MoeBertForMaskedLM, MoeBertModel
from moe.models.distilbert import MoeDistilBertConfig, MoeDistilBertForMaskedLM, MoeDistilBertModel
from moe.models.modernbert import MoeModernBertConfig, MoeModernBertForMaskedLM, MoeModernBertModel
from moe.models.outputs import MoeEncoderOutput, MoeMaskedLMOutput
from moe.models.sparse_mixer import SparseMixerConfig, SparseMixerForMaskedLM, SparseMixerModel

__all__ = [
    "MoeBertConfig",
    "MoeBertForMaskedLM",
    "MoeBertModel",
    "MoeDistilBertConfig",
    "MoeDistilBertForMaskedLM",
    "MoeDistilBertModel",
    "MoeEncoderOutput",
    "MoeMaskedLMOutput",
    "MoeModernBertConfig",
    "MoeModernBertForMaskedLM",
    "MoeModernBertModel",
    "SparseMixerConfig",
    "SparseMixerForMaskedLM",
    "SparseMixerModel",
]

for _config, _model, _masked_lm in (
    (MoeBertConfig, MoeBertModel, MoeBertForMaskedLM),
    (MoeDistilBertConfig, MoeDistilBertModel, MoeDistilBertForMaskedLM),
    (MoeModernBertConfig, MoeModernBertModel, MoeModernBertForMaskedLM),
    (SparseMixerConfig, SparseMixerModel, SparseMixerForMaskedLM),
):
    AutoConfig.register(_config.model_type, _config, exist_ok=True)
    AutoModel.register(_config, _model, exist_ok=True)
    AutoModelForMaskedLM.register(_config, _masked_lm, exist_ok=True)

for _config in (MoeBertConfig, MoeDistilBertConfig, SparseMixerConfig):
    AutoTokenizer.register(_config, BertTokenizer, exist_ok=True)

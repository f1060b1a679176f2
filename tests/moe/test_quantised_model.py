from __future__ import annotations

import pytest

pytest.importorskip("transformers")

from moe.quantised_model import quantise_model
from moe.transformers_experts import QUANTISED
from runtime.errors import UsageError
from tests.moe.test_transformers_experts import ids, model_of


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("model_type", ["mixtral", "qwen2_moe"])
def test_a_rounded_model_computes_what_its_rounded_weights_say(model_type: str, bits: int) -> None:
    rounded = model_of(model_type, "lexpert")
    before = sum(p.nbytes for name, p in rounded.named_parameters() if ".experts." in name)
    num_bytes = quantise_model(rounded, bits=bits)
    assert num_bytes < before
    assert sum(p.nbytes for name, p in rounded.named_parameters() if ".experts." in name) == 0
    exact = model_of(model_type)
    for layer, experts in zip(exact.model.layers, rounded.model.layers, strict=True):
        up, down = getattr(experts.mlp.experts, QUANTISED)
        layer.mlp.experts.gate_up_proj.data = up.dequantise()
        layer.mlp.experts.down_proj.data = down.dequantise()
    logits, expected = rounded(ids()).logits, exact(ids()).logits
    assert (logits - expected).norm() / expected.norm() < (
        2e-3 if bits == 8 else 1e-2
    )  # values meet rounded weights in 16 or 8 bits
    assert rounded.generate(ids(1), max_new_tokens=3, do_sample=False).shape == (1, 10)


def test_what_cannot_be_rounded_is_refused() -> None:
    import transformers

    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    dense = transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=8, **small))
    with pytest.raises(UsageError, match="LlamaForCausalLM has no experts"):
        quantise_model(dense)
    with pytest.raises(UsageError, match="GptOssExperts does more"):
        quantise_model(model_of("gpt_oss", "lexpert"))
    with pytest.raises(UsageError, match="run on 'eager'"):
        quantise_model(model_of("mixtral"))

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

transformers = pytest.importorskip("transformers")

from moe.registration import register_when_imported  # noqa: E402
from moe.transformers_experts import lexpert_experts_forward, plain_activation  # noqa: E402
from runtime.errors import UsageError  # noqa: E402

SMALL: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": None,
    "pad_token_id": 0,
}
LATENT: dict[str, Any] = {
    "head_dim": 4,  # that of the rotary part
    "kv_lora_rank": 8,
    "q_lora_rank": 8,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4,
    "v_head_dim": 8,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "intermediate_size": 32,
}
MODELS: dict[str, dict[str, Any]] = {
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 24},
    "qwen3_moe": {"num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 16},
    "olmoe": {"num_experts": 8, "num_experts_per_tok": 4, "intermediate_size": 16},
    "qwen2_moe": {
        "num_experts": 6,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 24,
    },
    "gpt_oss": {
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "intermediate_size": 16,
        "layer_types": ["full_attention"] * 2,
    },
    "deepseek_v3": LATENT,
}


def model_of(model_type: str, experts: str = "eager", dtype: torch.dtype = torch.float32) -> Any:
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(model_type, **{**SMALL, **MODELS[model_type]})
    model = transformers.AutoModelForCausalLM.from_config(config, experts_implementation=experts)
    for parameter in model.parameters():  # as they come, layers hardly change what passes through them
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    return model.to(dtype).eval()


def ids(rows: int = 2, length: int = 7) -> torch.Tensor:
    return torch.randint(2, 64, (rows, length), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("model_type", MODELS)
def test_logits_and_gradients_equal_those_of_eager_experts(model_type: str) -> None:
    model = model_of(model_type)
    results = []
    for implementation in ("eager", "lexpert"):
        model.set_experts_implementation(implementation)
        assert model.config._experts_implementation == implementation
        model.zero_grad()
        output = model(ids(), labels=ids())
        output.loss.backward()
        gradients = {
            name: parameter.grad.clone()
            for name, parameter in model.named_parameters()
            if parameter.grad is not None
        }
        results.append((output.logits.detach(), gradients))
    (expected, expected_gradients), (logits, gradients) = results
    torch.testing.assert_close(logits, expected, atol=2e-5, rtol=0)
    assert gradients.keys() == expected_gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected_gradients[name], atol=2e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize("model_type", ["mixtral", "olmoe", "gpt_oss"])
def test_bfloat16_stays_as_close_to_float32_as_eager_experts_do(model_type: str) -> None:
    model = model_of(model_type)
    with torch.inference_mode():
        exact = model(ids()).logits
        model = model.to(torch.bfloat16)
        errors = {}
        for implementation in ("eager", "lexpert"):
            model.set_experts_implementation(implementation)
            logits = model(ids()).logits
            assert logits.dtype == torch.bfloat16
            errors[implementation] = (logits.float() - exact).norm() / exact.norm()
    assert errors["lexpert"] <= 1.3 * errors["eager"] + 0.01


@pytest.mark.parametrize("model_type", ["mixtral", "qwen3_moe", "olmoe"])
def test_generation_gives_the_tokens_of_eager_experts(model_type: str) -> None:
    model = model_of(model_type)
    expected = model.generate(ids(), max_new_tokens=8, do_sample=False)
    model.set_experts_implementation("lexpert")
    assert model.generate(ids(), max_new_tokens=8, do_sample=False).tolist() == expected.tolist()


def test_a_saved_model_loads_with_our_experts(tmp_path: Path) -> None:
    model = model_of("mixtral")
    model.save_pretrained(tmp_path)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, experts_implementation="lexpert")
    assert loaded.config._experts_implementation == "lexpert"
    with torch.inference_mode():
        torch.testing.assert_close(loaded(ids()).logits, model(ids()).logits, atol=2e-5, rtol=0)


def experts_of(module: str, name: str, **config: Any) -> Any:
    from importlib import import_module

    torch.manual_seed(0)
    cls = getattr(import_module(f"transformers.models.{module}"), name)
    settings = transformers.PretrainedConfig(
        hidden_size=8,
        intermediate_size=6,
        moe_intermediate_size=6,
        num_local_experts=4,
        num_experts=4,
        n_routed_experts=4,
        hidden_act="silu",
        **config,
    )
    experts = cls(settings)
    for parameter in experts.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return experts


SPECIAL: dict[str, dict[str, Any]] = {
    "mixtral.modeling_mixtral:MixtralExperts": {},
    "gpt_oss.modeling_gpt_oss:GptOssExperts": {"swiglu_alpha": 1.7, "swiglu_limit": 1.0},
    "nemotron_h.modeling_nemotron_h:NemotronHExperts": {"moe_latent_size": None, "mlp_hidden_act": "relu2"},
    "muse_spark.modeling_muse_spark:MuseSparkExperts": {"moe_hidden_size": 8, "post_norm_eps": 1e-6},
    "deepseek_v4.modeling_deepseek_v4:DeepseekV4Experts": {"swiglu_limit": 0.5},
}


@pytest.mark.parametrize("tokens", [0, 1, 9])
@pytest.mark.parametrize("name", SPECIAL)
def test_special_experts_equal_eager_experts(name: str, tokens: int) -> None:
    experts = experts_of(*name.split(":"), **SPECIAL[name])
    hidden = torch.randn(tokens, 8, requires_grad=True)
    index = torch.rand(tokens, 4).argsort(1)[:, :2]
    weights = torch.rand(tokens, 2, requires_grad=True)
    results = []
    for implementation in ("eager", "lexpert"):
        experts.config._experts_implementation = implementation
        output = experts(hidden, index, weights)
        asked = [hidden, weights, *experts.parameters()] if tokens else []
        gradients = torch.autograd.grad(output.square().sum(), asked) if tokens else ()
        results.append([output, *gradients])
    for expected, ours in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected)


def test_which_experts_are_plain() -> None:
    plain = {
        name.partition(":")[2]: plain_activation(experts_of(*name.split(":"), **config))
        for name, config in SPECIAL.items()
    }
    assert plain == {
        "MixtralExperts": "silu",
        "GptOssExperts": None,
        "NemotronHExperts": "relu2",
        "MuseSparkExperts": None,
        "DeepseekV4Experts": None,
    }


@pytest.mark.parametrize("name", ["mixtral.modeling_mixtral:MixtralExperts", *list(SPECIAL)[1:2]])
@pytest.mark.parametrize("compiled", [False, True])
def test_experts_of_other_processes_add_nothing(name: str, compiled: bool) -> None:
    experts = experts_of(*name.split(":"), **SPECIAL[name])
    experts._is_expert_parallel = True
    hidden, weights = torch.randn(5, 8), torch.rand(5, 2)
    index = torch.tensor([[0, 4], [4, 4], [3, 1], [4, 2], [1, 0]])
    experts.config._experts_implementation = "eager"
    here = index < 4
    expected = experts(hidden, index.clamp(max=3), weights * here)
    run: Any = lexpert_experts_forward
    if compiled:
        run = torch.compile(run, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(run(experts, hidden, index, weights), expected)


def test_compiled_models_are_one_graph_and_equal() -> None:
    torch.compiler.reset()
    model = model_of("mixtral")
    expected = model(ids(), labels=ids(), use_cache=False)
    expected.loss.backward()
    gradients = [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]
    model.zero_grad()
    model.set_experts_implementation("lexpert")
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    output = compiled(ids(), labels=ids(), use_cache=False)
    output.loss.backward()
    torch.testing.assert_close(output.logits, expected.logits, atol=2e-5, rtol=0)
    ours = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    torch.testing.assert_close(ours, gradients, atol=2e-5, rtol=1e-4)


def test_weights_that_are_not_floating_are_refused() -> None:
    experts = experts_of("mixtral.modeling_mixtral", "MixtralExperts")
    experts.gate_up_proj = torch.nn.Parameter(experts.gate_up_proj.to(torch.int8), requires_grad=False)
    experts.config._experts_implementation = "lexpert"
    with pytest.raises(UsageError, match="MixtralExperts holds weights of int8"):
        experts(torch.randn(1, 8), torch.tensor([[0]]), torch.ones(1, 1))


def test_registering_again_changes_nothing() -> None:
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

    finders = list(sys.meta_path)
    for _ in range(2):
        register_when_imported()
        assert ALL_EXPERTS_FUNCTIONS["lexpert"] is lexpert_experts_forward
    assert sys.meta_path == finders

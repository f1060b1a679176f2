"""Routers of transformers that choose by groups, with biases, or weigh by sigmoids: their balance loss."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("accelerate")

import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st

from moe.stats.recorder import RoutingRecorder
from moe.stats.router_scores import router_probabilities
from moe.training.settings import TrainingSettings
from runtime.errors import UsageError
from tests.moe.training.conftest import SIZES
from tests.moe.training.test_losses import ids_of, trainer_of

EXPERTS = 8
DEEPSEEK = {
    "n_routed_experts": EXPERTS, "num_local_experts": EXPERTS, "n_group": 4, "topk_group": 2, "n_shared_experts": 1,
    "first_k_dense_replace": 1, "num_key_value_heads": 4, "q_lora_rank": 8, "kv_lora_rank": 8, "v_head_dim": 8,
    "qk_rope_head_dim": 8, "qk_nope_head_dim": 8,
}  # fmt: skip


def decoder(model_type: str) -> Any:
    """One layer with experts, whose router is far from even and whose selection biases are large."""
    torch.manual_seed(0)
    sizes = SIZES | (DEEPSEEK if model_type.startswith("deepseek") else {"num_local_experts": EXPERTS})
    model = transformers.AutoModelForCausalLM.from_config(
        transformers.AutoConfig.for_model(model_type, **sizes)
    )
    for module in model.modules():
        if hasattr(module, "e_score_correction_bias"):
            module.e_score_correction_bias.data.normal_()
    return model.eval()


def slow_balance(logits: Any, chosen: Any, sigmoid: bool) -> float:
    """``E · Σ f_e P_e`` token by token."""
    tokens, experts = logits.shape
    share, probability = [0.0] * experts, [0.0] * experts
    for row, units in zip(logits.double(), chosen.tolist(), strict=True):
        scores = row.sigmoid() if sigmoid else row.exp()
        for expert in range(experts):
            probability[expert] += float(scores[expert] / scores.sum()) / tokens
        for unit in units:
            share[unit] += 1 / (tokens * len(units))
    return experts * sum(f * p for f, p in zip(share, probability, strict=True))


@pytest.mark.parametrize(
    ("model_type", "sigmoid"), [("deepseek_v2", False), ("deepseek_v3", True), ("minimax_m2", True)]
)
def test_the_loss_is_that_of_what_was_chosen_and_of_what_it_is_weighed_by(
    model_type: str, sigmoid: bool
) -> None:
    model = decoder(model_type)
    with RoutingRecorder(model) as recorder:
        routers = [model.get_submodule(name) for name in recorder.layers]
        seen: list[Any] = []
        handles = [
            router.register_forward_hook(lambda _, __, output: seen.append(output)) for router in routers
        ]
        model(input_ids=ids_of())
        routings = recorder.take()
    for handle in handles:
        handle.remove()
    assert len(routings) == len(seen) > 0
    for routing, (logits, _, chosen) in zip(routings, seen, strict=True):
        assert routing.gates.units.tolist() == chosen.flatten().tolist()
        balance = routing.losses["load_balance"].item()
        assert balance == pytest.approx(slow_balance(logits.detach(), chosen, sigmoid), abs=1e-5)
        assert not routing.unknown_scores


@given(st.integers(0, 10**6), st.booleans(), st.booleans(), st.integers(1, 3))
def test_even_choices_give_one_whatever_the_scores(
    seed: int, sigmoid: bool, renormalised: bool, k: int
) -> None:
    draw = torch.Generator().manual_seed(seed)
    tokens, experts = 16, 4
    logits = 2 * torch.randn(tokens, experts, generator=draw)
    units = (torch.arange(tokens)[:, None] + torch.arange(k)) % experts
    scores = logits.sigmoid() if sigmoid else logits.softmax(1)
    weights = 2.5 * scores.gather(1, units) if k > 1 else scores.gather(1, units)
    weights = weights / weights.sum(1, keepdim=True) if renormalised else weights
    probabilities = router_probabilities(logits, units, (logits, weights, units))
    assert probabilities is not None
    torch.testing.assert_close(probabilities.sum(1), torch.ones(tokens))
    expected = scores / scores.sum(1, keepdim=True)
    if k > 1 or not renormalised:  # a single weight of 1 says nothing
        torch.testing.assert_close(probabilities, expected)
    share = torch.bincount(units.flatten(), minlength=experts) / units.numel()
    assert experts * float((share * probabilities.mean(0)).sum()) == pytest.approx(1, abs=1e-5)


def test_weights_of_every_expert_are_read_at_the_chosen_ones() -> None:
    logits = torch.tensor([[2.0, 1.0, -1.0], [0.0, 3.0, 1.0]])
    units = logits.topk(2).indices
    kept = torch.zeros(2, 3).scatter(1, units, logits.sigmoid().gather(1, units))
    sigmoid = logits.sigmoid()
    found = router_probabilities(logits, units, (kept, logits))
    torch.testing.assert_close(found, sigmoid / sigmoid.sum(1, keepdim=True))


def test_other_weights_have_no_balance_loss_and_are_not_trained_with_one(tmp_path: Path) -> None:
    model = decoder("minimax_m2")
    for module in model.modules():
        if type(module).__name__ == "MiniMaxM2TopKRouter":
            # weights by rank, as no router has them
            module.register_forward_hook(
                lambda _, __, output: (output[0], torch.ones_like(output[1]).cumsum(1), output[2])
            )
    trainer = trainer_of(model, tmp_path, TrainingSettings(steps=2))
    with pytest.raises(UsageError, match=r"neither the softmax nor the sigmoids .* train with --balance 0"):
        trainer.compute_loss(model, {"input_ids": ids_of()})
    trainer.balance_coefficient = 0.0
    assert trainer.compute_loss(model, {"input_ids": ids_of()}).isfinite()


def test_a_choice_that_is_kept_secret_is_refused() -> None:
    model = decoder("deepseek_v3")
    (router,) = [module for module in model.modules() if type(module).__name__ == "DeepseekV3TopkRouter"]
    with RoutingRecorder(model) as recorder:
        model(input_ids=ids_of())
        recorder.take()
        (hook,) = router._forward_hooks.values()
        hook(router, (), torch.randn(4, EXPERTS))
        with pytest.raises(UsageError, match="DeepseekV3TopkRouter, which does not hand out the experts"):
            recorder.take()

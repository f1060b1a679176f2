"""The losses that a training adds up: the objective's, and each layer's router's."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("accelerate")

import torch
from hypothesis import given
from hypothesis import strategies as st

from moe.stats.recorder import RoutingRecorder
from moe.training.balance_schedule import LinearSchedule
from moe.training.blocks import TokenBlocks
from moe.training.flops import forward_flops_per_token
from moe.training.objective import causal_loss, mask
from moe.training.settings import TrainingSettings
from moe.training.trainer import ExpertTrainer
from runtime.run_folder import RunFolder
from runtime.step_log import StepLog
from tests.moe.training.conftest import VOCABULARY, tiny_decoder, tiny_encoder

DECODERS = ["mixtral", "qwen2_moe", "qwen3_moe", "olmoe"]


def ids_of(seed: int = 1, blocks: int = 3, length: int = 20) -> Any:
    return torch.randint(5, VOCABULARY, (blocks, length), generator=torch.Generator().manual_seed(seed))


def slow_losses(model: Any, ids: Any) -> list[tuple[float, float]]:
    """Load balance and z-loss of each layer, token by token, from the logits that transformers hands out."""
    with torch.no_grad():
        logits_of_layers = model(input_ids=ids, output_router_logits=True).router_logits
    k = model.config.num_experts_per_tok
    found = []
    for logits in logits_of_layers:
        tokens, experts = logits.shape
        share, probability, z = [0.0] * experts, [0.0] * experts, 0.0
        for row in logits.double():
            total = sum(math.exp(value) for value in row.tolist())
            z += math.log(total) ** 2 / tokens
            for expert, value in enumerate(row.tolist()):
                probability[expert] += math.exp(value) / total / tokens
            for expert in sorted(range(experts), key=lambda expert: -float(row[expert]))[:k]:
                share[expert] += 1 / (tokens * k)
        balance = experts * sum(f * p for f, p in zip(share, probability, strict=True))
        found.append((balance, z))
    return found


@pytest.mark.parametrize("model_type", DECODERS)
def test_each_layer_has_the_losses_of_its_own_logits(model_type: str) -> None:
    model, ids = tiny_decoder(model_type), ids_of()
    with RoutingRecorder(model) as recorder:
        model(input_ids=ids)
        routings = recorder.take()
    expected = slow_losses(model, ids)
    assert len(routings) == len(expected) == 2
    for routing, (balance, z) in zip(routings, expected, strict=True):
        assert routing.losses["load_balance"].item() == pytest.approx(balance, abs=1e-5)
        assert routing.losses["z"].item() == pytest.approx(z, rel=1e-5)


def test_jetmoe_has_routers_of_attention_and_of_feed_forward_blocks() -> None:
    model = tiny_decoder("jetmoe")
    with RoutingRecorder(model) as recorder:
        assert len(recorder.layers) == 4
        model(input_ids=ids_of())
        assert [routing.gates.nnz for routing in recorder.take()] == [120] * 4


def test_layers_that_collapse_onto_different_experts_are_not_balanced() -> None:
    model = tiny_decoder("mixtral", num_hidden_layers=2, num_experts_per_tok=1, num_local_experts=2)
    with torch.no_grad():
        for layer, block in enumerate(model.model.layers):
            block.mlp.gate.weight.zero_()
            block.post_attention_layernorm.weight.fill_(1)
            # a constant direction in the hidden states picks the expert of the layer
            block.mlp.gate.register_forward_pre_hook(lambda _, inputs: (torch.ones_like(inputs[0]),))
            block.mlp.gate.weight[layer] = 1
    with RoutingRecorder(model) as recorder:
        output = model(input_ids=ids_of(), output_router_logits=True)
        routings = recorder.take()
    assert [round(routing.losses["load_balance"].item(), 3) for routing in routings] == [2.0, 2.0]
    assert output.aux_loss.item() == pytest.approx(1.0)  # pooled: as even as can be


def trainer_of(model: Any, tmp_path: Path, settings: TrainingSettings) -> ExpertTrainer:
    blocks = TokenBlocks(ids_of(blocks=8).to(torch.int32).numpy())
    run = RunFolder(tmp_path)
    log = StepLog(run.log, run.tensorboard)
    return ExpertTrainer(
        model, settings, causal_loss, blocks, blocks, run, log, lambda _: None, at_start=False
    )


def test_the_loss_is_the_objective_and_each_layers_losses_and_nothing_of_transformers(tmp_path: Path) -> None:
    # what transformers would add is made as large as can be
    model = tiny_decoder("mixtral", output_router_logits=True, router_aux_loss_coef=100.0)
    trainer = trainer_of(model, tmp_path, TrainingSettings(steps=2, balance=0.5, z=0.25))
    ids = ids_of()
    logits = model(input_ids=ids).logits[:, :-1]
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()).item()
    expected += sum(0.5 * balance + 0.25 * z for balance, z in slow_losses(model, ids))
    assert trainer.compute_loss(model, {"input_ids": ids}).item() == pytest.approx(expected, rel=1e-5)


def test_routers_learn_balance_from_the_loss(tmp_path: Path) -> None:
    model = tiny_decoder("qwen3_moe")
    trainer = trainer_of(model, tmp_path, TrainingSettings(steps=2, balance=1.0, z=0.0))
    trainer.compute_loss(model, {"input_ids": ids_of()}).backward()
    gradients = [block.mlp.gate.weight.grad.clone() for block in model.model.layers]
    model.zero_grad()
    trainer.balance_coefficient = 0.0
    trainer.compute_loss(model, {"input_ids": ids_of()}).backward()
    for block, gradient in zip(model.model.layers, gradients, strict=True):
        assert not torch.allclose(block.mlp.gate.weight.grad, gradient)


def test_the_schedule_is_a_straight_line() -> None:
    schedule = LinearSchedule(0.1, 0.0, 11)
    assert [schedule(step) for step in (0, 5, 10, 99)] == pytest.approx([0.1, 0.05, 0.0, 0.0])
    assert LinearSchedule(0.3, 0.0, 1)(0) == 0.3


def test_our_routers_are_recorded_too() -> None:
    model = tiny_encoder(router="switch", router_options={"capacity_factor": 0.5})
    with RoutingRecorder(model) as recorder:
        output = model(input_ids=ids_of())
        (routing,) = recorder.take()
    assert routing.losses is output.routings[0].losses
    assert routing.capacity == output.routings[0].capacity


@given(st.integers(0, 1000), st.booleans())
def test_masks_spare_special_tokens_and_predict_at_least_one(seed: int, only_special: bool) -> None:
    draw = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 5 if only_special else 64, (2, 5), generator=draw)
    special = torch.arange(5)
    masked, chosen = mask(ids, special, 4, 64, draw)
    assert chosen.any()
    assert torch.equal(masked[~chosen], ids[~chosen])
    if bool((ids >= 5).any()):
        assert (ids[chosen] >= 5).all()


def test_flops_of_a_mixture_are_those_of_the_experts_that_tokens_go_to() -> None:
    model, length = tiny_decoder("mixtral"), 16
    width, inner, k, experts, heads, kv, head = 32, 24, 2, 4, 4, 2, 8
    attention = 2 * width * head * (heads + 2 * kv) + 2 * heads * head * width
    scores = 2 * 2 * length * heads * head
    feed_forward = k * 3 * 2 * width * inner + 2 * width * experts
    expected = 2 * (attention + scores + feed_forward) + 2 * width * VOCABULARY
    counted = forward_flops_per_token(model, ids_of(length=length))
    assert counted == pytest.approx(expected, rel=0.01)  # the rotation of positions is a small product too


def test_flops_of_our_encoders_count_their_experts() -> None:
    dense, sparse = tiny_encoder(num_experts=4, moe_layers=[]), tiny_encoder(num_experts=4)
    ids = ids_of(length=16)
    more = forward_flops_per_token(sparse, ids) - forward_flops_per_token(dense, ids)
    assert more == 2 * 2 * 16 * 24 + 2 * 16 * 4  # a second expert for each token in one layer, and the router

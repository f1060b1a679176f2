"""Autocast: experts compute in bfloat16 as linear layers do, on float32 weights."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch

import moe
from moe.experts import Experts
from moe.mixture import mix, under_autocast
from runtime.activations import SparseActivations
from tests.moe.training.conftest import tiny_decoder

del moe  # which has registered our experts


def layer() -> tuple[Experts, Any, SparseActivations]:
    torch.manual_seed(0)
    experts = Experts(4, 32, 16, gated=True, bias=True, activation="silu", initializer_range=0.2)
    return (
        experts,
        torch.randn(6, 32),
        SparseActivations.from_topk(torch.arange(12).reshape(6, 2) % 4, torch.rand(6, 2), 4),
    )


def test_under_autocast_experts_are_those_of_converted_weights() -> None:
    experts, hidden, gates = layer()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = experts(hidden, gates)
    output.sum().backward()
    converted = [
        weights.detach().bfloat16()
        for weights in (experts.up, experts.down, experts.gate_up_proj_bias, experts.down_proj_bias)
    ]
    up, down, up_bias, down_bias = converted
    expected = mix(
        hidden, gates, up, down, activation="silu", gated=True, up_bias=up_bias, down_bias=down_bias
    )
    assert torch.equal(output, expected)
    assert not torch.equal(output, experts(hidden, gates))
    for parameter in experts.parameters():
        assert parameter.grad is not None
        assert parameter.grad.dtype == torch.float32
        assert parameter.grad.any()


def test_autocast_leaves_float64_and_what_is_outside_of_it() -> None:
    weights = torch.rand(2, 3, 4)
    assert under_autocast(weights) is weights
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert under_autocast(weights).dtype == torch.bfloat16
        assert under_autocast(weights.double()).dtype == torch.float64


@pytest.mark.parametrize("model_type", ["mixtral", "gpt_oss"])
def test_losses_and_gradients_are_near_those_of_eager_experts_under_autocast(model_type: str) -> None:
    model = tiny_decoder(model_type, **({"num_local_experts": 4} if model_type == "gpt_oss" else {}))
    ids = torch.randint(5, 64, (2, 16), generator=torch.Generator().manual_seed(0))
    losses, gradients = {}, {}
    for implementation in ("eager", "lexpert"):
        model.set_experts_implementation(implementation)
        model.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        losses[implementation] = loss.item()
        gradients[implementation] = model.model.layers[0].mlp.experts.down_proj.grad.clone()
    assert losses["lexpert"] == pytest.approx(losses["eager"], rel=2e-3)
    off = (gradients["lexpert"] - gradients["eager"]).norm() / gradients["eager"].norm()
    assert off < 0.05

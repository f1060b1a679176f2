"""What routers do on a text, counted and drawn."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from moe.stats import LayerActivity, LayerRouting, routing_statistics
from moe.stats.layer_activity import co_activation
from moe.stats.picture import together
from runtime.activations import SparseActivations
from runtime.errors import InputError, UsageError
from tests.moe.training.conftest import VOCABULARY, MakeFolder, folder_of, text, tiny_decoder, tiny_encoder

__all__ = ["folder_of", "text"]


def ids_of(seed: int, blocks: int = 2, length: int = 12) -> Any:
    return torch.randint(5, VOCABULARY, (blocks, length), generator=torch.Generator().manual_seed(seed))


def gates_of(rows: list[list[int]], experts: int) -> SparseActivations:
    lengths = torch.tensor([0, *(len(row) for row in rows)])
    units = torch.tensor([unit for row in rows for unit in row], dtype=torch.int32)
    return SparseActivations(lengths.cumsum(0), units, torch.ones(len(units)), experts)


routed = st.integers(1, 6).flatmap(
    lambda experts: st.tuples(
        st.just(experts),
        st.lists(st.lists(st.integers(0, experts - 1), unique=True, max_size=experts), max_size=9),
    )
)


@given(routed)
def test_co_activation_counts_tokens_that_have_both(case: tuple[int, list[list[int]]]) -> None:
    experts, rows = case
    expected = np.zeros((experts, experts), int)
    for row in rows:
        for a in row:
            for b in row:
                expected[a, b] += 1
    np.testing.assert_array_equal(co_activation(gates_of(rows, experts)), expected)


@given(routed, st.integers(0, 4))
def test_activity_adds_up_over_batches(case: tuple[int, list[list[int]]], capacity: int) -> None:
    experts, rows = case
    activity = LayerActivity("layer", experts, co_activation=True)
    dropped = 0
    for batch in (rows[: len(rows) // 2], rows[len(rows) // 2 :]):
        losses = {"load_balance": torch.tensor(float(len(batch)))}
        activity.update(LayerRouting("layer", gates_of(batch, experts), losses, capacity))
        for expert in range(experts):
            dropped += max(0, sum(expert in row for row in batch) - capacity)
    load = np.array([sum(expert in row for row in rows) for expert in range(experts)])
    np.testing.assert_array_equal(activity.meter.load, load)
    np.testing.assert_allclose(activity.load, load / max(load.sum(), 1))
    assert activity.dropped == dropped
    assert activity.losses["load_balance"] == len(rows) / 2
    assert 0 <= activity.evenness <= 1 + 1e-12


def test_evenness_is_1_when_even_and_0_when_collapsed() -> None:
    for rows, evenness in (
        ([[0], [1], [2], [3]], 1.0),
        ([[2], [2]], 0.0),
        ([[0], [1]], math.log(2) / math.log(4)),
    ):
        activity = LayerActivity("layer", 4)
        activity.update(LayerRouting("layer", gates_of(rows, 4), {}))
        assert activity.evenness == pytest.approx(evenness)


def test_a_decoders_load_is_that_of_the_experts_it_ran() -> None:
    model = tiny_decoder("olmoe")
    seen: list[Any] = []
    for layer in model.model.layers:
        layer.mlp.experts.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[1].flatten()))
    statistics = routing_statistics(model, [ids_of(0), ids_of(1)])
    assert statistics.tokens == 48
    for place, layer in enumerate(statistics.layers):
        ran = torch.cat(seen[place::2]).bincount(minlength=4)
        assert layer.meter.load.tolist() == ran.tolist()
        assert layer.co_activation is not None
        assert layer.co_activation.diagonal().tolist() == ran.tolist()
        assert layer.report.mean_units_per_row == 2


def test_encoders_of_ours_are_counted() -> None:
    statistics = routing_statistics(tiny_encoder(), [ids_of(0)])
    assert [layer.layer for layer in statistics.layers] == ["bert.encoder.layer.1.moe"]
    assert statistics.layers[0].meter.num_rows == 24


def test_dense_models_and_empty_texts_are_refused() -> None:
    with pytest.raises(UsageError, match="LlamaForCausalLM has no routers"):
        routing_statistics(tiny_decoder("llama"), [ids_of(0)])
    with pytest.raises(InputError, match="no tokens"):
        routing_statistics(tiny_decoder("mixtral"), [])


def test_together_is_a_share_of_the_row() -> None:
    activity = LayerActivity("layer", 3, co_activation=True)
    activity.update(LayerRouting("layer", gates_of([[0, 1], [0, 1], [0, 2], [1]], 3), {}))
    np.testing.assert_allclose(together(activity), [[0, 2 / 3, 1 / 3], [2 / 3, 0, 0], [1, 0, 0]])


def test_the_command_prints_a_table_json_and_a_picture(
    folder_of: MakeFolder, text: Path, tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib")
    import lexpert

    arguments = ["moe", "stats", str(folder_of("mixtral")), "--text", str(text), "--max-tokens", "300"]
    shown = CliRunner().invoke(lexpert.app, [*arguments, "--plot", str(tmp_path / "heat.png")])
    assert shown.exit_code == 0, shown.output
    assert "300 tokens" in shown.stdout
    assert "model.layers.1.mlp.gate" in shown.stdout
    assert (tmp_path / "heat.png").stat().st_size > 10_000
    values = json.loads(CliRunner().invoke(lexpert.app, [*arguments, "--json"]).stdout)
    assert values["tokens"] == 300
    assert sum(values["layers"][0]["load"]) == pytest.approx(1)
    assert sum(map(sum, values["layers"][0]["co_activation"])) == 300 * 4  # of 2 experts, 2 · 2 pairs

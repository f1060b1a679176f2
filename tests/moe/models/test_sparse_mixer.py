"""Sparse Mixer: mixing against its formula, padding and neighbours without influence, and that it learns."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from torch import Tensor  # noqa: E402

from moe.models import SparseMixerConfig, SparseMixerForMaskedLM  # noqa: E402
from moe.models.mixing import FourierMixing, LinearMixing  # noqa: E402
from runtime.errors import UsageError  # noqa: E402
from tests.moe.models.small_encoders import VOCABULARY, moe_model, padded, three_sequences  # noqa: E402

MIXINGS = ("linear", "fourier")


def slow_linear(mixing: LinearMixing, states: Tensor) -> Tensor:
    """``S · X · H`` of one sequence ``[length, width]``, followed by zeros up to all positions."""
    positions, width = len(mixing.sequence), states.shape[1]
    whole = torch.zeros(positions, width)
    whole[: len(states)] = states
    mixed = torch.zeros(positions, width)
    for to in range(positions):
        for place in range(positions):
            mixed[to] += mixing.sequence[to, place] * (whole[place] @ mixing.hidden)
    return mixed[: len(states)]


def slow_fourier(mixing: FourierMixing, states: Tensor) -> Tensor:
    """The same of the Fourier transform, written out as a sum."""
    length, width = states.shape
    mixed = torch.zeros(length, width, dtype=torch.float64)
    for to in range(length):
        for unit in range(width):
            for place in range(length):
                for other in range(width):
                    angle = 2 * math.pi * (to * place / mixing.positions + unit * other / width)
                    mixed[to, unit] += math.cos(angle) * float(states[place, other])
    return mixed.float()


@given(
    mixing=st.sampled_from(MIXINGS),
    positions=st.integers(1, 8),
    lengths=st.lists(st.integers(0, 8), min_size=1, max_size=3),
    padding=st.integers(0, 3),
    width=st.integers(1, 5),
    seed=st.integers(0, 99),
)
def test_mixing_is_a_map_over_all_positions_of_a_sequence_followed_by_zeros(
    mixing: str, positions: int, lengths: list[int], padding: int, width: int, seed: int
) -> None:
    lengths = [min(length, positions) for length in lengths]
    columns = min(max(1, *lengths) + padding, positions)
    generator = torch.Generator().manual_seed(seed)
    if mixing == "linear":
        layer, slow = LinearMixing(positions, width), slow_linear
        for parameter in layer.parameters():
            parameter.data.normal_(generator=generator)
    else:
        layer, slow = FourierMixing(positions), slow_fourier
    states = torch.randn(len(lengths), columns, width, generator=generator)
    mask = torch.arange(columns) < torch.tensor(lengths)[:, None]
    states[~mask] = math.nan  # whatever stands there
    with torch.no_grad():
        mixed = layer(states, mask)
        for row, length in enumerate(lengths):
            torch.testing.assert_close(
                mixed[row, :length], slow(layer, states[row, :length]), rtol=1e-4, atol=1e-4
            )


def test_the_default_is_the_papers_base_model() -> None:
    config = SparseMixerConfig()
    with torch.device("meta"):
        model = SparseMixerForMaskedLM(config)
    layers = model.bert.encoder.layer
    assert (config.hidden_size, config.intermediate_size, config.num_attention_heads) == (512, 2048, 8)
    assert [place for place, layer in enumerate(layers) if layer.mixing is None] == [10, 11, 12, 13]
    assert [place for place, layer in enumerate(layers) if layer.moe is not None] == [5, 6, 7, 8]
    router = layers[5].moe.router
    assert (type(router).__name__, router.num_experts, router.capacity_factor) == (
        "ExpertChoiceRouter",
        16,
        1.0,
    )
    attention = [name for name, _ in model.named_parameters() if ".attention." in name]
    assert {int(name.split(".")[3]) for name in attention} == {10, 11, 12, 13}


@pytest.mark.parametrize(
    ("layers", "with_experts", "expected"), [(5, 2, [2, 3]), (4, 4, [0, 1, 2, 3]), (3, 0, [])]
)
def test_experts_stand_in_the_middle(layers: int, with_experts: int, expected: list[int]) -> None:
    config = SparseMixerConfig(num_hidden_layers=layers, num_moe_layers=with_experts, num_attention_layers=1)
    assert config.moe_layers == expected


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"mixing": "circulant"}, "known are linear, fourier"),
        ({"num_attention_layers": 15}, "0 to 14"),
        ({"num_moe_layers": -1}, "0 to 14"),
        ({"is_decoder": True}, "encoder"),
    ],
)
def test_configurations_that_cannot_be_are_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        SparseMixerConfig(**fields)


@pytest.mark.parametrize("mixing", MIXINGS)
@pytest.mark.parametrize("capacity_factor", [1.0, 0.5])
def test_neither_padding_nor_other_sequences_change_a_sequence(mixing: str, capacity_factor: float) -> None:
    options = {"capacity_factor": capacity_factor}
    model = moe_model("sparse_mixer", mixing=mixing, router_options=options)
    assert [layer.mixing is None for layer in model.bert.encoder.layer] == [False, False, False, True]
    batch = three_sequences()
    with torch.no_grad():
        together = model(**batch).logits
        further = model(**padded(batch, 7)).logits
        for row, length in enumerate((9, 5, 3)):
            alone = model(input_ids=batch["input_ids"][row : row + 1, :length]).logits[0]
            torch.testing.assert_close(together[row, :length], alone, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(further[row, :length], alone, rtol=1e-4, atol=1e-4)


def test_experts_choose_within_each_sequence_by_default() -> None:
    model = moe_model("sparse_mixer", num_moe_layers=1)
    with torch.no_grad():
        (routing,) = model(**three_sequences()).routings
    sequences = slice(0, 9), slice(9, 14), slice(14, 17)
    loads = [torch.bincount(routing.gates[rows].units, minlength=4).tolist() for rows in sequences]
    assert loads == [[3] * 4, [2] * 4, [1] * 4]  # ⌈9 / 4⌉, ⌈5 / 4⌉, ⌈3 / 4⌉


def test_a_sequence_longer_than_mixing_is_refused() -> None:
    model = moe_model("sparse_mixer", mixing="fourier")
    with pytest.raises(UsageError, match="25 tokens, but the model has 24 positions"):
        model(input_ids=torch.ones(1, 25, dtype=torch.long))


@pytest.mark.parametrize("mixing", MIXINGS)
def test_it_learns_a_batch_by_heart(mixing: str) -> None:
    torch.manual_seed(0)
    config = SparseMixerConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=4,
        num_attention_heads=2,
        num_attention_layers=1,
        num_moe_layers=2,
        num_experts=4,
        max_position_embeddings=24,
        mixing=mixing,
        hidden_dropout_prob=0.0,
    )
    model = SparseMixerForMaskedLM(config).train()
    batch = three_sequences()
    labels = torch.where(batch["attention_mask"].bool(), batch["input_ids"], -100)
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(30):
        loss = model(**batch, labels=labels).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[0] > 3.5  # log 64 is 4.2: it knows nothing
    assert losses[-1] < 0.5 * losses[0]

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.errors import InputError, UsageError
from runtime.expert_mlp import expert_mlp
from runtime.expert_weights import QuantisedWeights, quantise_experts
from tests.runtime.test_expert_cpu import narrowed
from tests.runtime.test_expert_mlp import PROBLEMS, Problem

pytest.importorskip("numba")

FORMATS = [(8, 32), (4, 32), (4, 128)]


def plain(weights: QuantisedWeights) -> Any:
    """What the codes stand for, number by number from the layout's description."""
    result = np.zeros(weights.shape, np.float64)
    for expert, row, column in np.ndindex(*weights.shape):
        if weights.bits == 8:
            code = int(weights.codes[expert, row, column])
            scale = weights.scales[expert, row]
        else:
            block, inside = divmod(column, 64)
            half, byte = divmod(inside, 32)
            code = (int(weights.codes[expert, row, 32 * block + byte]) >> (4 * half) & 15) - 8
            scale = weights.scales[expert, row, column // weights.group]
        result[expert, row, column] = code * float(scale)
    return result


@pytest.mark.parametrize(("bits", "group"), FORMATS)
@given(columns=st.integers(1, 200), seed=st.integers(0, 2**32 - 1))
@settings(max_examples=10, deadline=None)
def test_the_layout_is_what_its_description_says(bits: int, group: int, columns: int, seed: int) -> None:
    matrices = torch.from_numpy(np.random.default_rng(seed).standard_normal((2, 3, columns)))
    weights = quantise_experts(matrices, bits=bits, group=group)
    assert weights.shape == (2, 3, columns)
    assert weights.padded >= columns
    np.testing.assert_allclose(weights.dequantise().numpy(), plain(weights), rtol=1e-6)


@pytest.mark.parametrize(("bits", "group", "most"), [(8, 32, 0.008), (4, 32, 0.09), (4, 128, 0.105)])
def test_normal_weights_lose_little(bits: int, group: int, most: float) -> None:
    matrices = torch.randn(2, 64, 256, generator=torch.Generator().manual_seed(0))
    weights = quantise_experts(matrices, bits=bits, group=group)
    assert (weights.dequantise() - matrices).norm() / matrices.norm() < most


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=20, deadline=None)
def test_searched_scales_lose_no_more_than_the_largest_weights_scale(seed: int) -> None:
    matrix = torch.from_numpy(np.random.default_rng(seed).standard_t(4, (8, 128))).float()
    searched = (quantise_experts([matrix], bits=4, group=32).dequantise()[0] - matrix).square()
    groups = matrix.reshape(-1, 32)
    step = groups.abs().amax(1, keepdim=True) / 7
    nearest = (groups / step).round() * step
    lost = searched.reshape(-1, 32).sum(1)
    assert (lost <= (nearest - groups).square().sum(1) * 1.05).all()
    assert lost.sum() < 0.9 * (nearest - groups).square().sum()


def test_zeros_and_powers_of_two_are_kept() -> None:
    matrix = torch.tensor([[0.0] * 32, [0.25] * 31 + [-2.0], [1.0, -1.0] * 16, [1e-12] * 32])
    for bits, group in FORMATS:
        torch.testing.assert_close(
            quantise_experts([matrix], bits=bits, group=group).dequantise()[0], matrix, rtol=1e-2, atol=0
        )


def test_matrices_are_taken_one_by_one() -> None:
    drawn = []

    def matrices() -> Any:
        for number in range(3):
            drawn.append(number)
            yield torch.full((2, 32), float(number + 1), dtype=torch.bfloat16)

    weights = quantise_experts(matrices(), group=32)
    assert drawn == [0, 1, 2]
    torch.testing.assert_close(weights.dequantise()[2], torch.full((2, 32), 3.0), rtol=5e-3, atol=0)
    assert weights.num_bytes == 3 * 2 * (32 + 2 * 2)  # 32 columns become 64, in two groups


@pytest.mark.parametrize(("bits", "group"), FORMATS)
@given(problem=PROBLEMS)
@settings(max_examples=20, deadline=None)
def test_products_equal_those_of_the_dequantised_weights(bits: int, group: int, problem: Problem) -> None:
    given, _ = narrowed(problem, torch.float32)
    if len(problem.up) == 0:
        return
    quantised = {name: quantise_experts(given[name], bits=bits, group=group) for name in ("up", "down")}
    result = expert_mlp(**{**given, **quantised})
    # Values meet weights in 15 bits and a sign, or with weights of 4 bits in 7 and a sign, group by group.
    exact = {name: weights.dequantise().contiguous() for name, weights in quantised.items()}
    expected = expert_mlp(**{**given, **exact}, backend="torch")
    if bits == 8:
        torch.testing.assert_close(result, expected, rtol=2e-3, atol=2e-3)
    else:
        assert (result - expected).norm() <= 0.03 * (expected.norm() + 1)


@pytest.mark.parametrize(("bits", "group"), FORMATS)
def test_wide_matrices_do_not_overflow(bits: int, group: int) -> None:
    ones = torch.ones(1, 16, 4096)
    up, down = (quantise_experts(matrix, bits=bits, group=group) for matrix in (ones, ones.transpose(1, 2)))
    values = torch.full((5, 4096), 2.0)
    result = expert_mlp(values, torch.tensor([0, 5]), up, down, activation="linear", gated=False)
    torch.testing.assert_close(result, torch.full((5, 4096), 4096 * 2.0 * 16), rtol=1e-2, atol=0)


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(("bits", "group"), FORMATS)
@pytest.mark.parametrize("activation", ["silu", "relu"])
def test_what_is_not_finite_makes_its_entry_nan(bits: int, group: int, wrong: float, activation: str) -> None:
    given = Problem.draw([4, 3], 160, 48, activation, gated=True, biased=True, seed=0).torch(torch.float32)
    given |= {name: quantise_experts(given[name], bits=bits, group=group) for name in ("up", "down")}
    clean = expert_mlp(**given)
    for entry, column in ((1, 0), (2, 159), (6, 77)):
        given["values"][entry, column] = wrong
    result = expert_mlp(**given)
    assert result[[1, 2, 6]].isnan().all()
    assert torch.equal(result[[0, 3, 4, 5]], clean[[0, 3, 4, 5]])


@pytest.mark.parametrize(("bits", "group"), FORMATS)
def test_values_of_0_give_the_bias(bits: int, group: int) -> None:
    given = Problem.draw([2], 32, 32, "linear", gated=False, biased=True, seed=0).torch(torch.float32)
    weights = {name: quantise_experts(given[name], bits=bits, group=group) for name in ("up", "down")}
    still = {"values": torch.zeros(2, 32), "up_bias": torch.zeros(1, 32)}
    assert torch.equal(expert_mlp(**{**given, **weights, **still}), given["down_bias"].expand(2, -1))


@pytest.mark.parametrize("wrong", [np.nan, np.inf, 1e39])
@pytest.mark.parametrize("bits", [4, 8])
def test_weights_that_are_not_finite_are_refused(bits: int, wrong: float) -> None:
    matrices = torch.ones(3, 4, 32, dtype=torch.float64)
    matrices[2, 1, 30] = wrong
    with pytest.raises(InputError, match="expert 2 are not finite in 1 places, first in row 1, column 30"):
        quantise_experts(matrices, bits=bits)


@pytest.mark.parametrize(("bits", "group"), FORMATS)
@given(power=st.integers(-110, 120), seed=st.integers(0, 2**32 - 1))
@settings(max_examples=20, deadline=None)
def test_weights_of_any_size_have_the_codes_of_ordinary_ones(
    bits: int, group: int, power: int, seed: int
) -> None:
    weights = torch.randn(1, 3, 128, generator=torch.Generator().manual_seed(seed))
    weights[0, 1] *= 2.0 ** torch.randint(-3, 4, (128,))
    scaled = torch.ldexp(weights, torch.tensor(power))
    ordinary, extreme = (quantise_experts(matrix, bits=bits, group=group) for matrix in (weights, scaled))
    assert torch.equal(extreme.codes, ordinary.codes)
    assert torch.equal(extreme.scales.double(), ordinary.scales.double() * 2.0**power)
    assert torch.equal(extreme.dequantise().double(), ordinary.dequantise().double() * 2.0**power)


@pytest.mark.parametrize(("bits", "group"), FORMATS)
@pytest.mark.parametrize("power", [-90, 90])
def test_products_of_large_and_small_weights_are_those_of_ordinary_ones(
    bits: int, group: int, power: int
) -> None:
    draw = torch.Generator().manual_seed(0)
    up, down = torch.randn(2, 32, 64, generator=draw), torch.randn(2, 64, 32, generator=draw)
    values, offsets = torch.randn(5, 64, generator=draw), torch.tensor([0, 2, 5])
    outputs = [
        expert_mlp(
            values,
            offsets,
            quantise_experts(torch.ldexp(up, torch.tensor(by)), bits=bits, group=group),
            quantise_experts(torch.ldexp(down, torch.tensor(-by)), bits=bits, group=group),
            activation="relu",
            gated=False,
        )
        for by in (0, power)
    ]
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bits", [4, 8])
def test_weights_near_the_ends_of_float32_are_zeros_or_refused(bits: int) -> None:
    small = torch.full((1, 2, 32), 1e-39)
    small[0, 1] = 1.0
    rounded = quantise_experts(small, bits=bits)
    assert not rounded.dequantise()[0, 0].any()
    torch.testing.assert_close(rounded.dequantise()[0, 1], torch.ones(32), rtol=1e-4, atol=0)
    largest = quantise_experts(torch.full((1, 2, 32), 2.0**126), bits=bits).dequantise()
    torch.testing.assert_close(largest, torch.full((1, 2, 32), 2.0**126), rtol=1e-4, atol=0)
    with pytest.raises(InputError, match=r"weights of expert 1 are as large as 3e\+38, but can be 8.51e\+37"):
        quantise_experts(torch.tensor([1.0, 3e38])[:, None, None].expand(2, 2, 32), bits=bits)


def test_bfloat16_values_stay_bfloat16() -> None:
    given = Problem.draw([2, 1], 32, 32, "silu", gated=True, biased=True, seed=0).torch(torch.bfloat16)
    quantised = {name: quantise_experts(given[name]) for name in ("up", "down")}
    assert expert_mlp(**{**given, **quantised}).dtype == torch.bfloat16


def test_what_cannot_be_quantised_says_why() -> None:
    with pytest.raises(UsageError, match="not 5 bits in groups of 128"):
        quantise_experts(torch.ones(1, 2, 32), bits=5)
    with pytest.raises(UsageError, match="no expert to quantise"):
        quantise_experts([])
    with pytest.raises(UsageError, match=r"but \(3, 32\) follows"):
        quantise_experts([torch.ones(2, 32), torch.ones(3, 32)])
    weights = quantise_experts(torch.ones(1, 32, 32))
    values, offsets = torch.ones(1, 32), torch.tensor([0, 1])
    with pytest.raises(UsageError, match="both up and down"):
        expert_mlp(values, offsets, weights, torch.ones(1, 32, 32), activation="relu", gated=False)
    with pytest.raises(UsageError, match="no gradients"):
        expert_mlp(values.requires_grad_(), offsets, weights, weights, activation="relu", gated=False)
    bias = torch.zeros(1, 32, requires_grad=True)
    for name in ("up_bias", "down_bias"):
        with pytest.raises(UsageError, match="no gradients, by their values and biases neither"):
            expert_mlp(
                values.detach(), offsets, weights, weights, activation="relu", gated=False, **{name: bias}
            )
        with torch.no_grad():
            expert_mlp(values, offsets, weights, weights, activation="relu", gated=False, **{name: bias})

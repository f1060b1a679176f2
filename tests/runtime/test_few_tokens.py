"""Layers of few tokens in one call of compiled code, against their definition in float64."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.expert_weights import quantise_experts
from runtime.kernels.expert_activations import numpy_activation, torch_activation
from runtime.kernels.few_tokens import ACTIVATIONS, FEW_TOKENS, mix_few_tokens

pytest.importorskip("numba")


def layer(
    tokens: int = 3,
    experts: int = 4,
    top_k: int = 2,
    width: int = 16,
    inner: int = 24,
    *,
    gated: bool = True,
    biased: bool = False,
    activation: str = "silu",
    dtype: torch.dtype = torch.float32,
    narrow_units: bool = False,
    seed: int = 0,
) -> dict[str, Any]:
    """Arguments of `mix_few_tokens`; an expert may come twice for a token, and weights may be 0."""
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=draw).to(dtype)

    weights = normal(tokens, top_k)
    return {
        "hidden": normal(tokens, width),
        "indptr": None,
        "units": torch.randint(experts, (tokens, top_k), generator=draw).to(
            torch.int32 if narrow_units else torch.int64
        ),
        "weights": weights * (normal(tokens, top_k) > -0.5),
        "up": normal(experts, 2 * inner if gated else inner, width) / width**0.5,
        "down": normal(experts, width, inner) / inner**0.5,
        "up_bias": normal(experts, 2 * inner if gated else inner) if biased else None,
        "down_bias": normal(experts, width) if biased else None,
        "gated": gated,
        "activation": activation,
    }


def expected(given: dict[str, Any]) -> torch.Tensor:
    """The definition, route by route."""
    exact = {
        name: value.double().numpy() if torch.is_tensor(value) and value.is_floating_point() else value
        for name, value in given.items()
    }
    units, weights = given["units"].reshape(-1), exact["weights"].reshape(-1)
    tokens = len(exact["hidden"])
    starts = range(0, len(units) + 1, len(units) // tokens) if given["indptr"] is None else given["indptr"]
    activate = numpy_activation(given["activation"])
    output = np.zeros_like(exact["hidden"])
    for token in range(tokens):
        for route in range(starts[token], starts[token + 1]):
            expert = int(units[route])
            product = exact["up"][expert] @ exact["hidden"][token]
            if exact["up_bias"] is not None:
                product = product + exact["up_bias"][expert]
            if given["gated"]:
                gate, passed = np.split(product, 2)
                product = activate(gate) * passed
            else:
                product = activate(product)
            product = exact["down"][expert] @ product
            if exact["down_bias"] is not None:
                product = product + exact["down_bias"][expert]
            output[token] += weights[route] * product
    return torch.from_numpy(output)


LAYERS = st.builds(
    layer,
    tokens=st.integers(1, FEW_TOKENS),
    experts=st.integers(1, 6),
    top_k=st.integers(1, 4),
    width=st.integers(1, 5).map(lambda eighth: 8 * eighth),
    inner=st.sampled_from([8, 24, 64, 104]),
    gated=st.booleans(),
    biased=st.booleans(),
    activation=st.sampled_from([*ACTIVATIONS, "swish", "gelu_new"]),
    narrow_units=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)


@given(given=LAYERS)
@settings(max_examples=50, deadline=None)
def test_float32_equals_the_definition(given: dict[str, Any]) -> None:
    found = mix_few_tokens(**given)
    assert found is not None
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected(given), rtol=5e-5, atol=5e-5)


@given(given=LAYERS)
@settings(max_examples=50, deadline=None)
def test_bfloat16_equals_the_definition_up_to_its_last_bit(given: dict[str, Any]) -> None:
    narrow = {
        name: value.bfloat16() if torch.is_tensor(value) and value.is_floating_point() else value
        for name, value in given.items()
    }
    found = mix_few_tokens(**narrow)
    assert found is not None
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.double(), expected(narrow), rtol=2**-8, atol=5e-5)


@pytest.mark.parametrize(("bits", "group", "tolerance"), [(8, 32, 1e-4), (4, 32, 1.5e-2), (4, 128, 1.5e-2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("gated", [True, False])
def test_few_bits_equal_what_their_codes_stand_for(
    bits: int, group: int, tolerance: float, dtype: torch.dtype, gated: bool
) -> None:
    for tokens, width, inner in ((1, 200, 72), (7, 64, 264), (16, 1032, 128)):
        given = layer(tokens, 5, 2, width, inner, gated=gated, biased=True, seed=tokens)
        given["hidden"] = given["hidden"].to(dtype)
        rounded = {name: quantise_experts(given[name], bits=bits, group=group) for name in ("up", "down")}
        exact = expected(given | {name: weights.dequantise() for name, weights in rounded.items()})
        found = mix_few_tokens(**(given | rounded))
        assert found is not None
        assert found.dtype == dtype
        error = (found.double() - exact).norm() / exact.norm()
        assert error <= tolerance + (4e-3 if dtype == torch.bfloat16 else 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_blocks_of_rows_and_columns_join(dtype: torch.dtype) -> None:
    given = layer(5, 3, 2, 1160, 2056, biased=True, dtype=dtype)
    found = mix_few_tokens(**given)
    assert found is not None
    tolerance = 2**-8 if dtype == torch.bfloat16 else 5e-5
    torch.testing.assert_close(found.double(), expected(given), rtol=tolerance, atol=1e-4)


def test_tokens_may_have_different_numbers_of_routes_or_none() -> None:
    given = layer(4, 3, 2)
    given["indptr"] = torch.tensor([0, 3, 3, 7, 8])
    given |= {name: given[name].reshape(-1) for name in ("units", "weights")}
    found = mix_few_tokens(**given)
    assert found is not None
    torch.testing.assert_close(found.double(), expected(given), rtol=5e-5, atol=5e-5)
    assert (found[1] == 0).all()


@pytest.mark.parametrize("unit", [-1, 4, 2**40])
def test_routes_to_no_expert_are_left_to_who_says_what_is_wrong(unit: int) -> None:
    given = layer()
    given["units"][1, 1] = unit
    assert mix_few_tokens(**given) is None


@pytest.mark.parametrize("indptr", [[0, 4, 2, 6], [0, 2, 9, 6], [-2, 2, 4, 6], [0, 2, 4, 5]])
def test_starts_that_are_none_are_left_to_others(indptr: list[int]) -> None:
    given = layer() | {"indptr": torch.tensor(indptr)}
    given |= {name: given[name].reshape(-1) for name in ("units", "weights")}
    assert mix_few_tokens(**given) is None


def test_what_it_cannot_compute_is_left_to_others() -> None:
    given = layer()
    assert mix_few_tokens(**given) is not None
    others = {
        "no tokens": layer(0),
        "many tokens": layer(FEW_TOKENS + 1),
        "no routes": layer(top_k=0),
        "width": layer(width=12),
        "activation": layer(activation="mish"),
        "dtype": layer(dtype=torch.float64),
        "mixed dtypes": given | {"hidden": given["hidden"].bfloat16()},
        "shapes": given | {"down": given["down"][:3]},
        "bias": given | {"up_bias": torch.zeros(4, 3)},
        "strided": given | {"up": given["up"].mT.contiguous().mT},
        "gradients": given | {"hidden": given["hidden"].clone().requires_grad_()},
        "device": given | {"hidden": given["hidden"].to("meta")},
    }
    for reason, other in others.items():
        assert mix_few_tokens(**other) is None, reason
    with torch.autocast("cpu"):
        assert mix_few_tokens(**given) is None


@pytest.mark.parametrize("num_threads", [1, 2, 3])
def test_any_number_of_threads_gives_the_same_bits(num_threads: int) -> None:
    given = layer(9, 5, 3, 64, 200, biased=True)
    threads = torch.get_num_threads()
    before = mix_few_tokens(**given)
    try:
        torch.set_num_threads(num_threads)
        assert torch.equal(mix_few_tokens(**given), before)  # type: ignore[arg-type]
    finally:
        torch.set_num_threads(threads)


def test_calls_from_several_threads_at_once_do_not_mix() -> None:
    layers = [layer(2, 3, 2, 32, 64, seed=seed) for seed in range(4)]
    results = [mix_few_tokens(**given) for given in layers]
    wrong: list[int] = []

    def repeat(place: int) -> None:
        found = [mix_few_tokens(**layers[place]) for _ in range(30)]
        wrong.extend(place for output in found if not torch.equal(output, results[place]))  # type: ignore[arg-type]

    callers = [threading.Thread(target=repeat, args=(place,)) for place in range(4)]
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
    finally:
        torch.set_num_threads(threads)
    assert wrong == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("number", [torch.nan, torch.inf, -torch.inf])
def test_infinity_and_nan_stay_in_their_token(number: float, dtype: torch.dtype) -> None:
    given = layer(dtype=dtype)
    clean = mix_few_tokens(**given)
    given["hidden"][1, 3] = number
    found = mix_few_tokens(**given)
    assert found is not None
    assert clean is not None
    assert torch.equal(found[[0, 2]], clean[[0, 2]])
    assert not found[1].isfinite().any()
    if number is torch.nan:
        assert found[1].isnan().all()


def test_nan_reaches_the_output_through_routes_of_weight_0() -> None:
    given = layer()
    given["weights"][:] = 0
    given["hidden"][2, 0] = torch.nan
    found = mix_few_tokens(**given)
    assert found is not None
    assert (found[:2] == 0).all()
    assert found[2].isnan().all()


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_equal_those_of_torch_on_all_of_float32(activation: str) -> None:
    magnitudes = torch.logspace(-30, 38, 700)
    x = torch.cat([magnitudes, -magnitudes, torch.linspace(-110, 110, 4001), torch.tensor([0.0, -0.0])])
    edges = torch.tensor([torch.inf, -torch.inf, torch.nan, 88.7, 88.8, -87.3, -88.8, 1.0])
    x = torch.cat([x, edges, torch.zeros(-(len(x) + len(edges)) % 8)])
    # One column of weights turns a hidden state of 1 into all of x, and the identity keeps what becomes of it.
    up = torch.zeros(1, len(x), 8)
    up[0, :, 0] = x
    hidden = torch.zeros(1, 8)
    hidden[0, 0] = 1
    found = []
    for start in range(0, len(x), 8):
        part = mix_few_tokens(
            hidden,
            None,
            torch.zeros(1, 1, dtype=torch.int64),
            torch.ones(1, 1),
            torch.nan_to_num(up[:, start : start + 8], posinf=0, neginf=0),
            torch.eye(8)[None],
            activation=activation,
            gated=False,
            up_bias=torch.where(x.isfinite(), 0.0, x)[None, start : start + 8],
        )
        assert part is not None
        found.append(part[0])
    # An identity that meets infinity gives NaN in its whole block of 8.
    finite = x.reshape(-1, 8).isfinite().all(1).repeat_interleave(8)
    result, exact = torch.cat(found), torch_activation(activation)(x)
    torch.testing.assert_close(result[finite], exact[finite], rtol=1e-5, atol=5e-7)
    assert result[~finite].isnan().any()


def test_tensors_whose_memory_is_not_their_numbers_are_left_to_others() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    given = layer()
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert mix_few_tokens(**given) is None
        assert mix_few_tokens(**{**given, "hidden": torch.empty(3, 16)}) is None
    for name in ("hidden", "weights", "up", "down"):
        negated = torch._neg_view(given[name])
        assert mix_few_tokens(**{**given, name: negated}) is None


def test_routes_of_other_tokens_are_left_to_who_says_what_is_wrong() -> None:
    given = layer(tokens=2)
    more = layer(tokens=4)
    assert mix_few_tokens(**{**given, "units": more["units"], "weights": more["weights"]}) is None
    flat = {**given, "units": given["units"].flatten(), "weights": given["weights"].flatten()}
    starts = torch.tensor([0, 2, 4, 4, 4])
    assert mix_few_tokens(**{**flat, "indptr": starts[:3]}) is not None
    for wrong in (starts[:2], starts, starts[:3].int()):
        assert mix_few_tokens(**{**flat, "indptr": wrong}) is None


def test_biases_of_other_dtypes_are_left_to_others() -> None:
    given = layer(biased=True)
    assert mix_few_tokens(**{**given, "up_bias": given["up_bias"].double()}) is None

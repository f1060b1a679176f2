from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.combine import grouped_matmul
from runtime.errors import UsageError
from runtime.expert_mlp import expert_mlp
from runtime.kernels.expert_activations import ALIASES, torch_activation

ACTIVATIONS = (
    "gelu", "gelu_pytorch_tanh", "leaky_relu", "linear", "mish", "quick_gelu", "relu", "relu2", "relu6", "sigmoid",
    "silu", "tanh",
)  # fmt: skip


@dataclass
class Problem:
    """Arguments of `expert_mlp` in float64, drawn from a normal distribution."""

    values: Any
    offsets: Any
    up: Any
    down: Any
    activation: str
    gated: bool
    up_bias: Any
    down_bias: Any

    @staticmethod
    def draw(
        sizes: list[int], width: int, inner: int, activation: str, gated: bool, biased: bool, seed: int
    ) -> Problem:
        generator = np.random.default_rng(seed)
        rows = 2 * inner if gated else inner
        return Problem(
            generator.standard_normal((sum(sizes), width)),
            np.cumsum([0, *sizes]).astype(np.int64),
            generator.standard_normal((len(sizes), rows, width)) / max(width, 1) ** 0.5,
            generator.standard_normal((len(sizes), width, inner)) / max(inner, 1) ** 0.5,
            activation,
            gated,
            generator.standard_normal((len(sizes), rows)) if biased else None,
            generator.standard_normal((len(sizes), width)) if biased else None,
        )

    def torch(self, dtype: torch.dtype) -> dict[str, Any]:
        def convert(array: Any) -> Any:
            return None if array is None else torch.from_numpy(array).to(dtype)

        return {
            "values": convert(self.values),
            "offsets": torch.from_numpy(self.offsets),
            "up": convert(self.up),
            "down": convert(self.down),
            "activation": self.activation,
            "gated": self.gated,
            "up_bias": convert(self.up_bias),
            "down_bias": convert(self.down_bias),
        }

    def expected(self) -> Any:
        return expert_mlp(**vars(self))


PROBLEMS = st.builds(
    Problem.draw,
    sizes=st.lists(st.integers(0, 9), max_size=4),
    width=st.integers(1, 40),
    inner=st.integers(1, 40),
    activation=st.sampled_from(ACTIVATIONS),
    gated=st.booleans(),
    biased=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)


@given(problem=PROBLEMS)
@settings(max_examples=60)
def test_each_entry_goes_through_its_expert(problem: Problem) -> None:
    activate = torch_activation(problem.activation)
    expected = np.zeros_like(problem.values)
    for expert in range(len(problem.up)):
        for entry in range(problem.offsets[expert], problem.offsets[expert + 1]):
            hidden = problem.up[expert] @ problem.values[entry]
            hidden = torch.from_numpy(hidden if problem.up_bias is None else hidden + problem.up_bias[expert])
            if problem.gated:
                gate, passed = hidden.chunk(2)
                hidden = activate(gate) * passed
            else:
                hidden = activate(hidden)
            expected[entry] = problem.down[expert] @ hidden.numpy()
            if problem.down_bias is not None:
                expected[entry] += problem.down_bias[expert]
    np.testing.assert_allclose(problem.expected(), expected, rtol=1e-10, atol=1e-10)


@given(problem=PROBLEMS)
@settings(max_examples=60)
def test_torch_equals_the_reference(problem: Problem) -> None:
    given = problem.torch(torch.float64)
    result = expert_mlp(**given, backend="torch")
    torch.testing.assert_close(result, torch.from_numpy(problem.expected()), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("activation", ["silu", "gelu", "relu2"])
def test_gradients_equal_differences(activation: str, gated: bool) -> None:
    given = Problem.draw([2, 0, 1], 3, 4, activation, gated, biased=True, seed=0).torch(torch.float64)
    names = ("values", "up", "down", "up_bias", "down_bias")
    leaves = [given.pop(name).requires_grad_() for name in names]

    def run(*tensors: torch.Tensor) -> Any:
        return expert_mlp(**dict(zip(names, tensors, strict=True)), **given)

    assert torch.autograd.gradcheck(run, leaves)


def test_gradients_equal_those_of_dense_blocks() -> None:
    given = Problem.draw([3, 0, 5], 8, 16, "silu", gated=True, biased=False, seed=1).torch(torch.float32)
    leaves = [given[name].requires_grad_() for name in ("values", "up", "down")]
    values, up, down = leaves
    expert = torch.repeat_interleave(torch.arange(3), given["offsets"].diff())
    gate, passed = torch.einsum("ni,noi->no", values, up[expert]).chunk(2, dim=1)
    dense = torch.einsum("ni,noi->no", torch.nn.functional.silu(gate) * passed, down[expert])
    weights = torch.randn(dense.shape, generator=torch.Generator().manual_seed(0))
    expected = torch.autograd.grad((dense * weights).sum(), leaves)
    found = torch.autograd.grad((expert_mlp(**given) * weights).sum(), leaves)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backend", [None, "torch"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("width", [8, 3])
@pytest.mark.parametrize("name", ["values", "up", "down", "up_bias", "down_bias"])
def test_gradients_of_no_entries_are_zeros(
    backend: str | None, dtype: torch.dtype, width: int, name: str
) -> None:
    given = Problem.draw([0, 0], width, 8, "silu", gated=True, biased=True, seed=0).torch(dtype)
    leaf = given[name].requires_grad_()
    result = expert_mlp(**given, backend=backend)
    result.sum().backward()
    assert result.shape == (0, width)
    assert torch.equal(leaf.grad, torch.zeros_like(leaf))


@pytest.mark.parametrize("place", [0, 1])
def test_gradients_of_no_products_are_zeros(place: int) -> None:
    arrays = [torch.zeros(0, 3), torch.ones(2, 3, 5)]
    arrays[place].requires_grad_()
    result = grouped_matmul(arrays[0], torch.tensor([0, 0, 0]), arrays[1])
    result.sum().backward()
    assert result.shape == (0, 5)
    assert torch.equal(arrays[place].grad, torch.zeros_like(arrays[place]))


def test_an_alias_is_the_same_activation() -> None:
    for alias in ALIASES:
        problem = Problem.draw([2], 3, 3, alias, gated=True, biased=False, seed=0)
        same = Problem(**{**vars(problem), "activation": ALIASES[alias]})
        np.testing.assert_array_equal(problem.expected(), same.expected())


def test_activations_are_those_of_transformers() -> None:
    activations = pytest.importorskip("transformers.activations")
    x = torch.linspace(-6, 7, 101, dtype=torch.float64)
    for name in (*ACTIVATIONS, *ALIASES):
        torch.testing.assert_close(
            torch_activation(name)(x), activations.ACT2FN[name](x), rtol=1e-6, atol=1e-6
        )


def test_what_does_not_fit_is_a_usage_error() -> None:
    def changed(**changes: Any) -> Any:
        problem = Problem.draw([2, 1], 3, 4, "silu", gated=True, biased=True, seed=0)
        return expert_mlp(**{**vars(problem), **changes})

    with pytest.raises(UsageError, match="no activation 'swoosh'; choose from gelu"):
        changed(activation="swoosh")
    with pytest.raises(UsageError, match=r"must be \[entries, width\], \[experts, inner, width\]"):
        changed(gated=False)
    with pytest.raises(UsageError, match="must be"):
        changed(down=np.zeros((2, 4, 4)))
    with pytest.raises(UsageError, match="2 groups need 3 offsets, not 2"):
        changed(offsets=np.array([0, 3]))
    with pytest.raises(UsageError, match="offsets run from 0 to 2"):
        changed(offsets=np.array([0, 1, 2]))
    with pytest.raises(UsageError, match="must not decrease"):
        changed(offsets=np.array([0, 4, 3]))
    with pytest.raises(
        UsageError, match=r"offsets are float64 of shape \(3,\), but must be int64 \[groups \+ 1\]"
    ):
        changed(offsets=np.array([0.0, 2.0, 3.0]))
    with pytest.raises(UsageError, match=r"offsets are int64 of shape \(3, 1\)"):
        changed(offsets=np.array([[0], [2], [3]]))
    with pytest.raises(UsageError, match=r"down_bias \(2, 4\) must be \(2, 3\)"):
        changed(down_bias=np.zeros((2, 4)))
    with pytest.raises(UsageError, match="values are float64, but down is float32"):
        changed(down=np.zeros((2, 3, 4), np.float32))

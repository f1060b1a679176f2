"""Experts on the processor against the reference in float64.

Tolerances: float32 sums of unit variance differ by at most 2e-5, bfloat16 results by half a unit of their last of 8
bits beside that.
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.combine import grouped_matmul
from runtime.errors import UsageError
from runtime.expert_mlp import expert_mlp
from runtime.expert_weights import quantise_experts
from runtime.kernels import expert_cpu, thread_crew
from runtime.kernels.library_products import IN_TRAINING, NEVER, TRIED, entries_by_rule, entries_for_library
from runtime.kernels.registry import backends
from tests.runtime.test_expert_mlp import ACTIVATIONS, PROBLEMS, Problem

pytest.importorskip("numba")

SUITED = st.builds(
    Problem.draw,
    sizes=st.lists(st.integers(0, 9), max_size=4),
    width=st.integers(1, 5).map(lambda eighth: 8 * eighth),
    inner=st.integers(1, 5).map(lambda eighth: 8 * eighth),
    activation=st.sampled_from(ACTIVATIONS),
    gated=st.booleans(),
    biased=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)


def narrowed(problem: Problem, dtype: torch.dtype) -> tuple[dict[str, Any], torch.Tensor]:
    """The problem in a narrower dtype, and the exact result of these narrower numbers."""
    given = problem.torch(dtype)
    exact = Problem(**{
        name: value.double().numpy() if name not in ("offsets", "activation", "gated") and value is not None else value
        for name, value in given.items()
    })  # fmt: skip
    exact.offsets = problem.offsets
    return given, torch.from_numpy(exact.expected())


@given(problem=SUITED)
@settings(max_examples=60, deadline=None)
def test_float32_equals_the_reference(problem: Problem) -> None:
    given, expected = narrowed(problem, torch.float32)
    result = expert_mlp(**given)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result.double(), expected, rtol=2e-5, atol=2e-5)


@given(problem=SUITED)
@settings(max_examples=60, deadline=None)
def test_bfloat16_equals_the_reference_up_to_its_last_bit(problem: Problem) -> None:
    given, expected = narrowed(problem, torch.bfloat16)
    result = expert_mlp(**given)
    assert result.dtype == torch.bfloat16
    torch.testing.assert_close(result.double(), expected, rtol=2**-8, atol=2e-5)


@given(problem=PROBLEMS)
@settings(max_examples=20, deadline=None)
def test_any_width_is_computed(problem: Problem) -> None:
    given, expected = narrowed(problem, torch.float32)
    torch.testing.assert_close(expert_mlp(**given).double(), expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_blocks_of_rows_columns_and_entries_join(dtype: torch.dtype) -> None:
    # More rows than a block, more columns than one, more entries than are computed at once.
    problem = Problem.draw([700, 3, 0, 500, 1, 2], 1160, 104, "silu", gated=True, biased=True, seed=0)
    given, expected = narrowed(problem, dtype)
    tolerance = 2**-8 if dtype == torch.bfloat16 else 2e-5
    torch.testing.assert_close(expert_mlp(**given).double(), expected, rtol=tolerance, atol=1e-4)


@pytest.mark.parametrize("fewest", [1, 4, 2**62])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_library_and_tiles_can_share_the_experts(
    dtype: torch.dtype, fewest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(expert_cpu, "entries_for_library", lambda *_: fewest)
    monkeypatch.setattr(expert_cpu, "entries_by_rule", lambda _: fewest)
    problem = Problem.draw([3, 20, 0, 4, 40], 64, 48, "silu", gated=True, biased=True, seed=0)
    given, expected = narrowed(problem, dtype)
    # The library rounds between the products too.
    tolerance = 3e-2 if dtype == torch.bfloat16 else 2e-5
    for gradients in (False, True):
        with torch.set_grad_enabled(gradients):
            result = expert_mlp(**given)
        torch.testing.assert_close(result.double(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("asks", [(), ("values",), ("up", "down")])
def test_no_trial_decides_where_gradients_are_enabled(
    asks: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = Problem.draw([300, 20], 64, 48, "silu", gated=True, biased=True, seed=0).torch(torch.float32)
    given |= {name: given[name].requires_grad_() for name in asks}
    results = []
    for fewest in (1, NEVER):
        monkeypatch.setattr(expert_cpu, "entries_for_library", lambda *_, fewest=fewest: fewest)
        result = expert_mlp(**given)
        slopes = torch.autograd.grad(result.sum(), [given[name] for name in asks]) if asks else ()
        product = grouped_matmul(given["values"].detach(), given["offsets"], given["up"].detach().mT)
        results.append([result, *slopes, product])
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("capability", "has_bfloat16", "float32", "bfloat16"),
    [("AVX2", True, NEVER, NEVER), ("AVX512", False, IN_TRAINING, NEVER), ("AVX512", True, IN_TRAINING, IN_TRAINING)],
)  # fmt: skip
def test_the_rule_goes_by_what_the_processor_can(
    capability: str, has_bfloat16: bool, float32: int, bfloat16: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: has_bfloat16)
    assert entries_by_rule.__wrapped__(torch.float32) == float32
    assert entries_by_rule.__wrapped__(torch.bfloat16) == bfloat16


def test_the_library_is_tried_once_for_a_dtype() -> None:
    fewest = entries_for_library(torch.float32, 1)
    assert fewest in (*TRIED, NEVER)
    assert entries_for_library(torch.float32, 1) == fewest


def test_weights_that_are_views_are_computed() -> None:
    given = Problem.draw([2, 1], 16, 16, "relu", gated=False, biased=False, seed=0).torch(torch.float32)
    turned = {name: given[name].transpose(1, 2).contiguous().transpose(1, 2) for name in ("up", "down")}
    wide = torch.zeros(3, 20)
    wide[:, 2:18] = given["values"]
    result = expert_mlp(**{**given, **turned, "values": wide[:, 2:18]})
    torch.testing.assert_close(result, expert_mlp(**given))


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
@pytest.mark.parametrize("bits", [None, 8, 4])
def test_offsets_that_are_views_are_computed(bits: int | None, dtype: torch.dtype) -> None:
    given = Problem.draw([7, 13], 16, 8, "silu", gated=True, biased=False, seed=0).torch(torch.float32)
    if bits:
        given |= {name: quantise_experts(given[name], bits=bits) for name in ("up", "down")}
    spread = torch.full((3, 2), 99, dtype=dtype)
    spread[:, 0] = given["offsets"]
    assert torch.equal(expert_mlp(**{**given, "offsets": spread[:, 0]}), expert_mlp(**given))


@pytest.mark.parametrize("offsets", [[0.0, 2.0, 3.0], [[0], [2], [3]], [0, 4, 3], [-2, 1, 3]])
def test_offsets_that_lead_elsewhere_are_refused(offsets: list[Any]) -> None:
    given = Problem.draw([2, 1], 16, 8, "silu", gated=True, biased=False, seed=0).torch(torch.float32)
    with pytest.raises(UsageError, match="offsets"):
        expert_mlp(**{**given, "offsets": torch.tensor(offsets)})


@pytest.mark.parametrize("num_threads", [1, 2, 3])
@pytest.mark.parametrize("with_openmp", [True, False])
def test_any_number_of_threads_gives_the_same_bits(
    num_threads: int, with_openmp: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = Problem.draw([3, 0, 9, 1], 64, 200, "gelu", gated=True, biased=True, seed=3).torch(torch.float32)
    threads = torch.get_num_threads()
    expected = expert_mlp(**given)
    if not with_openmp:
        monkeypatch.setattr(thread_crew, "_openmp_parallel", lambda: None)
    try:
        torch.set_num_threads(num_threads)
        assert torch.equal(expert_mlp(**given), expected)
    finally:
        torch.set_num_threads(threads)


def test_calls_from_several_threads_at_once_do_not_mix() -> None:
    problems = [
        Problem.draw([2, 5], 32, 64, "silu", True, False, seed).torch(torch.float32) for seed in range(4)
    ]
    expected = [expert_mlp(**problem) for problem in problems]
    wrong: list[int] = []

    def repeat(place: int) -> None:
        results = [expert_mlp(**problems[place]) for _ in range(50)]
        wrong.extend(place for result in results if not torch.equal(result, expected[place]))

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


def test_no_entries_and_no_experts_give_no_rows() -> None:
    for sizes in ([], [0, 0]):
        given = Problem.draw(sizes, 8, 8, "silu", gated=True, biased=True, seed=0).torch(torch.float32)
        assert expert_mlp(**given).shape == (0, 8)


def test_it_comes_first_for_tensors_on_the_processor() -> None:
    given = Problem.draw([1], 8, 8, "silu", gated=True, biased=False, seed=0).torch(torch.float32)
    arrays = [given[name] for name in ("values", "offsets", "up", "down")]
    assert backends("expert_mlp", *arrays) == ["expert_cpu", "torch"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@given(problem=SUITED)
@settings(max_examples=25, deadline=None)
def test_gradients_equal_those_of_torch(dtype: torch.dtype, problem: Problem) -> None:
    given, _ = narrowed(problem, dtype)
    exact = {
        name: value.double() if isinstance(value, torch.Tensor) and value.is_floating_point() else value
        for name, value in given.items()
    }
    names = [name for name in ("values", "up", "down", "up_bias", "down_bias") if given[name] is not None]
    found, expected = (
        torch.autograd.grad(
            expert_mlp(**{**arguments, **dict(zip(names, leaves, strict=True))}).double().sum(),
            leaves,
            materialize_grads=True,
        )
        for arguments in (given, exact)
        for leaves in [[arguments[name].clone().requires_grad_() for name in names]]
    )
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == dtype
        # Of the whole: in bfloat16, what cancels out to a small number keeps the errors of large ones.
        assert (one.double() - other).norm() <= tolerance * (other.norm() + 1)


def test_only_what_asks_for_a_gradient_gets_one() -> None:
    given = Problem.draw([2, 0, 3], 16, 16, "silu", gated=True, biased=True, seed=0).torch(torch.float32)
    for names in (["values"], ["down"], ["up_bias"], ["values", "up"]):
        leaves = {name: given[name].clone().requires_grad_() for name in names}
        expert_mlp(**{**given, **leaves}).sum().backward()
        whole = {name: given[name].clone().requires_grad_() for name in names}
        expert_mlp(**{**given, **whole}, backend="torch").sum().backward()
        for name in names:
            torch.testing.assert_close(leaves[name].grad, whole[name].grad)


@pytest.mark.parametrize("names", [["values"], ["up"], ["down_bias"], ["values", "down"]])
@pytest.mark.parametrize("constant", [True, False])
def test_gradients_of_gradients_are_refused_and_not_wrong(names: list[str], constant: bool) -> None:
    given = Problem.draw([2, 3], 16, 16, "silu", gated=True, biased=True, seed=0).torch(torch.float32)
    leaves = {name: given[name].clone().requires_grad_() for name in names}

    def slopes(backend: str | None) -> Any:
        result = expert_mlp(**{**given, **leaves}, backend=backend)
        # Beside a term whose second derivative is there, so that a missing one would go unnoticed.
        loss = sum(((leaf**3).sum() for leaf in leaves.values()), (result if constant else result**2).sum())
        return torch.autograd.grad(loss, list(leaves.values()), create_graph=True)

    found = slopes(None)
    expected = slopes("torch")
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    with pytest.raises(UsageError, match="no gradients of their own"):
        torch.autograd.grad(sum((one**2).sum() for one in found), list(leaves.values()))
    assert all(
        one.isfinite().all()
        for one in torch.autograd.grad(sum((one**2).sum() for one in expected), list(leaves.values()))
    )


def test_what_experts_have_no_part_in_can_be_differentiated_twice() -> None:
    given = Problem.draw([2, 3], 16, 16, "silu", gated=True, biased=False, seed=0).torch(torch.float32)
    up, apart = given.pop("up").requires_grad_(), torch.ones(3, requires_grad=True)
    loss = expert_mlp(**given, up=up).sum() + (apart**3).sum()
    _, slope = torch.autograd.grad(loss, [up, apart], create_graph=True)
    (curve,) = torch.autograd.grad(slope.sum(), apart)
    torch.testing.assert_close(curve, 6 * apart.detach())


def test_functional_transforms_run_on_torch() -> None:
    given = Problem.draw([2, 3], 8, 8, "silu", gated=True, biased=False, seed=0).torch(torch.float32)
    values = given.pop("values")
    derivative = torch.func.grad(lambda x: expert_mlp(x, **given).sum())(values)
    leaf = values.clone().requires_grad_()
    expert_mlp(leaf, **given).sum().backward()
    torch.testing.assert_close(derivative, leaf.grad)


def test_infinity_and_nan_stay_in_their_entry() -> None:
    given = Problem.draw([3], 16, 16, "relu", gated=False, biased=False, seed=0).torch(torch.float32)
    clean = expert_mlp(**given)
    given["values"][1, 3] = np.nan
    result = expert_mlp(**given)
    assert result[1].isnan().all()
    assert torch.equal(result[[0, 2]], clean[[0, 2]])

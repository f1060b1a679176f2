from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch

from moe.routing.balance import BiasBalance
from moe.routing.catalogue import ROUTERS, build_router, router_class, router_options
from moe.routing.router import Router, Routing, Tokens, capacity_of, require_causal
from runtime.combine import combine
from runtime.dispatch import dispatch
from runtime.errors import InputError, UsageError
from runtime.meter import ActivityMeter

WIDTH, EXPERTS, TOKENS = 6, 4, 13

REQUIRED: dict[str, dict[str, Any]] = {
    "hash": {"vocabulary_size": 20},
    "switch_and_mixture": {"num_groups": 2},
    "task_aware": {"num_tasks": 3},
}
CASES = [(name, REQUIRED.get(name, {})) for name in sorted(ROUTERS)] + [
    ("top_k", {"scoring": "sigmoid", "balance_rate": 0.01}),
    ("top_k", {"scoring": "softmax_of_selected", "capacity_factor": 1.0}),
    ("top_k", {"sparse_mixer": 0.1, "renormalise": False}),
    ("switch", {"sparse_mixer": 0.1}),
    ("expert_choice", {"per_sequence": True}),
    ("threshold", {"renormalise": True}),
    ("task_aware", {"num_tasks": 3, "task_only": True}),
    ("switch_and_mixture", {"num_groups": 2, "renormalise": True}),
]
every_router = pytest.mark.parametrize(("name", "options"), CASES)


def batch(tokens: int = TOKENS, dtype: torch.dtype = torch.float32) -> Tokens:
    generator = torch.Generator().manual_seed(1)
    return Tokens(
        torch.randn(TOKENS, WIDTH, generator=generator)[:tokens].to(dtype),
        sequences=torch.arange(tokens) // 5,
        ids=torch.arange(tokens) % 20,
        tasks=torch.arange(tokens) % 3,
    )


def route(router: Router, tokens: Tokens) -> Routing:
    torch.manual_seed(7)
    routing: Routing = router(tokens)
    return routing


@every_router
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("tokens", [0, 1, TOKENS])
def test_gates_fit_the_tokens_the_runtime_and_the_meter(
    name: str, options: dict[str, Any], training: bool, tokens: int
) -> None:
    router = build_router(name, WIDTH, EXPERTS, **options).train(training)
    routing = route(router, batch(tokens))
    gates = routing.gates
    assert (gates.num_rows, gates.num_units) == (tokens, EXPERTS)
    assert (gates.units.dtype, gates.weights.dtype) == (torch.int32, torch.float32)
    assert routing.scores.shape == (tokens, EXPERTS)
    assert routing.scores.dtype == torch.float32
    assert routing.losses
    assert all(loss.shape == () and bool(loss.isfinite()) for loss in routing.losses.values())
    meter = ActivityMeter(EXPERTS)
    meter.update(gates)
    report = meter.report()
    assert (report.rows, report.units) == (tokens, EXPERTS)
    assert meter.load.sum() == gates.nnz
    routed = dispatch(gates, routing.capacity)
    assert combine(torch.ones(len(routed.rows), 2), routed).shape == (tokens, 2)
    coalesced = gates.coalesce()
    assert coalesced.nnz == gates.nnz  # no token has one expert twice


@every_router
def test_routers_compute_in_float32_also_under_autocast_and_for_bfloat16(
    name: str, options: dict[str, Any]
) -> None:
    router = build_router(name, WIDTH, EXPERTS, **options)
    tokens = batch(dtype=torch.bfloat16)
    exact = Tokens(tokens.hidden.float(), tokens.sequences, tokens.ids, tokens.tasks)
    expected = route(router, exact)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under_autocast = route(router, exact)
    for routing in (route(router, tokens), under_autocast):
        assert routing.gates.units.tolist() == expected.gates.units.tolist()
        assert routing.gates.weights.tolist() == expected.gates.weights.tolist()
        assert routing.scores.dtype == torch.float32
        assert {n: loss.item() for n, loss in routing.losses.items()} == {
            n: loss.item() for n, loss in expected.losses.items()
        }


@every_router
def test_a_router_that_was_converted_to_bfloat16_still_answers_in_float32(
    name: str, options: dict[str, Any]
) -> None:
    router = build_router(name, WIDTH, EXPERTS, **options).bfloat16()
    routing = route(router, batch(dtype=torch.bfloat16))
    assert routing.gates.weights.dtype == routing.scores.dtype == torch.float32


@every_router
def test_gradients_reach_every_parameter_through_the_weights(name: str, options: dict[str, Any]) -> None:
    router = build_router(name, WIDTH, EXPERTS, **options)
    if name == "hash":
        assert not list(router.parameters())
        return
    weights = route(router, batch()).gates.weights
    (weights * torch.arange(1.0, 1 + len(weights))).sum().backward()
    for parameter, tensor in router.named_parameters():
        assert tensor.grad is not None, parameter
        assert tensor.grad.abs().sum() > 0, parameter


@every_router
def test_losses_teach_the_router(name: str, options: dict[str, Any]) -> None:
    router = build_router(name, WIDTH, EXPERTS, **options)
    losses = route(router, batch()).losses
    if name != "hash":
        torch.stack(list(losses.values())).sum().backward()
        assert all(tensor.grad is not None for tensor in router.parameters())


@every_router
def test_evaluation_is_the_same_every_time_and_after_save_and_load(
    name: str, options: dict[str, Any]
) -> None:
    router = build_router(name, WIDTH, EXPERTS, **options).eval()
    torch.manual_seed(99)
    other = build_router(name, WIDTH, EXPERTS, **options).eval()
    other.load_state_dict(router.state_dict())
    first, second = router(batch()), other(batch())
    assert first.gates.units.tolist() == second.gates.units.tolist()
    assert first.gates.weights.tolist() == second.gates.weights.tolist()


@every_router
def test_what_a_causal_router_decides_does_not_depend_on_later_tokens(
    name: str, options: dict[str, Any]
) -> None:
    router = build_router(name, WIDTH, EXPERTS, **options).eval()
    whole, part = router(batch(TOKENS)).gates.to_dense(), router(batch(7)).gates.to_dense()
    if router.is_causal:
        torch.testing.assert_close(whole[:7], part)
        require_causal(router)
    else:
        with pytest.raises(UsageError, match="later tokens included, which a decoder does not have"):
            require_causal(router)


def test_exactly_those_that_look_ahead_are_not_causal() -> None:
    not_causal = {name for name in ROUTERS if not router_class(name).is_causal}
    assert not_causal == {"expert_choice", "per_sequence"}
    assert all(router_class(name).looks_ahead for name in not_causal)


@every_router
def test_one_expert_takes_everything(name: str, options: dict[str, Any]) -> None:
    options = options | ({"num_groups": 1} if "num_groups" in options else {})
    options = options | ({"top_k": 1} if "top_k" in router_options(name) else {})
    gates = route(build_router(name, WIDTH, 1, **options), batch()).gates
    assert gates.units.tolist() == [0] * TOKENS


@pytest.mark.parametrize(("name", "options"), [case for case in CASES if case[0] != "hash"])
def test_hidden_states_that_are_nan_are_an_input_error(name: str, options: dict[str, Any]) -> None:
    if options.get("task_only"):
        return
    router = build_router(name, WIDTH, EXPERTS, **options)
    tokens = batch()
    tokens.hidden[2, 1] = torch.nan
    with pytest.raises(InputError, match="NaN"):
        router(tokens)


@every_router
def test_hidden_states_of_another_width_are_a_usage_error(name: str, options: dict[str, Any]) -> None:
    router = build_router(name, WIDTH + 1, EXPERTS, **options)
    with pytest.raises(UsageError, match=r"hidden states are \(13, 6\), but the router takes \[tokens, 7\]"):
        router(batch())


@pytest.mark.parametrize(
    ("name", "field"), [("hash", "ids"), ("task_aware", "tasks"), ("per_sequence", "sequences")]
)
def test_what_a_router_decides_by_must_be_there(name: str, field: str) -> None:
    router = build_router(name, WIDTH, EXPERTS, **REQUIRED.get(name, {}))
    hidden = batch().hidden
    with pytest.raises(UsageError, match=rf"needs Tokens\.{field}"):
        router(Tokens(hidden))
    with pytest.raises(UsageError, match=rf"Tokens\.{field} is \(2,\), but there are 13"):
        router(Tokens(hidden, **{field: torch.zeros(2, dtype=torch.int64)}))


@pytest.mark.parametrize(("name", "field"), [("hash", "ids"), ("task_aware", "tasks")])
@pytest.mark.parametrize("bad", [-1, 20])
def test_ids_and_tasks_outside_their_table_are_usage_errors(name: str, field: str, bad: int) -> None:
    router = build_router(name, WIDTH, EXPERTS, **REQUIRED[name])
    with pytest.raises(UsageError, match="run from"):
        router(Tokens(batch(2).hidden, **{field: torch.tensor([0, bad])}))


def test_an_unknown_router_is_answered_with_the_known_ones() -> None:
    with pytest.raises(UsageError, match=r"no router 'topk'; there are activation_gate, base, .*, top_k"):
        build_router("topk", WIDTH, EXPERTS)


def test_an_unknown_or_missing_option_is_named() -> None:
    with pytest.raises(UsageError, match=r"'switch' has no option 'top_k'; it has capacity_factor, jitter"):
        build_router("switch", WIDTH, EXPERTS, top_k=2)
    with pytest.raises(UsageError, match="'base' has no option 'k'; it has none"):
        build_router("base", WIDTH, EXPERTS, k=2)
    with pytest.raises(UsageError, match="'hash' needs the option vocabulary_size"):
        build_router("hash", WIDTH, EXPERTS)


@pytest.mark.parametrize("name", [name for name in ROUTERS if "top_k" in router_options(name)])
@pytest.mark.parametrize("top_k", [0, 5, 2.0, True])
def test_more_experts_per_token_than_there_are_is_a_usage_error(name: str, top_k: Any) -> None:
    with pytest.raises(UsageError, match=r"top_k is .*, but a token can go to 1 to"):
        build_router(name, WIDTH, EXPERTS, **REQUIRED.get(name, {}), top_k=top_k)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("activation_gate", {"start": 0.0}),
        ("activation_gate", {"threshold": -0.1}),
        ("dense_to_sparse", {"decay": "cubic"}),
        ("dense_to_sparse", {"steps": 0}),
        ("dense_to_sparse", {"threshold": 0.25}),
        ("expert_choice", {"capacity_factor": None}),
        ("expert_choice", {"capacity_factor": 0.0}),
        ("hash", {"vocabulary_size": 0}),
        ("hash", {"vocabulary_size": 3, "frequencies": [1.0]}),
        ("hash", {"vocabulary_size": 1, "frequencies": [-1.0]}),
        ("switch", {"jitter": 1.0}),
        ("switch", {"capacity_factor": float("nan")}),
        ("switch", {"sparse_mixer": 0.0}),
        ("switch_and_mixture", {"num_groups": 3}),
        ("switch_and_mixture", {"num_groups": 2, "top_k": 3}),
        ("task_aware", {"num_tasks": 0}),
        ("threshold", {"threshold": 0.0}),
        ("threshold", {"threshold": 1.5}),
        ("top_k", {"balance_rate": 0.0}),
        ("top_k", {"scoring": "relu"}),
        ("top_k", {"scoring": "softmax_of_selected", "renormalise": False}),
        ("top_k", {"sparse_mixer": 0.1}),
    ],
)
def test_impossible_options_are_usage_errors(name: str, options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        build_router(name, WIDTH, EXPERTS, **options)


@pytest.mark.parametrize(("width", "num_experts"), [(0, 2), (4, 0), (4, 2.0), (4, True)])
def test_sizes_must_be_whole_numbers_of_one_or_more(width: Any, num_experts: Any) -> None:
    with pytest.raises(UsageError, match="whole number of 1 or more"):
        build_router("top_k", width, num_experts, top_k=1)


def test_the_catalogue_lists_options_with_their_defaults() -> None:
    assert router_options("switch") == {"capacity_factor": 1.25, "jitter": 0.01, "sparse_mixer": None}
    assert router_options("hash")["vocabulary_size"] is inspect.Parameter.empty


def test_capacity_is_the_even_share_times_the_factor_rounded_up() -> None:
    assert [capacity_of(1.0, entries, 4) for entries in (0, 1, 4, 5, 8)] == [0, 1, 1, 2, 2]
    assert capacity_of(1.1, 10, 11) == 1
    assert capacity_of(None, 10, 4) is None


def test_routers_can_be_made_without_memory_and_filled_later() -> None:
    with torch.device("meta"):
        router = build_router("top_k", WIDTH, EXPERTS, balance_rate=0.01)
    filled = router.to_empty(device="cpu")
    assert isinstance(filled.balance, BiasBalance)
    assert filled.balance.bias.dtype == torch.float32

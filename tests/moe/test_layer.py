from __future__ import annotations

import pytest
import torch

from moe.experts import Experts
from moe.layer import MoELayer
from moe.routing.per_sequence import PerSequenceRouter
from moe.routing.router import Router, Routing, Tokens
from runtime.activations import SparseActivations
from runtime.errors import UsageError
from runtime.meter import ActivityMeter


class BestTwo(Router):
    """The two highest of a softmax, and a capacity."""

    def __init__(self, num_experts: int, width: int, capacity: int | None = None) -> None:
        super().__init__(num_experts, width)
        self.linear = torch.nn.Linear(width, num_experts, bias=False)
        self.capacity = capacity
        self.seen: Tokens | None = None

    def route(self, tokens: Tokens) -> Routing:
        self.seen = tokens
        scores = torch.nn.functional.linear(tokens.hidden.float(), self.linear.weight.float()).softmax(1)
        weights, units = scores.topk(2, dim=1)
        gates = SparseActivations.from_topk(units, weights, self.num_experts)
        return Routing(gates, scores, {"z": scores.sum()}, self.capacity)


class SeesAll(BestTwo):
    is_causal = False


def layer_of(router: type[BestTwo] = BestTwo, capacity: int | None = None) -> MoELayer:
    torch.manual_seed(0)
    return MoELayer(router(4, 6, capacity), Experts(4, 6, 8, initializer_range=0.5))


def test_a_batch_is_a_row_of_tokens() -> None:
    layer, hidden = layer_of(), torch.randn(2, 3, 6)
    output, routing = layer(hidden)
    assert output.shape == hidden.shape
    assert routing.gates.num_rows == 6
    one_by_one = [layer(token)[0] for token in hidden.reshape(6, 6)]
    torch.testing.assert_close(output, torch.stack(one_by_one).reshape(2, 3, 6))


def test_router_gets_what_it_may_need() -> None:
    layer, hidden = layer_of(), torch.randn(2, 3, 6)
    ones = torch.ones(2, 3, dtype=torch.int64)
    layer(hidden, ids=torch.arange(6).reshape(2, 3), tasks=ones, classes=2 * ones)
    seen = layer.router.seen
    assert isinstance(seen, Tokens)
    assert seen.hidden.shape == (6, 6)
    fields = [seen.sequences, seen.ids, seen.tasks, seen.classes]
    assert [None if field is None else field.tolist() for field in fields] == [
        [0, 0, 0, 1, 1, 1],
        [0, 1, 2, 3, 4, 5],
        [1] * 6,
        [2] * 6,
    ]
    layer(hidden.reshape(6, 6), sequences=torch.zeros(6, dtype=torch.int64))
    assert layer.router.seen is not None
    assert layer.router.seen.sequences is not None


def test_the_super_class_loss_is_reached_through_the_layer() -> None:
    layer = MoELayer(PerSequenceRouter(6, 4), Experts(4, 6, 8))
    classes = torch.tensor([[2] * 3, [-100] * 3])
    losses = layer(torch.randn(2, 3, 6), classes=classes)[1].losses
    assert losses["super_class"] > 0


def test_tokens_beyond_the_capacity_get_nothing() -> None:
    layer = layer_of(capacity=1)
    output, _ = layer(torch.randn(1, 6).expand(3, 6))
    assert output[0].count_nonzero() == 6
    assert output[1:].count_nonzero() == 0


def test_gradients_reach_router_and_experts() -> None:
    layer, hidden = layer_of(), torch.randn(3, 6, requires_grad=True)
    output, routing = layer(hidden)
    (output.square().sum() + routing.losses["z"]).backward()
    for tensor in (hidden, *layer.parameters()):
        assert tensor.grad is not None
        assert tensor.grad.abs().sum() > 0


def test_the_router_stays_in_float32() -> None:
    output, routing = layer_of().bfloat16()(torch.randn(3, 6).bfloat16())
    assert output.dtype == torch.bfloat16
    assert routing.scores.dtype == torch.float32


def test_a_meter_counts_the_experts_of_each_batch() -> None:
    layer = layer_of()
    layer.meter = ActivityMeter(4)
    layer(torch.randn(5, 6))
    layer(torch.randn(2, 6))
    report = layer.meter.report()
    assert (report.rows, report.mean_units_per_row) == (7, 2)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(UsageError, match="knows 4 experts, but there are 3"):
        MoELayer(BestTwo(4, 6), Experts(3, 6, 8))
    with pytest.raises(UsageError, match="width 6, but experts of 5"):
        MoELayer(BestTwo(4, 6), Experts(4, 5, 8))


def test_a_router_that_sees_later_tokens_has_no_place_in_a_decoder() -> None:
    experts = Experts(4, 6, 8)
    MoELayer(SeesAll(4, 6), experts)
    with pytest.raises(UsageError, match="SeesAll looks at later tokens"):
        MoELayer(SeesAll(4, 6), experts, causal=True)


def test_compiled_models_run_the_layer_between_their_parts() -> None:
    torch.compiler.reset()
    model = layer_of()
    hidden = torch.randn(3, 6, requires_grad=True)

    def loss(hidden: torch.Tensor) -> torch.Tensor:
        output, routing = model(2 * hidden)
        return output.square().sum() + routing.losses["z"]

    expected = torch.autograd.grad(loss(hidden), [hidden, *model.parameters()])
    compiled = torch.compile(loss, backend="aot_eager")
    ours = torch.autograd.grad(compiled(hidden), [hidden, *model.parameters()])
    torch.testing.assert_close(ours, expected)
    torch.compiler.reset()
    with pytest.raises(torch._dynamo.exc.Unsupported, match="how many tokens an expert has"):
        torch.compile(loss, backend="aot_eager", fullgraph=True)(hidden)

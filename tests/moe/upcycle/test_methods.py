"""The methods on one block, against what they say they do."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")

from moe.upcycle.methods.catalogue import method_of  # noqa: E402
from moe.upcycle.plan import UpcyclePlan  # noqa: E402
from moe.upcycle.router_init.gates import gate_rows  # noqa: E402
from runtime.errors import UsageError  # noqa: E402

WIDTH, INNER = 6, 12


@pytest.fixture
def block() -> dict[str, Any]:
    draw = torch.Generator().manual_seed(3)
    shapes = {
        "gate": (INNER, WIDTH),
        "up": (INNER, WIDTH),
        "down": (WIDTH, INNER),
        "gate_bias": (INNER,),
        "up_bias": (INNER,),
        "down_bias": (WIDTH,),
    }
    return {name: torch.randn(shape, generator=draw) for name, shape in shapes.items()}


def output(block: dict[str, Any], hidden: Any) -> Any:
    gate = torch.nn.functional.silu(hidden @ block["gate"].T + block["gate_bias"])
    return (gate * (hidden @ block["up"].T + block["up_bias"])) @ block["down"].T + block["down_bias"]


def test_drop_redraws_the_same_neurons_in_gate_up_and_down(block: dict[str, Any]) -> None:
    method = method_of(UpcyclePlan(experts=3, method="drop", drop=0.25))
    changed_in = []
    for expert in range(3):
        made = method.expert(block, 0, expert)
        changed = {
            name: (made[name] != block[name]).any(1 if name in ("gate", "up") else 0)
            for name in ("gate", "up", "down")
        }
        assert changed["gate"].sum() == 3  # a quarter of 12
        assert torch.equal(changed["gate"], changed["up"])
        assert torch.equal(changed["gate"], changed["down"])
        assert torch.equal(made["gate"][~changed["gate"]], block["gate"][~changed["gate"]])
        assert torch.equal(made["down_bias"], block["down_bias"])
        changed_in.append(changed["gate"].tolist())
    assert len(set(map(tuple, changed_in))) > 1


def test_drop_draws_from_the_mean_and_deviation_of_what_it_replaces() -> None:
    wide = {
        "up": torch.randn(64, 2048, generator=torch.Generator().manual_seed(0)) * 3 + 5,
        "down": torch.zeros(2048, 64),
    }
    made = method_of(UpcyclePlan(method="drop", drop=1.0)).expert(wide, 0, 0)
    assert float(made["up"].mean()) == pytest.approx(5, abs=0.05)
    assert float(made["up"].std()) == pytest.approx(3, abs=0.05)
    assert not bool(made["down"].any())
    assert not bool((made["up"] == wide["up"]).any())


def test_noise_is_a_share_of_the_deviation_of_each_weight(block: dict[str, Any]) -> None:
    wide = {"up": block["up"].repeat(50, 50) * 4, "down": block["down"].repeat(50, 50)}
    made = method_of(UpcyclePlan(method="noise", noise=0.1)).expert(wide, 0, 0)
    for name in ("up", "down"):
        assert float((made[name] - wide[name]).std() / wide[name].std()) == pytest.approx(0.1, rel=0.02)


@pytest.mark.parametrize("granularity", [2, 3, 4])
def test_the_experts_of_a_virtual_group_average_to_the_block(granularity: int, block: dict[str, Any]) -> None:
    plan = UpcyclePlan(experts=2 * granularity, method="granular", granularity=granularity)
    method = method_of(plan)
    hidden = torch.randn(5, WIDTH, generator=torch.Generator().manual_seed(1))
    for group in range(2):
        experts = [method.expert(block, 0, group * granularity + place) for place in range(granularity)]
        mean = torch.stack([output(dict(expert), hidden) for expert in experts]).mean(0)
        torch.testing.assert_close(mean, output(block, hidden))
    rows = torch.arange(2.0)[:, None].expand(2, WIDTH)
    assert method.router(rows)[:, 0].tolist() == [0] * granularity + [1] * granularity


@pytest.mark.parametrize("split_by", ["clusters", "contiguous"])
def test_the_experts_of_a_split_block_have_each_neuron_once(split_by: Any, block: dict[str, Any]) -> None:
    method = method_of(UpcyclePlan(experts=4, top_k=4, method="split", split_by=split_by))
    arranged = method.arrange(block, 0)
    experts = [method.expert(arranged, 0, expert) for expert in range(4)]
    rows = torch.cat([expert["gate"] for expert in experts])
    assert sorted(rows.tolist()) == sorted(block["gate"].tolist())
    hidden = torch.randn(5, WIDTH, generator=torch.Generator().manual_seed(1))
    mean = torch.stack([output(dict(expert), hidden) for expert in experts]).mean(0)
    torch.testing.assert_close(mean, output(block, hidden))
    assert not bool(method.router(gate_rows(arranged, 4)).any())


def test_the_router_of_a_split_block_sends_tokens_to_the_neurons_that_they_light_up() -> None:
    directions = torch.eye(8)[:4] * 3
    gates = directions.repeat(3, 1)  # neurons of four kinds, shuffled
    block = {"gate": gates, "up": torch.ones(12, 8), "down": torch.ones(8, 12)}
    method = method_of(UpcyclePlan(experts=4, top_k=1, method="split"))
    arranged = method.arrange(block, 0)
    router = method.router(gate_rows(arranged, 4))
    for direction in directions:
        chosen = int((router @ direction).argmax())
        assert torch.equal(method.expert(arranged, 0, chosen)["gate"], direction.expand(3, 8))
    gates_of_token = (router @ directions.T).softmax(0)
    assert float((gates_of_token - 0.25).abs().max()) < 1e-3


def test_slices_that_do_not_divide_are_refused() -> None:
    method = method_of(UpcyclePlan(experts=10, method="granular", granularity=5))
    with pytest.raises(
        UsageError, match=r"12 neurons .* 5 equal slices; choose a granularity from 2, 3, 4, 6"
    ):
        method.expert_width(12)
    with pytest.raises(UsageError, match=r"8 experts do not divide into groups of 3 .* such as 9"):
        method_of(UpcyclePlan(experts=8, method="granular", granularity=3))
    with pytest.raises(UsageError, match=r"cannot be cut into 8 equal slices; choose a number of experts"):
        method_of(UpcyclePlan(experts=8, method="split")).expert_width(12)

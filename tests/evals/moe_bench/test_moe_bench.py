from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

pytest.importorskip("transformers")
pytest.importorskip("numba")

from evals.moe_bench.comparison import AS_IT_COMES, Case, Found, Result, Timing, compare_layers
from evals.moe_bench.layer import OURS, PEERS, QUANTISED, Layer
from evals.moe_bench.machine import Machine, OtherWork
from runtime.errors import UsageError

SMALL = {"width": 32, "inner": 64}


@pytest.fixture(scope="module")
def found() -> Found:
    cases = [Case(2, 4, 2, dtype) for dtype in ("float32", "bfloat16")]
    return compare_layers(cases, rounds=2, machine=Machine(buffer_bytes=1 << 16), **SMALL)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_all_executions_give_the_same_output(dtype: torch.dtype) -> None:
    layer = Layer(4, 2, 32, 64, dtype)
    batch = layer.draw(5, seed=0)
    with torch.inference_mode():
        expected = layer.run("eager", *batch).float()
        tolerance = 1e-5 if dtype == torch.float32 else 3e-2
        for name in (OURS, *PEERS):
            torch.testing.assert_close(
                layer.run(name, *batch).float(), expected, rtol=tolerance, atol=tolerance
            )
        for name in QUANTISED:
            lost = (layer.run(name, *batch).float() - expected).norm() / expected.norm()
            assert lost < (0.03 if name == "int8" else 0.25)


def test_a_draw_names_distinct_experts_whose_weights_sum_to_one() -> None:
    hidden, experts, weights = Layer(6, 3, 32, 64, torch.float32).draw(7, seed=0)
    assert hidden.shape == (7, 32)
    assert all(len(set(row)) == 3 for row in experts.tolist())
    torch.testing.assert_close(weights.sum(1), torch.ones(7))


def test_everything_is_measured_in_every_round(found: Found) -> None:
    for result in found.results:
        ours = result.timing(OURS)
        assert ours is not None
        assert len(ours.seconds) == 2
        assert ours.bytes > 0
        assert result.best_peer(AS_IT_COMES) is not None
        assert result.bandwidth > 0
        assert result.operations > 0
        assert 0 < (result.routing_share or 0) < 1
    halves, singles = found.results
    assert {timing.name for timing in halves.timings} >= {OURS, *QUANTISED}
    assert singles.best_peer("medium") is not None


def test_a_ratio_is_the_best_peers_time_over_ours() -> None:
    result = Result(Case(1, 8, 2, "float32"))
    for name, seconds in (
        (OURS, 2.0),
        ("eager/medium", 5.0),
        ("grouped_mm/medium", 3.0),
        ("eager/highest", 8.0),
    ):
        result.timings.append(Timing(name, [seconds] * 3))
    assert result.ratio("medium") == 1.5
    assert result.ratio(AS_IT_COMES) == 4.0
    other = Result(Case(1, 8, 2, "bfloat16"), [Timing(OURS, [1.0]), Timing("eager/highest", [6.0])])
    whole = Found(1, 1, 1, 1, [result, other])
    assert whole.geometric_mean() == pytest.approx(3.0)
    assert whole.geometric_mean(as_it_comes=True) == pytest.approx(24**0.5)


def test_what_would_not_fit_into_memory_is_left_out_with_its_size() -> None:
    layer = Layer(2, 1, 1024, 512, torch.float32)
    assert layer.gathered_bytes(3) == 3 * 1024 * 1024 * 4
    assert layer.operations(3) == 2 * 3 * 3 * 1024 * 512
    assert layer.bytes_read(torch.tensor([[1], [1]]), OURS) == 3 * 1024 * 512 * 4


def test_other_work_is_a_share() -> None:
    share = OtherWork().share()
    assert share is None or 0 <= share <= 1


def test_the_command_prints_tables_json_and_a_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from lexpert import app

    options = ["bench", "moe", "--tokens", "1", "--experts", "4/2", "--dtypes", "bfloat16", "--rounds", "1"]
    options += ["--width", "32", "--inner", "32", "--threads", "1"]
    run = CliRunner().invoke(app, [*options, "--plot", str(tmp_path / "out.png")], catch_exceptions=False)
    assert "geometric mean" in run.output
    assert (tmp_path / "out.png").read_bytes()[:4] == b"\x89PNG"
    run = CliRunner().invoke(app, [*options, "--json"], catch_exceptions=False)
    parsed = json.loads(run.stdout)
    assert parsed["threads"] == 1
    assert parsed["results"][0]["timings"][0]["name"] == OURS


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (["--experts", "8"], "takes E/K such as 64/8"),
        (["--experts", "4/8"], "cannot go to 8 of 4 experts"),
        (["--tokens", "1,x"], "--tokens has 'x'"),
        (["--dtypes", "float16"], "choose from float32, bfloat16"),
        (["--model", "folder"], "--model and --text belong together"),
        (["--text", "file"], "--model and --text belong together"),
        (["--rounds", "0"], "--rounds must be at least 1"),
    ],
)
def test_options_that_cannot_be_honoured_say_why(option: list[str], message: str) -> None:
    from lexpert import app

    run = CliRunner().invoke(app, ["bench", "moe", *option])
    assert isinstance(run.exception, UsageError)
    assert message in str(run.exception)

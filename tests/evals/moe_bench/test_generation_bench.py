from __future__ import annotations

import json

import pytest
import typer
from typer.testing import CliRunner

from evals.moe_bench.cli import bench_generate_concurrent, bench_moe_generate
from runtime.errors import UsageError

app = typer.Typer()
app.command()(bench_moe_generate)
concurrent = typer.Typer()
concurrent.command()(bench_generate_concurrent)

TINY = [
    *("--layers", "2", "--width", "64", "--inner", "16", "--experts", "4/2", "--vocabulary", "64"),
    *("--prompt", "3", "--tokens", "4", "--rounds", "2", "--threads", "1"),
]


def test_all_generate_from_the_same_weights() -> None:
    pytest.importorskip("transformers")
    run = CliRunner().invoke(app, [*TINY, "--dtype", "float32", "--json"], catch_exceptions=False)
    found = json.loads(run.stdout)
    assert set(found["generations"]) == {"transformers", "transformers with our experts", "lexpert"}
    for generation in found["generations"].values():
        assert len(generation["prompt_s"]) == len(generation["total_s"]) == 2
        assert len(generation["token_s"]) == 2 * 3
        assert min(generation["token_s"] + generation["prompt_s"]) > 0
        assert len(generation["tokens"]) == 4
    assert found["same_tokens"] == 1
    assert set(found["ratios"]["transformers"].values()) == {1}


def test_the_table_names_all() -> None:
    pytest.importorskip("transformers")
    shown = CliRunner().invoke(app, TINY, catch_exceptions=False).stdout
    assert "4 experts of 16, 2 for each token; 3 tokens in, 4 out; 1 threads, 2 rounds" in shown
    rows = [line.strip().split("  ")[0] for line in shown.splitlines()]
    assert [row for row in rows if row in ("transformers", "transformers with our experts", "lexpert")] == [
        "transformers",
        "transformers with our experts",
        "lexpert",
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--width", "100"], "--width is 100"),
        (["--experts", "4/8"], "cannot go to 8 of 4"),
        (["--dtype", "int8"], "--dtype is 'int8'"),
        (["--tokens", "2"], "--tokens must be at least 3, got 2"),
        (["--threads", "0"], "--threads must be at least 1"),
    ],
)
def test_impossible_options_are_refused(options: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        CliRunner().invoke(app, options, catch_exceptions=False)


def test_many_clients_are_timed_beside_one() -> None:
    pytest.importorskip("transformers")
    options = [*TINY, "--clients", "3", "--requests", "2", "--prompt", "4"]
    run = CliRunner().invoke(concurrent, [*options, "--json"], catch_exceptions=False)
    found = json.loads(run.stdout)
    assert set(found["clients"]) == {"1", "3"}
    for clients, of in found["clients"].items():
        assert of["tokens"] >= 2 * 2 * 2 * int(clients)
        assert of["tokens_per_second"] > 0
        assert of["between_p99_s"] >= of["between_median_s"] > 0
    assert found["ratio"] > 0


def test_a_client_alone_is_no_crowd() -> None:
    done = CliRunner().invoke(concurrent, ["--clients", "1"])
    assert isinstance(done.exception, UsageError)

from __future__ import annotations

import io
import json
import re

import pytest
import typer
from rich.console import Console
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
        (["--width", "0"], "--width must be at least 64, got 0"),
        (["--vocabulary", "2"], "--vocabulary must be at least 3, got 2"),
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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--clients", "1"], "--clients must be at least 2, got 1"),
        (["--prompt", "1"], "--prompt must be at least 2, got 1"),
        (["--tokens", "3"], "--tokens must be at least 4, got 3"),
        (["--layers", "0"], "--layers must be at least 1, got 0"),
        (["--dtype", "int8"], "--dtype is 'int8'; choose from float32 and bfloat16"),
    ],
)
def test_impossible_loads_are_refused(options: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        CliRunner().invoke(concurrent, options, catch_exceptions=False)


def test_each_number_of_a_client_stands_under_its_heading() -> None:
    pytest.importorskip("torch")
    from evals.moe_bench.concurrent import Clients, Concurrency, Load
    from evals.moe_bench.generation import Shape
    from evals.moe_bench.generation_report import print_concurrency

    clients = {
        1: Clients(tokens=60, seconds=3, cpu_s=2, between_s=[0.01, 0.01, 0.04], first_s=[0.025]),
        3: Clients(tokens=180, seconds=3, cpu_s=4, between_s=[0.02, 0.02, 0.03], first_s=[0.075]),
    }
    found = Concurrency(Shape(), Load(), 64, "float32", 1, rounds=2, clients=clients, others=None)
    written = io.StringIO()
    print_concurrency(found, Console(file=written, width=200))
    lines = [line.strip() for line in written.getvalue().splitlines()]
    table = [re.split(r"  +", line) for line in lines if "  " in line]
    assert table == [
        [
            *("clients", "tokens/s", "×", "a processor second", "×", "between tokens ms", "99 %"),
            *("of the median", "first token ms"),
        ],
        ["1", "20.0", "1.00", "30.0", "1.00", "10.0", "40.0", "4.00", "25"],
        ["3", "60.0", "3.00", "45.0", "1.50", "20.0", "30.0", "1.50", "75"],
    ]

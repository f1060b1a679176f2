"""A comparison of generation as a table."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING

from evals.moe_bench.report import BUSY

if TYPE_CHECKING:
    from rich.console import Console

    from evals.moe_bench.concurrent import Concurrency
    from evals.moe_bench.generation import Comparison


def print_generation(found: Comparison, console: Console) -> None:
    """Print the time of the prompt, of a token and of all, and how they compare."""
    from rich import box
    from rich.table import Table

    shape = found.shape
    console.print(
        f"{found.parameters / 1e9:.2f} billion parameters in {found.dtype}: {shape.layers} layers of width "
        f"{shape.width}, {shape.num_experts} experts of {shape.inner}, {shape.top_k} for each token; "
        f"{found.prompt_tokens} tokens in, {found.new_tokens} out; {found.threads} threads, {found.rounds} rounds in "
        "turns",
        highlight=False,
    )
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    for heading in ("prompt ms", "×", "a token ms", "×", "tokens/s", "all s", "×"):
        table.add_column(heading, justify="right")
    for name, generation in found.generations.items():
        token = statistics.median(generation.token_s)
        table.add_row(
            name,
            f"{1e3 * statistics.median(generation.prompt_s):.0f}",
            f"{found.ratio(name, 'prompt_s'):.2f}",
            f"{1e3 * token:.1f}",
            f"{found.ratio(name, 'token_s'):.2f}",
            f"{1 / token:.1f}",
            f"{statistics.median(generation.total_s):.2f}",
            f"{found.ratio(name, 'total_s'):.2f}",
        )
    console.print(table)
    console.print(
        "medians; × is how many times as fast as transformers as it comes; the first "
        f"{found.same_tokens:.0%} of the tokens are the same (roundings differ)",
        highlight=False,
    )
    if found.others is not None and found.others > BUSY:
        console.print(
            f"other work had the cores for {found.others:.0%} of the time; measure on an idle machine",
            highlight=False,
        )


def print_concurrency(found: Concurrency, console: Console) -> None:
    """Print tokens a second and the time between tokens, by the number of clients."""
    from rich import box
    from rich.table import Table

    shape, load = found.shape, found.load
    console.print(
        f"{found.parameters / 1e6:.0f} million parameters in {found.dtype}: {shape.layers} layers of width "
        f"{shape.width}, {shape.num_experts} experts of {shape.inner}, {shape.top_k} for each token; {load.requests} "
        f"requests a client, of about {load.prompt_tokens} tokens in and {load.new_tokens} out; {found.threads} "
        f"threads, {found.rounds} rounds in turns",
        highlight=False,
    )
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in (
        "clients",
        "tokens/s",
        "×",
        "a processor second",
        "×",
        "between tokens ms",
        "99 %",
        "of the median",
        "first token ms",
    ):
        table.add_column(heading, justify="right")
    for number, of in found.clients.items():
        median, slow = statistics.median(of.between_s), of.between(0.99)
        table.add_row(
            str(number),
            f"{of.tokens_per_second:.1f}",
            f"{of.tokens_per_second / found.clients[1].tokens_per_second:.2f}",
            f"{of.tokens_per_cpu_second:.1f}",
            f"{of.tokens_per_cpu_second / found.clients[1].tokens_per_cpu_second:.2f}",
            f"{1e3 * median:.1f}",
            f"{1e3 * slow:.1f}",
            f"{slow / median:.2f}",
            f"{1e3 * statistics.median(of.first_s):.0f}",
        )
    console.print(table)
    if found.others is not None and found.others > BUSY:
        console.print(
            f"other work had the cores for {found.others:.0%} of the time; measure on an idle machine",
            highlight=False,
        )

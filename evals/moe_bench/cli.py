"""``lexpert bench moe``: layers of experts beside those of transformers."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from runtime.errors import UsageError

TOKENS = "1,4,16,64,256,2048"
EXPERTS = "8/2,64/8"
DTYPES = ("float32", "bfloat16")


def bench_moe(
    tokens: Annotated[str, typer.Option(help="Tokens of a batch, with commas between.")] = TOKENS,
    experts: Annotated[
        str, typer.Option(metavar="E/K,…", help="Experts, and how many a token goes to.")
    ] = EXPERTS,
    dtypes: Annotated[str, typer.Option(help="Of weights and hidden states.")] = ",".join(DTYPES),
    width: Annotated[int, typer.Option(help="Of hidden states.")] = 1024,
    inner: Annotated[int, typer.Option(help="Of one expert's hidden layer.")] = 2048,
    rounds: Annotated[int, typer.Option(help="How often each execution runs, after a first time.")] = 9,
    threads: Annotated[int | None, typer.Option(help="How many.  [default: one a core]")] = None,
    model: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="Decoder of experts whose perplexity at 8 and 4 bits is measured."
        ),
    ] = None,
    text: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Text for --model, or one compressed by gzip.")
    ] = None,
    max_tokens: Annotated[
        int, typer.Option(help="Tokens of --text, from its start; the time grows with them.")
    ] = 65_536,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON on standard output and nothing else.")
    ] = False,
    plot: Annotated[Path | None, typer.Option(metavar="OUT.png", help="Draw time by tokens.")] = None,
) -> None:
    """Layers of experts on our execution and on transformers' eager, batched_mm and grouped_mm, in turns.

    Each time is held against the least that this machine allows, by bandwidth and speed measured in between. Peers in
    float32 run at torch's precision settings medium and highest (as torch comes); ours does not depend on them.
    What weights of few bits cost, --model and --text tell: perplexity as it is, with 8 and with 4 bits.

    Examples:

        lexpert bench moe --plot experts.png

        lexpert bench moe --tokens 1,16 --experts 64/8 --dtypes bfloat16 --json

        lexpert bench moe --model upcycled --text sample.txt
    """
    if (model is None) != (text is None):
        raise UsageError("--model and --text belong together; give both, or neither")
    shapes = [_pair(text) for text in experts.split(",")]
    counts = [_number("--tokens", text) for text in tokens.split(",")]
    chosen = [name.strip() for name in dtypes.split(",")]
    for name in chosen:
        if name not in DTYPES:
            raise UsageError(f"--dtypes has {name!r}; choose from {', '.join(DTYPES)}")
    sizes = {"--width": width, "--inner": inner, "--rounds": rounds, "--threads": threads}
    if max_tokens < 2:
        raise UsageError(f"--max-tokens must be at least 2, got {max_tokens}")
    for option, value in sizes.items():
        if value is not None and value < 1:
            raise UsageError(f"{option} must be at least 1, got {value}")

    from evals.moe_bench.comparison import Case, compare_layers
    from evals.moe_bench.model_bits import measure_bits, print_bits
    from evals.moe_bench.threads import torch_threads

    cases = [Case(count, *shape, name) for name in chosen for shape in shapes for count in counts]
    with torch_threads(threads):
        # First, for a model or a text that cannot be read should not cost the time of the layers.
        bits = None if model is None or text is None else measure_bits(model, text, max_tokens)
        found = compare_layers(cases, width=width, inner=inner, rounds=rounds)
    if plot is not None:
        from evals.moe_bench.picture import plot_layers

        plot_layers(found, plot)
    if as_json:
        print(json.dumps({**found.to_json(), "perplexity": bits and bits.to_json()}))
        return
    from rich.console import Console

    from evals.moe_bench.report import print_layers

    console = Console(width=None if sys.stdout.isatty() else 200)
    print_layers(found, console)
    if bits is not None:
        print_bits(bits, console)
    if plot is not None:
        console.print(f"picture: {plot}", highlight=False)


def bench_moe_generate(
    prompt: Annotated[int, typer.Option(help="Tokens of the prompt.")] = 32,
    tokens: Annotated[int, typer.Option(help="Tokens to generate.")] = 32,
    rounds: Annotated[int, typer.Option(help="How often each runs, after a first time.")] = 5,
    layers: Annotated[int, typer.Option(help="Of the model.")] = 9,
    width: Annotated[int, typer.Option(help="Of hidden states, a multiple of 64.")] = 1024,
    inner: Annotated[int, typer.Option(help="Of one expert's hidden layer.")] = 512,
    experts: Annotated[
        str, typer.Option(metavar="E/K", help="Experts, and how many a token goes to.")
    ] = "64/8",
    vocabulary: Annotated[int, typer.Option(help="Of the model.")] = 50304,
    dtype: Annotated[str, typer.Option(help="bfloat16 or float32.", metavar="DTYPE")] = "bfloat16",
    threads: Annotated[int | None, typer.Option(help="How many.  [default: one a core]")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON on standard output and nothing else.")
    ] = False,
) -> None:
    """A random model shaped as OLMoE generates: transformers as it comes, with our experts, and all of ours, in turns.

    Examples:

        lexpert bench moe-generate

        lexpert bench moe-generate --prompt 256 --tokens 16 --json
    """
    for option, value, least in (
        ("--prompt", prompt, 1), ("--tokens", tokens, 3), ("--rounds", rounds, 1), ("--layers", layers, 1),
        ("--width", width, 64), ("--inner", inner, 1), ("--vocabulary", vocabulary, 3), ("--threads", threads, 1),
    ):  # fmt: skip
        if value is not None and value < least:
            raise UsageError(f"{option} must be at least {least}, got {value}")
    if width % 64:
        raise UsageError(f"--width is {width}, but must be a multiple of 64, the width of an attention head")
    if dtype not in ("bfloat16", "float32"):
        raise UsageError(f"--dtype is {dtype!r}; choose from bfloat16 and float32")
    num_experts, top_k = _pair(experts)

    import torch

    from evals.moe_bench.generation import Shape, compare_generation
    from evals.moe_bench.threads import torch_threads

    shape = Shape(layers, width, inner, num_experts, top_k, vocabulary)
    with torch_threads(threads):
        found = compare_generation(
            shape, prompt_tokens=prompt, new_tokens=tokens, rounds=rounds, dtype=getattr(torch, dtype)
        )
    if as_json:
        print(json.dumps(found.to_json()))
        return
    from rich.console import Console

    from evals.moe_bench.generation_report import print_generation

    print_generation(found, Console(width=None if sys.stdout.isatty() else 200))


def bench_generate_concurrent(
    clients: Annotated[int, typer.Option(help="That ask at once, beside one alone.")] = 16,
    requests: Annotated[int, typer.Option(help="Of each client, one after the other.")] = 2,
    prompt: Annotated[int, typer.Option(help="Tokens of a prompt, half as many more or fewer.")] = 64,
    tokens: Annotated[int, typer.Option(help="Tokens to generate, half as many more or fewer.")] = 48,
    rounds: Annotated[int, typer.Option(help="How often both run, after a first time.")] = 3,
    layers: Annotated[int, typer.Option(help="Of the model.")] = 16,
    width: Annotated[int, typer.Option(help="Of hidden states, a multiple of 64.")] = 256,
    inner: Annotated[int, typer.Option(help="Of one expert's hidden layer.")] = 128,
    experts: Annotated[
        str, typer.Option(metavar="E/K", help="Experts, and how many a token goes to.")
    ] = "64/8",
    vocabulary: Annotated[int, typer.Option(help="Of the model.")] = 50304,
    dtype: Annotated[str, typer.Option(help="bfloat16 or float32.", metavar="DTYPE")] = "float32",
    threads: Annotated[int | None, typer.Option(help="How many.  [default: one a core]")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON on standard output and nothing else.")
    ] = False,
) -> None:
    """An engine generates for many clients and for one, in turns, on a random model shaped as OLMoE.

    Examples:

        lexpert bench generate-concurrent

        lexpert bench generate-concurrent --clients 32 --prompt 256 --dtype bfloat16 --json
    """
    for option, value, least in (
        ("--clients", clients, 2), ("--requests", requests, 1), ("--prompt", prompt, 2), ("--tokens", tokens, 4),
        ("--rounds", rounds, 1), ("--layers", layers, 1), ("--width", width, 64), ("--inner", inner, 1),
        ("--vocabulary", vocabulary, 3), ("--threads", threads, 1),
    ):  # fmt: skip
        if value is not None and value < least:
            raise UsageError(f"{option} must be at least {least}, got {value}")
    if width % 64:
        raise UsageError(f"--width is {width}, but must be a multiple of 64, the width of an attention head")
    if dtype not in ("bfloat16", "float32"):
        raise UsageError(f"--dtype is {dtype!r}; choose from bfloat16 and float32")
    num_experts, top_k = _pair(experts)

    import torch

    from evals.moe_bench.concurrent import Load, compare_concurrency
    from evals.moe_bench.generation import Shape
    from evals.moe_bench.threads import torch_threads

    with torch_threads(threads):
        found = compare_concurrency(
            Shape(layers, width, inner, num_experts, top_k, vocabulary),
            Load(requests, prompt, tokens),
            clients=clients,
            rounds=rounds,
            dtype=getattr(torch, dtype),
        )
    if as_json:
        print(json.dumps(found.to_json()))
        return
    from rich.console import Console

    from evals.moe_bench.generation_report import print_concurrency

    print_concurrency(found, Console(width=None if sys.stdout.isatty() else 200))


def _pair(text: str) -> tuple[int, int]:
    num_experts, slash, top_k = text.partition("/")
    if not slash:
        raise UsageError(f"--experts has {text!r}, but takes E/K such as 64/8")
    pair = _number("--experts", num_experts), _number("--experts", top_k)
    if pair[1] > pair[0]:
        raise UsageError(f"--experts has {text!r}, but a token cannot go to {pair[1]} of {pair[0]} experts")
    return pair


def _number(option: str, text: str) -> int:
    if not text.strip().isdigit() or int(text) < 1:
        raise UsageError(f"{option} has {text!r}, but takes numbers from 1")
    return int(text)

"""``lexpert bench moe``: layers of experts beside those of transformers."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from runtime.errors import UsageError

if TYPE_CHECKING:
    import torch
    from rich.console import Console

    from evals.moe_bench.generation import Shape

TOKENS = "1,4,16,64,256,2048"
EXPERTS = "8/2,64/8"
DTYPES = ("float32", "bfloat16")

Layers = Annotated[int, typer.Option(help="Of the model.")]
Width = Annotated[int, typer.Option(help="Of hidden states, a multiple of 64.")]
Inner = Annotated[int, typer.Option(help="Of one expert's hidden layer.")]
Experts = Annotated[str, typer.Option(metavar="E/K", help="Experts, and how many a token goes to.")]
Vocabulary = Annotated[int, typer.Option(help="Of the model.")]
Dtype = Annotated[str, typer.Option(help="bfloat16 or float32.", metavar="DTYPE")]
Threads = Annotated[int | None, typer.Option(help="How many.  [default: one a core]")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on standard output and nothing else.")]


def bench_moe(
    tokens: Annotated[str, typer.Option(help="Tokens of a batch, with commas between.")] = TOKENS,
    experts: Annotated[
        str, typer.Option(metavar="E/K,…", help="Experts, and how many a token goes to.")
    ] = EXPERTS,
    dtypes: Annotated[str, typer.Option(help="Of weights and hidden states.")] = ",".join(DTYPES),
    width: Annotated[int, typer.Option(help="Of hidden states.")] = 1024,
    inner: Inner = 2048,
    rounds: Annotated[int, typer.Option(help="How often each execution runs, after a first time.")] = 9,
    threads: Threads = None,
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
    as_json: AsJson = False,
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
    _at_least(1, {"--width": width, "--inner": inner, "--rounds": rounds, "--threads": threads})
    _at_least(2, {"--max-tokens": max_tokens})

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
    from evals.moe_bench.report import print_layers

    console = _console()
    print_layers(found, console)
    if bits is not None:
        print_bits(bits, console)
    if plot is not None:
        console.print(f"picture: {plot}", highlight=False)


def bench_moe_generate(
    prompt: Annotated[int, typer.Option(help="Tokens of the prompt.")] = 32,
    tokens: Annotated[int, typer.Option(help="Tokens to generate.")] = 32,
    rounds: Annotated[int, typer.Option(help="How often each runs, after a first time.")] = 5,
    layers: Layers = 9,
    width: Width = 1024,
    inner: Inner = 512,
    experts: Experts = "64/8",
    vocabulary: Vocabulary = 50304,
    dtype: Dtype = "bfloat16",
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """A random model shaped as OLMoE generates: transformers as it comes, with our experts, and all of ours, in turns.

    Examples:

        lexpert bench moe-generate

        lexpert bench moe-generate --prompt 256 --tokens 16 --json
    """
    _at_least(1, {"--prompt": prompt, "--rounds": rounds, "--threads": threads})
    _at_least(3, {"--tokens": tokens})
    shape, of_dtype = _random_model(layers, width, inner, experts, vocabulary, dtype)

    from evals.moe_bench.generation import compare_generation
    from evals.moe_bench.threads import torch_threads

    with torch_threads(threads):
        found = compare_generation(
            shape, prompt_tokens=prompt, new_tokens=tokens, rounds=rounds, dtype=of_dtype
        )
    if as_json:
        print(json.dumps(found.to_json()))
        return
    from evals.moe_bench.generation_report import print_generation

    print_generation(found, _console())


def bench_generate_concurrent(
    clients: Annotated[int, typer.Option(help="That ask at once, beside one alone.")] = 16,
    requests: Annotated[int, typer.Option(help="Of each client, one after the other.")] = 2,
    prompt: Annotated[int, typer.Option(help="Tokens of a prompt, half as many more or fewer.")] = 64,
    tokens: Annotated[int, typer.Option(help="Tokens to generate, half as many more or fewer.")] = 48,
    rounds: Annotated[int, typer.Option(help="How often both run, after a first time.")] = 3,
    layers: Layers = 16,
    width: Width = 256,
    inner: Inner = 128,
    experts: Experts = "64/8",
    vocabulary: Vocabulary = 50304,
    dtype: Dtype = "float32",
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """An engine generates for many clients and for one, in turns, on a random model shaped as OLMoE.

    Examples:

        lexpert bench generate-concurrent

        lexpert bench generate-concurrent --clients 32 --prompt 256 --dtype bfloat16 --json
    """
    _at_least(1, {"--requests": requests, "--rounds": rounds, "--threads": threads})
    _at_least(2, {"--clients": clients, "--prompt": prompt})
    _at_least(4, {"--tokens": tokens})
    shape, of_dtype = _random_model(layers, width, inner, experts, vocabulary, dtype)

    from evals.moe_bench.concurrent import Load, compare_concurrency
    from evals.moe_bench.threads import torch_threads

    with torch_threads(threads):
        found = compare_concurrency(
            shape, Load(requests, prompt, tokens), clients=clients, rounds=rounds, dtype=of_dtype
        )
    if as_json:
        print(json.dumps(found.to_json()))
        return
    from evals.moe_bench.generation_report import print_concurrency

    print_concurrency(found, _console())


def _random_model(
    layers: int, width: int, inner: int, experts: str, vocabulary: int, dtype: str
) -> tuple[Shape, torch.dtype]:
    """The model that was asked for; its options are looked at before torch is imported.

    Raises:
        UsageError: there can be no such model.
    """
    _at_least(1, {"--layers": layers, "--inner": inner})
    _at_least(3, {"--vocabulary": vocabulary})
    _at_least(64, {"--width": width})
    if width % 64:
        raise UsageError(f"--width is {width}, but must be a multiple of 64, the width of an attention head")
    if dtype not in DTYPES:
        raise UsageError(f"--dtype is {dtype!r}; choose from {' and '.join(DTYPES)}")
    num_experts, top_k = _pair(experts)

    import torch

    from evals.moe_bench.generation import Shape

    return Shape(layers, width, inner, num_experts, top_k, vocabulary), getattr(torch, dtype)


def _at_least(least: int, options: Mapping[str, int | None]) -> None:
    """Refuse options that are given and smaller.

    Raises:
        UsageError: naming the first.
    """
    for option, value in options.items():
        if value is not None and value < least:
            raise UsageError(f"{option} must be at least {least}, got {value}")


def _console() -> Console:
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 200)


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

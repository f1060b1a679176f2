"""``lexpert eval lm``: perplexity of a decoder on a text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from runtime.errors import FormatError, UsageError


def lm_command(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="Folder of a decoder, dense or of experts.")],
    text: Annotated[
        Path,
        typer.Argument(
            metavar="TEXT", help="Text file, or one compressed by gzip; blank lines separate documents."
        ),
    ],
    context: Annotated[
        int | None,
        typer.Option(help="Tokens of a window.", show_default="the model's positions, at most 1024"),
    ] = None,
    stride: Annotated[
        int | None,
        typer.Option(help="Tokens from one window to the next.", show_default="context - 1: plain blocks"),
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option(help="Tokens of the text to read at most.", show_default="all")
    ] = None,
    bits: Annotated[
        int | None, typer.Option(help="Round the weights of experts to 8 or 4 bits first.", metavar="BITS")
    ] = None,
    dtype: Annotated[
        str, typer.Option(help="Of the weights: auto, bfloat16, float16 or float32.", metavar="DTYPE")
    ] = "float32",
    batch_size: Annotated[int, typer.Option(help="Windows that run through the model at once.")] = 8,
    device: Annotated[
        str | None, typer.Option(help="cpu or cuda.", show_default="cuda where there is a GPU")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON on standard output and nothing else.")
    ] = False,
) -> None:
    """Perplexity of a decoder on a text, per token and per byte.

    Windows of the context go over the text; each token is predicted once, with at least context - stride tokens
    before it. Plain blocks, the default, are cheapest; a stride of half the context is the usual sliding window.

    Examples:

        lexpert eval lm upcycled corpus.txt

        lexpert eval lm upcycled corpus.txt.gz --context 512 --stride 256 --max-tokens 100000 --json
    """
    for option, value in (
        ("--context", context), ("--stride", stride), ("--max-tokens", max_tokens), ("--batch-size", batch_size),
    ):  # fmt: skip
        if value is not None and value < 1:
            raise UsageError(f"{option} must be at least 1, got {value}")

    from evals.language_model import measure_perplexity, read_text
    from moe.language_model_folder import LanguageModelFolder

    loaded = LanguageModelFolder.load(model, dtype=dtype, device=device)
    if loaded.objective != "causal":
        raise FormatError(f"{model} is an encoder, which predicts no next token; give a decoder")
    if bits is not None:
        from moe.quantised_model import quantise_model

        quantise_model(loaded.model, bits=bits)
    ids, num_bytes = read_text(text, loaded.tokenizer, max_tokens)
    found = measure_perplexity(
        loaded.model,
        ids,
        num_bytes,
        context=context,
        stride=stride,
        batch_size=batch_size,
    )
    if as_json:
        values = {
            "model": str(model),
            "text": str(text),
            "perplexity": found.per_token,
            "perplexity_per_byte": found.per_byte,
            "bits_per_byte": found.bits_per_byte,
            "tokens": found.tokens,
            "bytes": found.num_bytes,
            "context": found.context,
            "least_context": found.least_context,
            "dtype": dtype,
            "bits": bits,
        }
        typer.echo(json.dumps(values))
        return
    typer.echo(
        f"perplexity {found.per_token:.4f} a token, {found.per_byte:.4f} a byte "
        f"({found.bits_per_byte:.4f} bits a byte)"
    )
    typer.echo(
        f"{found.tokens:,} tokens, {found.num_bytes:,} bytes; windows of {found.context} tokens, each token with "
        f"{found.least_context} or more before it"
    )

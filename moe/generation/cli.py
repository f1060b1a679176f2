"""``lexpert moe generate``: go on from a prompt."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from runtime.errors import UsageError


def generate_command(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="Folder of a decoder, dense or of experts.")],
    prompt: Annotated[
        str, typer.Argument(metavar="PROMPT", help="Text to go on from; - reads standard input.")
    ],
    max_tokens: Annotated[int, typer.Option(help="Tokens to generate at most.")] = 128,
    temperature: Annotated[
        float, typer.Option(help="0 takes the likeliest token each time; 1 samples as the model says.")
    ] = 0.0,
    top_k: Annotated[
        int | None, typer.Option(help="Sample from so many of the likeliest tokens.", show_default="all")
    ] = None,
    top_p: Annotated[
        float, typer.Option(help="Sample from the likeliest tokens that have this probability together.")
    ] = 1.0,
    seed: Annotated[int, typer.Option(help="The same seed gives the same text.")] = 0,
    stop: Annotated[
        list[str] | None, typer.Option(help="End before this text. Repeatable.", metavar="TEXT")
    ] = None,
    bits: Annotated[
        int | None, typer.Option(help="Round the weights of experts to 8 or 4 bits first.", metavar="BITS")
    ] = None,
    dtype: Annotated[
        str, typer.Option(help="Of the weights: auto, bfloat16, float16 or float32.", metavar="DTYPE")
    ] = "auto",
    device: Annotated[
        str | None, typer.Option(help="cpu or cuda.", show_default="cuda where there is a GPU")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON on standard output and nothing else.")
    ] = False,
) -> None:
    """Go on from a prompt with a decoder that transformers knows; experts are computed by lexpert.

    The text is shown as it comes, and on standard error how fast it came.

    Examples:

        lexpert moe generate stories "Once upon a time"

        lexpert moe generate stories "Once upon a time" --temperature 0.8 --top-p 0.9 --seed 7 --stop "The end"
    """
    if max_tokens < 1:
        raise UsageError(f"--max-tokens must be at least 1, got {max_tokens}")

    from moe.generation.decoder_folder import DecoderFolder
    from moe.generation.sampling import Sampling
    from moe.generation.text import generate_text
    from moe.seed import require_seed

    require_seed(seed)
    sampling = Sampling(temperature, top_k, top_p)
    text = sys.stdin.read() if prompt == "-" else prompt
    loaded = DecoderFolder.load(model, dtype=dtype, device=device)
    if bits is not None:
        from moe.quantised_model import quantise_model

        quantise_model(loaded.model, bits=bits)

    def show(piece: str) -> None:
        sys.stdout.write(piece)
        sys.stdout.flush()

    result = generate_text(
        loaded.model,
        loaded.tokenizer,
        text,
        max_tokens=max_tokens,
        sampling=sampling,
        seed=seed,
        stop=tuple(stop or ()),
        show=None if as_json else show,
    )
    if as_json:
        report = {
            "text": result.text,
            "finish": result.finish,
            "tokens": len(result.tokens),
            "prompt_tokens": result.prompt_tokens,
            "tokens_per_second": round(result.tokens_per_second, 2),
            "first_token_seconds": round(result.first_token_seconds, 4),
        }
        typer.echo(json.dumps(report, ensure_ascii=False))
        return
    typer.echo()
    typer.echo(
        f"{len(result.tokens)} tokens, {result.tokens_per_second:.1f} tokens/s after a prompt of "
        f"{result.prompt_tokens} in {result.first_token_seconds:.2f} s",
        err=True,
    )

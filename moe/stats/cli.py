"""``lexpert moe stats``: what a model's routers do on a text."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from runtime.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from moe.stats.statistics import RoutingStatistics


def stats_command(
    model: Annotated[
        Path, typer.Argument(metavar="MODEL", help="Folder of a decoder or encoder with experts.")
    ],
    text: Annotated[
        list[Path],
        typer.Option(
            help="Text file, or one compressed by gzip; blank lines separate documents. Repeatable.",
            metavar="FILE",
        ),
    ],
    max_tokens: Annotated[int, typer.Option(help="Tokens of the text to read at most.")] = 65536,
    block: Annotated[
        int | None, typer.Option(help="Tokens of a block.", show_default="the model's positions, at most 512")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Blocks that run through the model at once.")] = 8,
    plot: Annotated[Path | None, typer.Option(metavar="OUT.png", help="Draw load and co-activation.")] = None,
    device: Annotated[
        str | None, typer.Option(help="cpu or cuda.", show_default="cuda where there is a GPU")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON on standard output and nothing else.")
    ] = False,
) -> None:
    """Load, entropy and co-activation of the experts of each layer, on a text.

    Examples:

        lexpert moe stats upcycled --text sample.txt --plot experts.png

        lexpert moe stats upcycled --text corpus.txt.gz --max-tokens 1000000 --json
    """
    for option, value in (("--max-tokens", max_tokens), ("--block", block), ("--batch-size", batch_size)):
        if value is not None and value < 1:
            raise UsageError(f"{option} must be at least 1, got {value}")

    from moe.language_model_folder import LanguageModelFolder
    from moe.stats.recorder import RoutingRecorder
    from moe.stats.statistics import require_routers, routing_statistics
    from moe.token_stream import block_length

    loaded = LanguageModelFolder.load(model, device=device)
    require_routers(RoutingRecorder(loaded.model), loaded.model)
    length = block_length(loaded.model, block)
    batches = _batches(text, loaded.tokenizer, length, batch_size, max_tokens)
    statistics = routing_statistics(loaded.model, batches)
    if plot is not None:
        from moe.stats.picture import plot_routing

        plot_routing(statistics, f"{model.resolve().name}, {loaded.model.config.model_type}", plot)
    if as_json:
        typer.echo(json.dumps(statistics.to_json()))
        return
    _print(statistics)
    if plot is not None:
        typer.echo(f"picture: {plot}")


def _batches(text: list[Path], tokenizer: Any, length: int, batch_size: int, most: int) -> Iterator[Tensor]:
    """Whole blocks in batches, and what is left of the text as a last, shorter one."""
    import torch

    from moe.token_stream import stream_tokens

    held: list[int] = []
    taken = 0
    for piece in stream_tokens(text, tokenizer):
        held += piece.ids[: most - taken]
        taken += min(len(piece.ids), most - taken)
        while len(held) >= length * batch_size:
            yield torch.tensor(held[: length * batch_size]).view(batch_size, length)
            held = held[length * batch_size :]
        if taken == most:
            break
    whole = len(held) // length * length
    if whole:
        yield torch.tensor(held[:whole]).view(-1, length)
    if held[whole:]:
        yield torch.tensor([held[whole:]])


def _print(statistics: RoutingStatistics) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{statistics.tokens:,} tokens", title_justify="left", box=None, pad_edge=False)
    table.add_column("layer")
    for name in (
        "experts", "a token", "balance", "entropy", "of highest", "dead", "dropped", "busiest", "most often together",
    ):  # fmt: skip
        table.add_column(name, justify="right")
    for layer in statistics.layers:
        report = layer.report
        balance = layer.losses.get("load_balance")
        table.add_row(
            layer.layer,
            str(report.units),
            f"{report.mean_units_per_row:.2f}",
            "" if balance is None else f"{balance:.3f}",
            f"{report.entropy:.3f}",
            f"{layer.evenness:.1%}",
            str(report.dead_units),
            f"{layer.dropped:,}",
            f"{int(layer.load.argmax())} ({report.highest_load:.1%})",
            _pair(statistics.tokens, layer.co_activation),
        )
    # In a file or a pipe there is no width to fit into.
    Console(width=None if sys.stdout.isatty() else 160).print(table)


def _pair(tokens: int, counts: Any) -> str:
    import numpy as np

    above = np.triu(counts, 1)
    if not above.any():
        return ""
    first, second = np.unravel_index(above.argmax(), above.shape)
    return f"{first} and {second} ({above.max() / tokens:.1%})"

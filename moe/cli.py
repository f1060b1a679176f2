"""``lexpert moe``: upcycle a dense checkpoint, make one of experts dense again, import one of llama2.c."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from moe.generation.cli import generate_command
from moe.stats.cli import stats_command
from moe.training.cli import train_command
from runtime.errors import InputError, NotFoundError

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="Mixture-of-experts language models: made from dense ones, and back.",
)

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON on standard output and nothing else.")]
CheckOption = Annotated[
    bool, typer.Option("--check/--no-check", help="Compare both models on a text before the folder appears.")
]

app.command("generate")(generate_command)
app.command("train")(train_command)
app.command("stats")(stats_command)


@app.command("upcycle")
def upcycle_command(
    dense: Annotated[
        Path,
        typer.Argument(
            metavar="DENSE",
            help="Folder of a Llama, Mistral, Qwen2 or Qwen3 checkpoint, or of a BERT, DistilBERT or ModernBERT.",
        ),
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to make.")],
    experts: Annotated[int, typer.Option(help="Experts of a layer.")] = 8,
    top_k: Annotated[int, typer.Option(help="Experts that a token is sent to.")] = 2,
    layers: Annotated[
        str, typer.Option(help="all, every-other, last:N, or numbers from 0 such as 1,3,5.", metavar="LAYERS")
    ] = "all",
    method: Annotated[
        str, typer.Option(help="copy, noise, drop, granular or split.", metavar="METHOD")
    ] = "copy",
    router: Annotated[
        str | None,
        typer.Option(
            help="random (the default), hidden-means or clusters; with --method split: gates (its default) or "
            "contributions.",
            metavar="ROUTER",
        ),
    ] = None,
    noise: Annotated[
        float, typer.Option(help="noise: its standard deviation, as a share of that of the weights.")
    ] = 0.01,
    drop: Annotated[float, typer.Option(help="drop: share of the neurons that is drawn anew.")] = 0.5,
    granularity: Annotated[
        int, typer.Option(help="granular: slices that the feed-forward block is cut into.")
    ] = 2,
    split_by: Annotated[str, typer.Option(help="split: clusters or contiguous.", metavar="HOW")] = "clusters",
    attention: Annotated[
        bool, typer.Option("--attention", help="Make experts of the attention projections as well.")
    ] = False,
    sample: Annotated[
        list[Path] | None,
        typer.Option(
            help="Text file for the check, and for routers that start from hidden states. Repeatable: with one for "
            "each expert, each expert starts with one.",
            metavar="FILE",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of everything that is drawn.")] = 0,
    check: CheckOption = True,
    as_json: JsonOption = False,
) -> None:
    """Make a mixture-of-experts checkpoint of a dense one; transformers loads it as a standard architecture, and an
    encoder after `import moe.models`.

    copy makes every expert the dense block; noise and drop make them differ from the start; granular cuts the
    block into slices, so that experts are small; split cuts it into one small expert each, for sparse inference
    without training. copy, granular with a top-k of whole groups, and split with all experts selected compute
    what the dense model does, and the check shows the difference.

    Examples:

        lexpert moe upcycle llama out

        lexpert moe upcycle llama out --experts 8 --top-k 2 --layers every-other --method drop --drop 0.5

        lexpert moe upcycle llama out --method granular --granularity 4 --experts 32 --top-k 8

        lexpert moe upcycle llama out --router clusters --sample corpus.txt

        lexpert moe upcycle llama out --method split --experts 64 --top-k 48 --router contributions --sample corpus.txt
    """
    from dataclasses import asdict

    from moe.upcycle.convert import upcycle

    report = upcycle(
        dense,
        out,
        experts=experts,
        top_k=top_k,
        layers=layers,
        method=method,  # type: ignore[arg-type]  # the plan checks the names
        router=router,  # type: ignore[arg-type]
        noise=noise,
        drop=drop,
        granularity=granularity,
        split_by=split_by,  # type: ignore[arg-type]
        attention=attention,
        seed=seed,
        sample=[_read_text(path) for path in sample] if sample else None,
        check=check,
    )
    if as_json:
        _print_json(asdict(report))
        return
    typer.echo(
        f"made {out}: {report.sparse_type} with {experts} experts of {report.expert_width} neurons in "
        f"{len(report.layers)} layers, {top_k} for each token"
    )
    typer.echo(
        f"parameters: {report.dense_parameters:,} dense, {report.sparse_parameters:,} sparse, "
        f"{report.active_parameters:,} of them active for a token"
    )
    if report.difference is not None:
        typer.echo(
            f"largest difference between dense and sparse outputs: {report.difference:.3g} "
            f"(largest output {report.largest_output:.3g}; method {method} is "
            f"{'exact' if report.exact else 'not exact with these options'})"
        )
    for note in report.notes:
        typer.echo(f"note: {note}")


@app.command("export-dense")
def export_dense_command(
    sparse: Annotated[
        Path,
        typer.Argument(
            metavar="SPARSE",
            help="Folder of a Mixtral, Qwen2-MoE or Qwen3-MoE checkpoint, or of an encoder with experts.",
        ),
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to make.")],
    expert: Annotated[
        int | None, typer.Option(help="Keep this expert of each layer, from 0.", metavar="N")
    ] = None,
    average: Annotated[bool, typer.Option("--average", help="Keep the mean of the experts.")] = False,
    check: CheckOption = True,
    as_json: JsonOption = False,
) -> None:
    """Make a dense checkpoint of one whose layers have one expert left, or of the average of their experts.

    Examples:

        lexpert moe export-dense pruned dense

        lexpert moe export-dense trained merged --average
    """
    from dataclasses import asdict

    from moe.upcycle.export_dense import export_dense

    report = export_dense(sparse, out, expert=expert, average=average, check=check)
    if as_json:
        _print_json(asdict(report))
        return
    typer.echo(f"made {out}: {report.dense_type}, {report.parameters:,} parameters")
    if report.difference is not None:
        typer.echo(f"largest difference between sparse and dense outputs: {report.difference:.3g}")


@app.command("import-llama2c")
def import_llama2c_command(
    checkpoint: Annotated[
        Path, typer.Argument(metavar="BIN", help="Checkpoint of llama2.c, such as stories15M.bin.")
    ],
    tokenizer: Annotated[
        Path, typer.Argument(metavar="TOKENIZER", help="Its tokenizer, such as tokenizer.bin.")
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to make.")],
    as_json: JsonOption = False,
) -> None:
    """Make a Llama folder of transformers, with a fast tokenizer, from files of llama2.c.

    Example:

        lexpert moe import-llama2c stories260K.bin tok512.bin stories260K
    """
    from dataclasses import asdict

    from moe.interop.llama2c import import_llama2c

    shape = import_llama2c(checkpoint, tokenizer, out)
    if as_json:
        _print_json({"out": str(out), **asdict(shape)})
        return
    typer.echo(
        f"made {out}: llama with {shape.layers} layers of width {shape.width}, {shape.vocabulary} tokens, "
        f"{shape.positions} positions"
    )


def _read_text(path: Path) -> str:
    try:
        text = path.read_text("utf-8")
    except FileNotFoundError:
        raise NotFoundError(f"{path} is missing; give a text file") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 (byte {error.start}); give a text file") from None
    if not text.strip():
        raise InputError(f"{path} is empty; give a text file with some sentences")
    return text


def _print_json(value: dict[str, Any]) -> None:
    import json

    typer.echo(json.dumps(value, indent=2))

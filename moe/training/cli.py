"""``lexpert moe train``: train a language model, dense or with experts, on text."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated

import typer

from runtime.errors import UsageError

OBJECTIVES = {"causal": "causal", "mlm": "masked"}


def train_command(
    model: Annotated[
        Path, typer.Argument(metavar="MODEL", help="Folder of a decoder (or encoder), dense or with experts.")
    ],
    text: Annotated[
        list[Path],
        typer.Option(
            help="Text file, or one compressed by gzip; blank lines separate documents. Repeatable.",
            metavar="FILE",
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder of the training; the trained model is its model/.")],
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on in OUT from its last checkpoint, with the same options.")
    ] = False,
    objective: Annotated[
        str, typer.Option(help="causal for decoders, mlm for encoders.", metavar="NAME")
    ] = "causal",
    steps: Annotated[int, typer.Option(help="Steps of the optimiser.")] = 1000,
    batch_size: Annotated[int, typer.Option(help="Blocks that run through the model at once.")] = 8,
    accumulate: Annotated[int, typer.Option(help="Batches of a step.")] = 1,
    block: Annotated[
        int | None, typer.Option(help="Tokens of a block.", show_default="the model's positions, at most 512")
    ] = None,
    learning_rate: Annotated[float, typer.Option(help="Of AdamW, at its highest.")] = 1e-4,
    warmup: Annotated[int, typer.Option(help="Steps in which the learning rate rises from 0.")] = 0,
    schedule: Annotated[
        str, typer.Option(help="Of the learning rate: cosine, linear or constant.", metavar="NAME")
    ] = "cosine",
    weight_decay: Annotated[float, typer.Option(help="Of AdamW.")] = 0.0,
    balance: Annotated[
        float, typer.Option(help="Coefficient of each layer's load balance, which is 1 when even.")
    ] = 0.01,
    balance_end: Annotated[
        float | None,
        typer.Option(
            help="That at the last step, in a straight line from --balance.", show_default="no change"
        ),
    ] = None,
    z: Annotated[float, typer.Option(help="Coefficient of each router's z-loss.")] = 0.001,
    held_out: Annotated[float, typer.Option(help="Share of the text, its end, kept for evaluation.")] = 0.05,
    eval_blocks: Annotated[int, typer.Option(help="Most blocks of an evaluation.")] = 256,
    eval_every: Annotated[
        int | None, typer.Option(help="Steps between evaluations.", show_default="a tenth of all")
    ] = None,
    save_every: Annotated[
        int | None, typer.Option(help="Steps between checkpoints.", show_default="as evaluations")
    ] = None,
    keep: Annotated[int, typer.Option(help="Checkpoints that stay.")] = 2,
    max_tokens: Annotated[
        int | None, typer.Option(help="Tokens of the text to read.", show_default="all")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the order of blocks, masks and dropout.")] = 0,
    precision: Annotated[
        str,
        typer.Option(help="Of the products: float32 or bfloat16; weights are float32.", metavar="NAME"),
    ] = "float32",
    checkpointing: Annotated[
        bool,
        typer.Option(
            "--gradient-checkpointing",
            help="Compute activations again in the backward pass: more time, less memory.",
        ),
    ] = False,
    device: Annotated[
        str | None, typer.Option(help="cpu or cuda.", show_default="cuda where there is a GPU")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON on standard output and nothing else.")
    ] = False,
) -> None:
    """Train a language model on text, with the load of its experts watched and kept even.

    OUT gets steps.jsonl with the figures of each step and layer, events for TensorBoard if that is installed,
    checkpoints, training.png, report.json, and the trained model in OUT/model. A training that was stopped goes on
    with --resume, and ends with the same weights as one that was not. Several processes, one for each GPU, are
    started by torchrun, and each takes --batch-size blocks.

    Examples:

        lexpert moe train upcycled --text corpus.txt --out run --steps 2000 --batch-size 16

        lexpert moe train upcycled --text corpus.txt.gz --out run --balance 0.05 --balance-end 0.001

        torchrun --nproc-per-node 4 --no-python lexpert moe train upcycled --text corpus.txt --out run

        lexpert moe train bert-moe --objective mlm --text corpus.txt --out run
    """
    if objective not in OBJECTIVES:
        raise UsageError(f"there is no objective {objective!r}; choose from {', '.join(OBJECTIVES)}")

    from dataclasses import asdict

    from moe.training.settings import TrainingSettings
    from moe.training.training import train

    settings = TrainingSettings(
        objective=OBJECTIVES[objective],  # type: ignore[arg-type]
        steps=steps,
        batch_size=batch_size,
        accumulate=accumulate,
        block=block,
        learning_rate=learning_rate,
        warmup=warmup,
        schedule=schedule,
        weight_decay=weight_decay,
        balance=balance,
        balance_end=balance_end,
        z=z,
        held_out=held_out,
        eval_blocks=eval_blocks,
        eval_every=eval_every,
        save_every=save_every,
        keep=keep,
        max_tokens=max_tokens,
        seed=seed,
        precision=precision,
        checkpointing=checkpointing,
    )
    report = train(model, text, out, settings, resume=resume, device=device)
    if int(os.environ.get("RANK", "0")):
        return  # the first process of several speaks for all
    if as_json:
        typer.echo(json.dumps(asdict(report), indent=2))
        return
    experts = f"{len(report.layers)} layers with experts" if report.layers else "dense"
    typer.echo(
        f"trained {report.model}: {report.model_type}, {experts}, {report.parameters:,} parameters, "
        f"{report.steps:,} steps of {report.tokens_per_step:,} tokens"
    )
    typer.echo(
        f"cost: {report.flops_per_token / 1e6:,.2f} MFLOP a token, {report.flops / 1e12:,.3f} TFLOP in all; "
        f"{report.seconds:,.0f} s"
    )
    typer.echo(
        f"held-out perplexity: {report.first_perplexity:.3f} before, {report.last_perplexity:.3f} after "
        f"({report.held_out_blocks} blocks)"
    )
    typer.echo(f"trained model: {Path(report.out) / 'model'}")

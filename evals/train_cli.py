"""``lexpert train``: training data, and training of sparse encoders with evaluation on the way."""

from __future__ import annotations

import typer

import retrieval.cli
from evals.encoder_training_cli import encoder_command, head_command, recipes_command, show_command

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="Make training sets and train sparse encoders.",
)
app.command("mine")(retrieval.cli.mine)
app.command("teach")(retrieval.cli.teach)
app.command("csr")(retrieval.cli.csr)
app.command("encoder")(encoder_command)
app.command("recipes")(recipes_command)
app.command("show")(show_command)
app.command("head")(head_command)
app.command("expand-queries")(retrieval.cli.expand_queries)
app.command("shrink")(retrieval.cli.shrink)

"""``lexpert train``: training data, and training of sparse encoders with evaluation on the way."""

from __future__ import annotations

import typer

import retrieval.cli

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="Make training sets and train sparse encoders.",
)
app.command("mine")(retrieval.cli.mine)
app.command("teach")(retrieval.cli.teach)
app.command("csr")(retrieval.cli.csr)

"""The command line: ``lexpert AREA COMMAND …``; the areas are defined beside their packages."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

import evals.cli
import evals.moe_bench.cli
import evals.search_bench.cli
import moe.cli
import retrieval.cli
import serving.bench.cli
import serving.cli
from runtime.errors import LexpertError, remedy

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it."""

app = typer.Typer(
    name="lexpert",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Learned sparse retrieval and mixture of experts on one sparse-activation runtime.",
)


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"lexpert {version('lexpert')}")
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[  # noqa: ARG001 - the callback acts on it
        bool, typer.Option("--version", help="Print the version.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    if debug:
        os.environ["LEXPERT_DEBUG"] = "1"


app.command("demo")(serving.cli.demo)
app.add_typer(retrieval.cli.index_app, name="index")
app.command("search")(retrieval.cli.search)
app.command("encode")(retrieval.cli.encode)
app.add_typer(evals.cli.app, name="eval")
app.add_typer(evals.cli.train_app, name="train")
evals.search_bench.cli.app.command("moe")(evals.moe_bench.cli.bench_moe)
evals.search_bench.cli.app.command("moe-generate")(evals.moe_bench.cli.bench_moe_generate)
evals.search_bench.cli.app.command("generate-concurrent")(evals.moe_bench.cli.bench_generate_concurrent)
evals.search_bench.cli.app.command("serve")(serving.bench.cli.bench_serve)
app.add_typer(evals.search_bench.cli.app, name="bench")
app.add_typer(moe.cli.app, name="moe")
app.command("serve")(serving.cli.serve)


def main() -> None:
    """Run the command line; errors that the caller can mend are one sentence and exit code 1 or 2."""
    try:
        app(prog_name="lexpert")
    except LexpertError as error:
        if os.environ.get("LEXPERT_DEBUG"):
            raise
        print(f"lexpert: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except SystemExit as ended:
        if ended.code == INTERRUPTED:
            print("lexpert: stopped; an index keeps what was committed to it", file=sys.stderr)
        raise
    except BrokenPipeError:
        # The reader of standard output has gone (`lexpert … | head`); that is not an error of ours.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        if os.environ.get("LEXPERT_DEBUG"):
            raise
        where = f"{error.filename}: " if error.filename else ""
        print(f"lexpert: {where}{error.strerror or error}; {remedy(error)}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()

"""Options that several commands share, and what they stand for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from runtime.errors import UsageError

if TYPE_CHECKING:
    from retrieval.encoders.encoder import SparseEncoder

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
IndexFolder = Annotated[Path, typer.Argument(help="Folder of the index.", metavar="DIR")]
IndexOption = Annotated[Path, typer.Option("--index", help="Folder of the index.", metavar="DIR")]
Encoder = Annotated[
    str,
    typer.Option(
        "--encoder", "-e", help="bm25, lexpert-mini, an encoder folder, or a name on the hub.", metavar="E"
    ),
]
MovedEncoder = Annotated[
    str | None,
    typer.Option("--encoder", "-e", help="Where the index's encoder is now, if it has moved.", metavar="E"),
]
Memory = Annotated[int, typer.Option(help="Memory to stay within, in MiB.", metavar="MIB")]
Workers = Annotated[int | None, typer.Option(help="Processes that analyse text; default: one a core.")]
FieldsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--field", help="A document key to filter by: NAME:int, NAME:float or NAME:keyword. Repeatable."
    ),
]
Impacts = Annotated[
    str,
    typer.Option(
        help="float32, or uint8: a quarter of the bytes, scores off by a known bit.", metavar="CODEC"
    ),
]
K1 = Annotated[float | None, typer.Option(help="bm25: saturation of term counts (0.9).")]
B = Annotated[float | None, typer.Option(help="bm25: strength of length normalisation (0.4).")]


def load_encoder(name: str, k1: float | None = None, b: float | None = None) -> SparseEncoder:
    """Load the encoder that command-line options name."""
    from retrieval.encoders.encoder import SparseEncoder

    options = {key: value for key, value in (("k1", k1), ("b", b)) if value is not None}
    if options and name != "bm25":
        raise UsageError(f"--{next(iter(options))} belongs to --encoder bm25, not to {name}")
    return SparseEncoder.load(name, **options)


def print_json(value: Any) -> None:
    """Print one JSON value on standard output."""
    import orjson

    options = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_INDENT_2
    typer.echo(orjson.dumps(_valid_unicode(value), option=options, default=str).decode())


def _valid_unicode(value: Any) -> Any:
    """`value` with bytes of the command line that were not UTF-8 shown as replacement characters."""
    if isinstance(value, str):
        return value.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    if isinstance(value, dict):
        return {key: _valid_unicode(item) for key, item in value.items()}
    return [_valid_unicode(item) for item in value] if isinstance(value, list) else value


def parse_fields(declarations: list[str] | None) -> dict[str, str]:
    """``["year:int"]`` to ``{"year": "int"}``."""
    fields = {}
    for declaration in declarations or []:
        name, separator, kind = declaration.partition(":")
        if not separator:
            raise UsageError(f"--field {declaration} must be NAME:int, NAME:float or NAME:keyword")
        if name in fields:
            raise UsageError(f"--field names {name} twice; a field has one kind")
        fields[name] = kind
    return fields

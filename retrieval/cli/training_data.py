"""``lexpert train mine`` and ``lexpert train teach``: what an encoder is trained on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from retrieval.cli.options import Json, print_json
from retrieval.training import DEFAULT_CACHE
from runtime.errors import UsageError

if TYPE_CHECKING:
    from retrieval.training.mining.mine import MiningReport
    from retrieval.training.pairs import PairFile
    from retrieval.training.row_cache import CacheUse

Cache = Annotated[
    Path, typer.Option(help="Folder for vectors and scores of texts; used again.", metavar="DIR")
]
Seed = Annotated[int, typer.Option(help="Seed of everything that is drawn.")]
Device = Annotated[str | None, typer.Option(help="cpu or cuda.", show_default="cuda where there is a GPU")]


def mine(
    pairs: Annotated[
        list[Path],
        typer.Argument(metavar="PAIRS...", help='Files with one {"query", "positive"} a line, plain or .gz.'),
    ],
    out: Annotated[Path, typer.Option(metavar="SET", help="Folder of the training set to write.")],
    miner: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MODEL",
            help="bm25, dense=FOLDER or sparse=FOLDER; may be repeated.  [default: bm25]",
        ),
    ] = None,
    window: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FIRST-LAST:COUNT",
            help="Draw COUNT negatives from these ranks of each miner; may be repeated.  [default: 1-50:4, 51-1000:4]",
        ),
    ] = None,
    judge: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL", help="bm25, dense=FOLDER, sparse=FOLDER or cross=FOLDER: tells false negatives."
        ),
    ] = None,
    margin: Annotated[
        float | None,
        typer.Option(
            help="By how much the judge must score the positive above a negative.", show_default="0"
        ),
    ] = None,
    overlap: Annotated[
        float,
        typer.Option(help="Share of common words from which a passage is a copy of the positive; 2: never."),
    ] = 0.9,
    max_pairs: Annotated[
        int | None, typer.Option(help="Pairs to draw from each file.", show_default="all")
    ] = None,
    seed: Seed = 0,
    cache: Cache = DEFAULT_CACHE,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Make a training set of pairs, with hard negatives that models find.

    Every miner ranks all passages for every query, and negatives are drawn from windows of ranks. A passage that
    answers the same query elsewhere, has nearly the words of the positive, or comes too close to it in the judge's
    eyes is no negative.

    Examples:

    lexpert train mine pairs.jsonl.gz --out mined --miner bm25 --window 1-50:4 --window 51-1000:4

    lexpert train mine pairs.jsonl.gz --out mined --miner sparse=model --judge dense=teacher --margin 0.05
    """
    from retrieval.training.mining.draw import Rules
    from retrieval.training.mining.mine import mine as mine_negatives
    from retrieval.training.mining.rank_window import parse_windows
    from retrieval.training.pairs import read_pair_files
    from retrieval.training.row_cache import CacheUse
    from retrieval.training.teachers.catalogue import ModelName, Models
    from retrieval.training.training_set import check_writable

    if max_pairs is not None and max_pairs < 1:
        raise UsageError(f"--max-pairs must be at least 1, got {max_pairs}")
    if not overlap > 0:
        raise UsageError(f"--overlap must be above 0, got {overlap}")
    if margin is not None and judge is None:
        raise UsageError("--margin is measured by a judge; name one with --judge")
    windows = parse_windows(window or ["1-50:4", "51-1000:4"])
    names = [ModelName.parse(name, ("dense", "sparse")) for name in miner or ["bm25"]]
    if len(set(names)) < len(names):
        raise UsageError("--miner names a model twice; use wider windows for more negatives of it")
    judge_name = ModelName.parse(judge) if judge is not None else None
    check_writable(out)
    training_set, files = read_pair_files(pairs, max_pairs, seed)
    models = Models(training_set, cache, device)
    uses = {str(name): CacheUse() for name in [*names, *([judge_name] if judge_name else [])]}
    rules = Rules(
        windows,
        overlap,
        models.teacher(judge_name, uses[str(judge_name)]) if judge_name else None,
        margin or 0.0,
        seed,
    )
    mined, report = mine_negatives(
        training_set, [models.miner(name, uses[str(name)]) for name in names], rules
    )
    mined.save(out)
    if as_json:
        described = {
            "out": str(out),
            "digest": mined.digest,
            "files": [vars(file) for file in files],
            **report.as_dict(),
            "models": {name: vars(use) for name, use in uses.items()},
        }
        print_json(described)
        return
    _show_mining(files, report)
    _show_uses(uses)
    typer.echo(
        f"wrote {out}: {len(mined):,} queries, {len(mined.passages):,} passages, digest {mined.digest[:12]}"
    )


def teach(
    training_set: Annotated[Path, typer.Argument(metavar="SET", help="Folder of a training set.")],
    teacher: Annotated[
        list[str],
        typer.Option(
            metavar="MODEL",
            help="bm25, dense=FOLDER, sparse=FOLDER or cross=FOLDER; may be repeated.",
        ),
    ],
    rescale: Annotated[
        bool,
        typer.Option(
            "--rescale",
            help="Give combined scores the mean and spread of the first teacher's, for MarginMSE.",
        ),
    ] = False,
    topics: Annotated[
        int | None,
        typer.Option(help="Sort queries into so many topics, for batches by topic.", show_default="none"),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write to another folder.", show_default="SET")
    ] = None,
    seed: Seed = 0,
    cache: Cache = DEFAULT_CACHE,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Ask teachers about a training set, in the place of those that it had.

    Bi-encoders (dense, sparse) leave their vectors, which score any passage of a batch for any query. All teachers
    score the positive and the negatives of each query; scores are min-max normalised per query and averaged.

    Examples:

    lexpert train teach mined --teacher dense=all-MiniLM-L6-v2 --teacher bm25 --topics 200

    lexpert train teach mined --teacher cross=ms-marco-MiniLM --rescale
    """
    from retrieval.training.row_cache import CacheUse
    from retrieval.training.teach import teach as ask
    from retrieval.training.teachers.catalogue import ModelName, Models
    from retrieval.training.training_set import TrainingSet, check_writable

    names = [ModelName.parse(name) for name in teacher]
    if len(set(names)) < len(names):
        raise UsageError("--teacher names a model twice; each counts once")
    if out is not None:
        check_writable(out)
    given = TrainingSet.load(training_set)
    if any(name.kind == "cross" for name in names) and not any(len(row) for row in given.negatives):
        raise UsageError(f"{training_set} has no negatives for a cross-encoder to score; mine some first")
    models = Models(given, cache, device)
    uses = {str(name): CacheUse() for name in names}
    teachers = [models.teacher(name, uses[str(name)]) for name in names]
    taught, opinions = ask(given, teachers, rescale=rescale, topics=topics, seed=seed)
    taught.save(out or training_set, replace=out is None)
    if as_json:
        described = {
            "out": str(out or training_set),
            "digest": taught.digest,
            "queries": len(taught),
            "passages": len(taught.passages),
            "teachers": [vars(opinion) for opinion in opinions],
            "models": {name: vars(use) for name, use in uses.items()},
            "topics": topics,
        }
        print_json(described)
        return
    if opinions:
        _print_table(
            "teachers",
            ("teacher", "pairs", "positive first", "margin to the best negative"),
            [
                (opinion.name, f"{opinion.pairs:,}", f"{opinion.first:.1%}", f"{opinion.margin:+.3f}")
                for opinion in opinions
            ],
        )
    _show_uses(uses)
    typer.echo(
        f"wrote {out or training_set}: {len(taught.teachers)} bi-encoders, digest {taught.digest[:12]}"
    )


def _show_mining(files: Sequence[PairFile], report: MiningReport) -> None:
    from retrieval.training.mining.draw import REASONS

    _print_table(
        "pairs",
        ("file", "pairs", "drawn", "repeated", "kept"),
        [
            (
                file.name,
                *(
                    f"{count:,}"
                    for count in (file.pairs, file.drawn, file.repeated, file.drawn - file.repeated)
                ),
            )
            for file in files
        ],
    )
    for name, tally in report.tallies.items():
        ranks = tally.positive_ranks
        rows = [
            ("queries", f"{report.queries:,}"),
            ("of them with the positive at rank 1", f"{ranks['at 1']:,}"),
            ("of them with the positive within 10", f"{ranks['within 10']:,}"),
            ("of them with the positive ranked at all", f"{ranks['ranked']:,}"),
            ("candidates looked at", f"{tally.examined:,}"),
            *(
                (f"kept from ranks {window}", f"{tally.kept[str(window)]:,}")
                for window in report.rules.windows
            ),
            *((f"left out: {reason}", f"{tally.dropped[reason]:,}") for reason in REASONS),
            ("queries with fewer than asked for", f"{tally.short:,}"),
        ]
        _print_table(f"negatives by {name}", ("", "number"), rows)
    if report.without:
        typer.echo(f"{report.without:,} queries have no negative at all")


def _show_uses(uses: dict[str, CacheUse]) -> None:
    for name, use in uses.items():
        damaged = f"; {use.damaged} damaged files of the cache were made anew" if use.damaged else ""
        typer.echo(f"{name}: {use.made:,} texts or pairs computed, {use.found:,} from the cache{damaged}")


def _print_table(title: str, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    import sys

    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=title, title_justify="left", title_style="bold")
    for place, name in enumerate(header):
        table.add_column(name, justify="left" if place == 0 else "right")
    for row in rows:
        table.add_row(*row)
    Console(width=None if sys.stdout.isatty() else 120).print(table)

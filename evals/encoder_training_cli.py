"""``lexpert train encoder | recipes | show | head``: train sparse encoders, and what that starts from."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from retrieval.cli.training_data import Cache
from retrieval.training import DEFAULT_CACHE

if TYPE_CHECKING:
    from retrieval.training.training import Evaluate

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON on standard output and nothing else.")]
DeviceOption = Annotated[
    str | None, typer.Option(help="cpu or cuda.", show_default="cuda where there is a GPU")
]


def encoder_command(
    recipe: Annotated[
        str,
        typer.Argument(metavar="RECIPE", help="Name of a recipe (lexpert train recipes), or a .yaml file."),
    ],
    base: Annotated[
        Path, typer.Option(help="Folder of a masked language model, or of an encoder to go on from.")
    ],
    training_set: Annotated[
        Path, typer.Option("--set", help="Training set, of lexpert train mine.", metavar="DIR")
    ],
    out: Annotated[Path, typer.Option(help="Folder of the training; the encoder is its model/.")],
    evaluate: Annotated[
        list[str] | None,
        typer.Option(
            "--eval",
            help="BEIR folder, evaluated at each interval; the best encoder is kept. Repeatable.",
            metavar="DIR",
        ),
    ] = None,
    split: Annotated[str | None, typer.Option(help="Which judgements of these.", show_default="test")] = None,
    options: Annotated[
        list[str] | None,
        typer.Option("--set-option", help="Another value of a setting. Repeatable.", metavar="PATH=VALUE"),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on in OUT from its last checkpoint, with the same options.")
    ] = False,
    device: DeviceOption = None,
    cache: Cache = DEFAULT_CACHE,
    as_json: JsonOption = False,
) -> None:
    """Train a sparse encoder by a recipe.

    OUT gets steps.jsonl with the figures of each step, events for TensorBoard if that is installed, checkpoints,
    training.png, report.json, and the encoder in OUT/model, which sentence-transformers reads too. A training that
    was stopped goes on with --resume, and ends with the same weights as one that was not.

    Examples:

        lexpert train encoder splade-max --base bert --set pairs --out run

        lexpert train encoder lexpert-mini --base minilm --set pairs --out run --eval data/scifact

        lexpert train encoder mine.yaml --base run/model --set pairs --out run2 --set-option steps=500
    """
    from dataclasses import asdict

    from moe.stats.recorder import RoutingRecorder
    from retrieval.training.recipe import load_recipe, parse_option
    from retrieval.training.training import train
    from retrieval.training.training_set import TrainingSet

    chosen = load_recipe(recipe).changed(dict(map(parse_option, options or [])))
    report = train(
        chosen,
        base,
        TrainingSet.load(training_set),
        out,
        evaluate=ndcg_on(evaluate, split) if evaluate else None,
        evaluated_on=[f"{Path(folder).resolve()}, {split or 'test'}" for folder in evaluate or []],
        watch_routers=RoutingRecorder,
        resume=resume,
        device=device,
        cache=cache,
    )
    if as_json:
        typer.echo(json.dumps(asdict(report), indent=2))
        return
    why = ", stopped early" if report.stopped_early else ""
    typer.echo(
        f"trained {report.base} by {report.recipe}: {report.family}, {report.parameters:,} parameters, "
        f"{report.steps:,} steps{why}; {report.seconds:,.0f} s"
    )
    typer.echo(
        f"active terms: {report.active_queries:,.1f} of a query, {report.active_passages:,.1f} of a passage"
    )
    if report.score is not None:
        typer.echo(f"nDCG@10: {report.score:.4f}, after step {report.chosen_step:,}, whose encoder was kept")
    typer.echo(f"encoder: {Path(report.out) / 'model'}")


def recipes_command(as_json: JsonOption = False) -> None:
    """List the recipes, and what each reproduces."""
    from retrieval.training.recipe import load_recipe, recipe_names

    recipes = {name: load_recipe(name).reproduces for name in recipe_names()}
    if as_json:
        typer.echo(json.dumps(recipes, indent=2))
        return
    width = max(map(len, recipes))
    for name, reproduces in recipes.items():
        typer.echo(f"{name:{width}}  {reproduces}")


def show_command(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="Name of a recipe, or a .yaml file.")],
    as_json: JsonOption = False,
) -> None:
    """Show all settings of a recipe, those too that its file leaves as they are.

    What is printed is a recipe file; change it and give its name to lexpert train encoder.
    """
    import yaml

    from retrieval.training.recipe import load_recipe

    described: Mapping[str, Any] = load_recipe(recipe).model_dump()
    text = (
        json.dumps(described, indent=2) if as_json else yaml.safe_dump(described, sort_keys=False, width=100)
    )
    typer.echo(text.rstrip())


def head_command(
    base: Annotated[Path, typer.Argument(metavar="BASE", help="Folder of a transformer without a head.")],
    out: Annotated[
        Path, typer.Argument(metavar="OUT", help="Folder of the training; the model is its model/.")
    ],
    text: Annotated[
        list[Path],
        typer.Option(
            help="Text file, or one compressed by gzip; blank lines separate documents. Repeatable.",
            metavar="FILE",
        ),
    ],
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on in OUT from its last checkpoint, with the same options.")
    ] = False,
    steps: Annotated[
        int, typer.Option(min=0, help="Steps of masked-language-model training; 0 fits the head alone.")
    ] = 1000,
    meaning: Annotated[
        float,
        typer.Option(
            min=0,
            help="Share of meaning in the fitted head, for dense encoders that pool by the mean: 1 has terms of a like "
            "meaning light up too.",
        ),
    ] = 0.0,
    batch_size: Annotated[int, typer.Option(help="Blocks of a step.")] = 32,
    block: Annotated[int, typer.Option(help="Tokens of a block.")] = 128,
    learning_rate: Annotated[float, typer.Option(help="Of AdamW, at its highest.")] = 5e-4,
    seed: Annotated[int, typer.Option(help="Of the order of blocks, masks and dropout.")] = 0,
    device: DeviceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Give a transformer a masked-language-model head, tied to its embeddings, and warm it up on text.

    The head starts as a fit in closed form, by which a token's state lights up the token itself and its inflections:
    a lexical encoder, for training to go on from. Masked-language-model training of the whole model may follow.

    Examples:

        lexpert train head minilm minilm-mlm --text wikipedia.txt.gz --steps 0 --meaning 1

        lexpert train head minilm minilm-mlm --text wikipedia.txt.gz --steps 2000
    """
    from dataclasses import asdict

    from moe.training.settings import TrainingSettings
    from moe.training.training import train
    from retrieval.training.head import add_head
    from runtime.errors import ConflictError
    from runtime.run_folder import require_same, write_json

    start, request = out / "start", out / "head.json"
    asked = {"base": str(base.resolve()), "text": [str(path.resolve()) for path in text], "meaning": meaning}
    if not resume and out.exists():
        raise ConflictError(f"{out} exists already; go on with --resume, or give the name of a new folder")
    if request.exists():
        require_same(request, asked)
    fit = None
    if not start.exists():
        fit = add_head(base, start, first_documents(text), meaning=meaning, device=device or "cpu")
    write_json(request, asked)
    if fit is not None and not as_json:
        typer.echo(
            f"fitted the head on {fit.tokens:,} tokens: {fit.first:.0%} of them light up themselves most of all, and "
            f"{fit.lit:,.1f} terms are lit on average"
        )
    if not steps:
        if as_json:
            typer.echo(
                json.dumps({"fit": None if fit is None else asdict(fit), "encoder": str(start)}, indent=2)
            )
        else:
            typer.echo(f"model: {start}")
        return
    settings = TrainingSettings(
        objective="masked",
        steps=steps,
        batch_size=batch_size,
        block=block,
        learning_rate=learning_rate,
        warmup=min(100, steps // 10),
        seed=seed,
    )
    report = train(start, text, out / "warm-up", settings, resume=resume, device=device)
    model = out / "warm-up" / "model"
    if as_json:
        typer.echo(json.dumps({**asdict(report), "encoder": str(model)}, indent=2))
        return
    typer.echo(
        f"warmed up {report.steps:,} steps: held-out perplexity {report.first_perplexity:,.1f} before, "
        f"{report.last_perplexity:,.1f} after"
    )
    typer.echo(f"model: {model}")


def first_documents(paths: Sequence[Path], count: int = 4000) -> list[str]:
    """The first documents of text files, as many of each: what a head is fitted on."""
    from itertools import islice

    from moe.token_stream import stream_documents

    share = -(-count // len(paths))
    return [text for path in paths for text in islice(stream_documents([path]), share)]


def ndcg_on(folders: Sequence[str], split: str | None) -> Evaluate:
    """An evaluation by nDCG@10 on collections, each indexed anew in a folder that is removed."""
    from evals.collections.catalogue import load_collection
    from evals.metrics import require_ir_measures

    require_ir_measures()
    collections = [load_collection(folder, split) for folder in folders]

    def evaluate(encoder: Any) -> dict[str, float]:
        from tempfile import TemporaryDirectory

        from evals.evaluation import evaluate as measure

        scores = {}
        for collection in collections:
            with TemporaryDirectory() as scratch:
                found = measure(
                    collection, encoder, out=Path(scratch) / "report", k=100, plot=False, workers=1
                )
            scores[collection.name] = found.report.metrics["nDCG@10"]
        return scores

    return evaluate

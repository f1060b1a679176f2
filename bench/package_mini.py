"""Make the folder of the encoder that comes with the package, from a shrunk encoder, its training and its scores.

    python bench/package_mini.py mini --training run --scores results/mini --beside bm25=results/bm25

`mini` is what ``lexpert train shrink`` wrote, `run` the folder of its training, and each folder of scores what
``lexpert eval beir … --out`` wrote for the same collections. Written are the encoder itself, the recipe with all its
settings, scores.json with the checksum of every run file, and a model card. Refused are scores of another encoder,
collections that not all have, and a folder of more than 24,000,000 bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import sys
from pathlib import Path
from typing import Any

from evals.report import RUN_FILE, Report, load_report
from retrieval.encoders.catalogue import ENCODER_FILE, PACKAGED
from retrieval.encoders.encoder import SparseEncoder
from retrieval.training.recipe import load_recipe
from runtime.errors import LexpertError, NotFoundError, UsageError
from runtime.folder_bytes import folder_bytes
from runtime.output_folder import new_folder, require_new

NAME = "lexpert-mini"
MOST_BYTES = 24_000_000
MEASURE = "nDCG@10"
DATA = Path(__file__).with_name("package_mini_data.md")
"""What the encoder was made from, and under which licences: the end of the model card."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("encoder", type=Path, help="what lexpert train shrink wrote")
    parser.add_argument("--training", type=Path, required=True, help="folder of lexpert train encoder")
    parser.add_argument("--scores", type=Path, required=True, help="reports of the shrunk encoder")
    parser.add_argument("--beside", action="append", default=[], metavar="NAME=DIR", help="reports of others")
    parser.add_argument("--out", type=Path, default=PACKAGED[NAME])
    asked = parser.parse_args()
    beside = dict(pair.split("=", 1) for pair in asked.beside)
    try:
        written = package(
            asked.encoder,
            asked.training,
            {NAME: asked.scores, **{name: Path(folder) for name, folder in beside.items()}},
            asked.out,
        )
    except LexpertError as error:
        sys.exit(f"package_mini: {error}")
    print(f"wrote {asked.out}: {written:,} bytes of {MOST_BYTES:,}")


def package(encoder: Path, training: Path, scores: dict[str, Path], out: Path) -> int:
    """Write the folder; returns its bytes. `scores` are folders of reports by system, the encoder's own first."""
    require_new(out)
    fingerprint = SparseEncoder.load(encoder).fingerprint
    systems = {system: reports_in(folder) for system, folder in scores.items()}
    for report in systems[NAME].values():
        if report.encoder_fingerprint != fingerprint:
            raise UsageError(
                f"the report on {report.collection} in {scores[NAME]} is of another encoder than {encoder}"
            )
    described = scores_of(systems, scores, fingerprint)
    with new_folder(out) as partial:
        shutil.copytree(encoder, partial, dirs_exist_ok=True)
        own = json.loads((partial / ENCODER_FILE).read_text("utf-8"))
        write_json(partial / ENCODER_FILE, {**own, "fingerprint": fingerprint})
        write_json(partial / "scores.json", described)
        write_recipe(training, partial / "recipe.yaml")
        (partial / "README.md").write_text(card(described, training), "utf-8")
        if SparseEncoder.load(partial).fingerprint != fingerprint:
            raise UsageError(f"{encoder} has changed while it was copied")
        size = folder_bytes(partial)
        if size > MOST_BYTES:
            raise UsageError(f"the folder would take {size:,} bytes, but {MOST_BYTES:,} are the most")
    return size


def reports_in(folder: Path) -> dict[str, Report]:
    """The reports under a folder, by collection."""
    reports = [load_report(path) for path in sorted(folder.glob("*/report.json"))]
    if not reports:
        raise NotFoundError(f"{folder} holds no report; write them with lexpert eval beir … --out {folder}")
    return {report.collection: report for report in reports}


def scores_of(
    systems: dict[str, dict[str, Report]], folders: dict[str, Path], fingerprint: str
) -> dict[str, Any]:
    names = sorted(systems[NAME])
    for system, reports in systems.items():
        missing = [name for name in names if name not in reports]
        if missing:
            raise UsageError(f"{folders[system]} lacks a report on {', '.join(missing)}")
    collections = {
        name: {system: round(reports[name].metrics[MEASURE], 4) for system, reports in systems.items()}
        for name in names
    }
    return {
        "encoder_fingerprint": fingerprint,
        "measure": MEASURE,
        "mean": {
            system: round(sum(reports[name].metrics[MEASURE] for name in names) / len(names), 4)
            for system, reports in systems.items()
        },
        "collections": collections,
        "runs": {
            system: {name: checksum_of_run(folders[system], reports[name]) for name in names}
            for system, reports in systems.items()
        },
    }


def checksum_of_run(folder: Path, report: Report) -> str:
    """``sha256:…`` of the run file that a report was measured on."""
    for path in folder.glob("*/report.json"):
        if load_report(path).collection == report.collection and (path.parent / RUN_FILE).is_file():
            return f"sha256:{hashlib.sha256((path.parent / RUN_FILE).read_bytes()).hexdigest()}"
    raise NotFoundError(
        f"{folder} has no {RUN_FILE} beside its report on {report.collection}; evaluate again"
    )


def write_recipe(training: Path, path: Path) -> None:
    """The settings that a training was asked for, as a recipe file."""
    import yaml

    recipe: dict[str, Any] = {}
    for key, value in read_json(training / "training.json").items():
        if key.startswith("recipe."):
            *parts, last = key.split(".")[1:]
            place = recipe
            for part in parts:
                place = place.setdefault(part, {})
            place[last] = value
    path.write_text(yaml.safe_dump(recipe, sort_keys=False, width=100), "utf-8")
    load_recipe(str(path))  # it is one


def card(scores: dict[str, Any], training: Path) -> str:
    """The model card."""
    asked, report = (read_json(training / name) for name in ("training.json", "report.json"))
    systems = list(scores["mean"])
    rows = [("collection", *systems), ("---", *["---:"] * len(systems))]
    rows += [
        (name, *(f"{values[system]:.3f}" for system in systems))
        for name, values in scores["collections"].items()
    ]
    rows.append(("**mean**", *(f"**{scores['mean'][system]:.3f}**" for system in systems)))
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return f"""# {NAME}

A small sparse encoder for English, which comes with lexpert: `SparseEncoder.load("{NAME}")`, or
`--encoder {NAME}` on the command line. Loading and encoding it needs `lexpert[neural]`, and no network.

It was trained by `lexpert train encoder` with the recipe in recipe.yaml, {report["steps"]:,} steps, on
{report["queries"]:,} queries with {report["passages"]:,} passages (training set {asked["training_set"][:16]}…, started
from weights {asked["base_weights"][:16]}…). Its weights are kept in 8 bits or fewer, by `lexpert train shrink`.
Fingerprint of its vectors: `{scores["encoder_fingerprint"]}`.

## Scores

{scores["measure"]}, by `lexpert eval beir`; the checksums of all run files are in scores.json. No judgement of a test
collection was used in training.

{table}

{DATA.read_text("utf-8")}"""


def read_json(path: Path) -> dict[str, Any]:
    try:
        value: dict[str, Any] = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise NotFoundError(f"{path} is missing; give the folder of a training that has ended") from None
    return value


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()

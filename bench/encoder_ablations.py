"""What each choice of the recipe lexpert-mini-inference-free is worth: short trainings that differ in one setting each.

    python bench/encoder_ablations.py BASE SET OUT --held-back PAIRS… [--steps 60] [--experts MOE_BASE]

BASE and SET are those of `lexpert train encoder`; the set has to have the teachers dense and bm25, topics and
negatives. Every training is measured by nDCG@10 on pairs that the set does not have: each query of these searches the
passages of all of them. A star: it differs from the first with p below .05 (paired randomisation test). Trainings that
are done are not done again, and one that was stopped is gone on with.
"""

from __future__ import annotations

import argparse
from argparse import Namespace
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any

from evals.collections.collection import Collection
from evals.comparison import compare
from evals.evaluation import evaluate
from evals.report import Report
from moe.stats.recorder import RoutingRecorder
from retrieval.documents import Document
from retrieval.training import DEFAULT_CACHE
from retrieval.training.pairs import read_pairs
from retrieval.training.recipe import load_recipe
from retrieval.training.training import train
from retrieval.training.training_set import TrainingSet, same_text

MEASURE = "nDCG@10"


@dataclass(frozen=True)
class Variant:
    """One setting that is changed, and how.

    Attributes:
        question: what is asked; variants of one question stand together.
        options: of the recipe.
        teachers: the names of those that are kept; None keeps all.
        base: what is started from; None for what the others start from.
        recipe: that is changed.
    """

    question: str
    name: str
    options: Mapping[str, Any]
    teachers: tuple[str, ...] | None = None
    base: Path | None = None
    recipe: str = "lexpert-mini-inference-free"


TUNED = "lexpert-mini-tuned"
SHORT = {"batch.queries": 32, "batch.topics": 4}
"""Of trainings through a whole model, whose steps take far longer than those of the others."""


def variants(queries: int) -> list[Variant]:
    """All of them; `queries` are those of a batch."""
    half = {"batch.queries": queries // 2}
    return [
        Variant("", "the recipe", {}),
        Variant("loss", "contrastive", {"losses": [{"kind": "contrastive", "temperature": 5.0}]}),
        Variant("teachers", "dense alone", {}, ("dense",)),
        Variant("teachers", "BM25 alone", {}, ("bm25",)),
        Variant("λ", "a quarter", {"penalties.passages.strength": 0.0015}),
        Variant("λ", "four times", {"penalties.passages.strength": 0.024}),
        Variant("topics of a batch", "all mixed", {"batch.topics": 0}),
        Variant("topics of a batch", "two", {"batch.topics": 2}),
        Variant("negatives", "half the queries, with one of BM25 each", {**half, "batch.negatives": 1}),
        Variant("negatives", "half the queries, without", half),
        Variant("query table", "stays the IDF", {"optimiser.table_learning_rate": None}),
        Variant("an expansion starts at", "one deviation", {"expansion.threshold": 1.0}),
        Variant("an expansion starts at", "three", {"expansion.threshold": 3.0}),
        Variant("what learns", "head and last layers", SHORT, recipe=TUNED),
    ]


class Texts:
    """A corpus of texts, by their numbers."""

    name = "held-back passages"

    def __init__(self, texts: list[str]) -> None:
        self._texts = texts
        self.num_documents = len(texts)

    def checksum(self) -> str:
        return self._checksum

    @cached_property
    def _checksum(self) -> str:
        return "sha256:" + sha256("\0".join(self._texts).encode()).hexdigest()

    def __iter__(self) -> Iterator[Document]:
        return ({"_id": str(number), "text": text} for number, text in enumerate(self._texts))


def held_back(files: list[Path], data: TrainingSet, count: int) -> Collection:
    """The first pairs of each file whose query and passage the training set does not have."""
    known = {same_text(text) for text in (*data.queries, *data.passages)}
    queries: dict[str, str] = {}
    passages: dict[str, int] = {}
    qrels: dict[str, dict[str, int]] = {}
    for file in files:
        new = (pair for pair in read_pairs(file) if known.isdisjoint(map(same_text, pair)))
        for query, passage in islice(new, count):
            number = passages.setdefault(passage, len(passages))
            name = f"q{len(queries)}"
            queries[name], qrels[name] = query, {str(number): 1}
    return Collection("held-back", "pairs", Texts(list(passages)), queries, qrels)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("base", type=Path)
    parser.add_argument("set", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--held-back", type=Path, nargs="+", required=True, metavar="PAIRS")
    parser.add_argument("--experts", type=Path, metavar="MOE_BASE")
    parser.add_argument("--count", type=int, default=200, help="held-back pairs of each file")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--queries", type=int, default=128, help="of a batch")
    parser.add_argument("--length", type=int, default=128, help="tokens of a passage, at most")
    parser.add_argument("--cache", type=Path, default=DEFAULT_CACHE, help="what frozen models made of texts")
    given = parser.parse_args()
    data = TrainingSet.load(given.set)
    collection = held_back(given.held_back, data, given.count)
    shared = {
        "steps": given.steps,
        "evaluate_every": given.steps,
        "optimiser.warmup": given.steps // 6,
        "penalties.passages.ramp": given.steps // 3,
        "batch.queries": given.queries,
        "batch.max_passage_length": given.length,
    }
    print(
        f"{len(collection.queries):,} queries, {collection.corpus.num_documents:,} passages; {given.steps} steps of"
    )
    print(f"{given.queries} queries, passages of {given.length} tokens at most")
    print("| question | answer | nDCG@10 | terms of a query | of a passage |")
    print("|---|---|---|---|---|", flush=True)
    first = evaluate(collection, "bm25", out=given.out / "bm25", workers=1, plot=False).report
    print(f"| | BM25 | {first.metrics[MEASURE]:.3f} | | |")
    reference: Report | None = None
    asked = variants(given.queries)
    if given.experts is not None:
        routers = {"routers": {"balance": 0.01, "z": 0.001}}
        tuned = {**SHORT, **routers}
        asked.append(Variant("what learns", "the same of experts", tuned, base=given.experts, recipe=TUNED))
    for variant in asked:
        made, row = run(variant, shared, data, collection, given)
        star = ""
        if reference is None:
            reference = made
        else:
            measured = compare(reference.per_query, made.per_query, [MEASURE]).measures[0]
            star = "*" if measured.p_value < 0.05 else ""
        print(
            f"| {variant.question} | {variant.name} | {made.metrics[MEASURE]:.3f}{star} | {row} |", flush=True
        )


def run(
    variant: Variant, shared: Mapping[str, Any], data: TrainingSet, collection: Collection, given: Namespace
) -> tuple[Report, str]:
    """Train and measure one; its report, and its active terms as cells of the table."""
    kept = [
        teacher
        for teacher in data.teachers
        if variant.teachers is None or teacher.name.partition("=")[0] in variant.teachers
    ]
    folder = given.out / f"{variant.question} {variant.name}".strip().replace(" ", "-").replace(",", "")
    report = train(
        load_recipe(variant.recipe).changed({**shared, **variant.options}),
        variant.base or given.base,
        replace(data, teachers=kept),
        folder,
        watch_routers=RoutingRecorder,
        resume=True,
        cache=given.cache,
    )
    measured = evaluate(
        collection, str(folder / "model"), out=folder / "held-back", workers=1, plot=False
    ).report
    return measured, f"{report.active_queries:.0f} | {report.active_passages:.0f}"


if __name__ == "__main__":
    main()

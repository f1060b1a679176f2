"""Mining hard negatives for a training set, with one or several miners."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.training.mining.draw import REASONS, Negative, Rules, Tally, draw_negatives
from retrieval.training.mining.word_overlap import WordOverlap
from retrieval.training.training_set import TrainingSet, same_text
from runtime.errors import InputError
from runtime.progress import progress

QUERIES_AT_ONCE = 4096
"""Their rankings are held at a time, and a judge gets their candidates in one go."""


@dataclass(frozen=True)
class Miner:
    """A model that ranks the passages of a training set.

    Attributes:
        name: for people.
        rank: called with a depth; yields for each query in turn the numbers of its best passages, at most so many.
    """

    name: str
    rank: Callable[[int], Iterator[NDArray[np.int32]]]


@dataclass(frozen=True)
class MiningReport:
    """What was kept and why.

    Attributes:
        tallies: by the name of each miner.
        queries: number of queries.
        without: queries that got no negative from any miner.
    """

    queries: int
    passages: int
    rules: Rules
    tallies: dict[str, Tally]
    without: int

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        judge = self.rules.judge
        return {
            "queries": self.queries,
            "passages": self.passages,
            "windows": [str(window) for window in self.rules.windows],
            "overlap": self.rules.overlap,
            "judge": judge.name if judge else None,
            "margin": self.rules.margin if judge else None,
            "seed": self.rules.seed,
            "without_negatives": self.without,
            "miners": {
                name: {
                    "examined": tally.examined,
                    "kept": {str(window): tally.kept[str(window)] for window in self.rules.windows},
                    "dropped": {reason: tally.dropped[reason] for reason in REASONS},
                    "queries_short": tally.short,
                    "positive": {
                        rank: tally.positive_ranks[rank] for rank in ("at 1", "within 10", "ranked")
                    },
                }
                for name, tally in self.tallies.items()
            },
        }


def mine(
    training_set: TrainingSet, miners: Sequence[Miner], rules: Rules
) -> tuple[TrainingSet, MiningReport]:
    """The set with negatives in the place of those it had; scores, which belong to those, are dropped.

    Negatives are ordered by the judge's score, highest first, or without a judge by rank.

    Raises:
        InputError: there are too few passages to draw negatives from.
    """
    if len(training_set.passages) < 2:
        raise InputError("the pairs have a single passage between them, so that nothing can be a negative")
    answers = _answers(training_set)
    overlap = None
    if rules.overlap <= 1:
        with progress("words", len(training_set.passages), "passages") as advance:
            overlap = WordOverlap(training_set.passages, advance)
    depth = max(window.last for window in rules.windows)
    drawn: dict[int, list[Negative]] = {query: [] for query in range(len(training_set))}
    tallies = {}
    for number, miner in enumerate(miners):
        tally = tallies[miner.name] = Tally()
        rankings = miner.rank(depth)
        with progress(f"{miner.name}: negatives", len(training_set), "queries") as advance:
            for start in range(0, len(training_set), QUERIES_AT_ONCE):
                block = list(islice(rankings, QUERIES_AT_ONCE))
                draw_negatives(
                    range(start, start + len(block)),
                    block,
                    training_set.positives,
                    answers,
                    drawn,
                    overlap,
                    rules,
                    tally,
                    number,
                )
                advance(len(block))
    negatives = [_in_order(drawn[query]) for query in range(len(training_set))]
    without = sum(not len(row) for row in negatives)
    report = MiningReport(len(training_set), len(training_set.passages), rules, tallies, without)
    return replace(training_set, negatives=negatives, scores=None), report


def _answers(training_set: TrainingSet) -> Callable[[int], set[int]]:
    """The passages that answer a query: positives of all queries of the same text."""
    keys = [same_text(query) for query in training_set.queries]
    by_text: dict[str, set[int]] = defaultdict(set)
    for key, positive in zip(keys, training_set.positives.tolist(), strict=True):
        by_text[key].add(positive)
    return lambda query: by_text[keys[query]]


def _in_order(negatives: Sequence[Negative]) -> NDArray[np.int32]:
    ordered = sorted(
        negatives,
        key=lambda negative: (-negative.score if negative.score is not None else 0.0, negative.rank),
    )
    return np.array([negative.passage for negative in ordered], np.int32)

"""Drawing negatives from rankings: which ranks, what is thrown out, and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from retrieval.training.mining.rank_window import RankWindow
from retrieval.training.mining.word_overlap import WordOverlap

ANSWER = "answers the query as well"
DRAWN = "drawn already"
COPY = "same words as the positive"
FALSE_NEGATIVE = "too close to the positive for the judge"
REASONS = (ANSWER, DRAWN, COPY, FALSE_NEGATIVE)
"""Why a candidate is thrown out, in the order in which it is asked."""


class Judge(Protocol):
    """A teacher that tells negatives from right answers that nobody marked."""

    @property
    def name(self) -> str: ...

    def pair_scores(self, queries: NDArray[Any], passages: NDArray[Any]) -> NDArray[np.float32]: ...


@dataclass(frozen=True)
class Rules:
    """What makes a candidate a negative.

    Attributes:
        windows: ranks to draw from, and how many.
        overlap: a candidate that shares this much of its words with the positive (Jaccard) is a copy of it;
            above 1 for never.
        judge: scores candidates; None for no judgement.
        margin: by how much the judge must score the positive above a negative.
        seed: of the draws.
    """

    windows: tuple[RankWindow, ...]
    overlap: float = 0.9
    judge: Judge | None = None
    margin: float = 0.0
    seed: int = 0


@dataclass
class Tally:
    """What became of the candidates of one miner.

    Attributes:
        examined: candidates that were looked at.
        kept: negatives for each window.
        dropped: candidates for each of `REASONS`.
        short: queries that got fewer negatives than the windows ask for.
        positive_ranks: queries whose positive is at rank 1, within 10, and ranked at all down to the last window.
    """

    examined: int = 0
    kept: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    short: int = 0
    positive_ranks: Counter[str] = field(default_factory=Counter)


@dataclass
class _Search:
    """One query and one window: its candidates in the order of the draw, and how far it has come."""

    query: int
    window: RankWindow
    candidates: NDArray[np.int32]
    ranks: NDArray[np.int64]
    place: int = 0
    drawn: int = 0

    @property
    def is_open(self) -> bool:
        return self.drawn < self.window.count and self.place < len(self.candidates)


@dataclass(frozen=True)
class Negative:
    """A passage that was drawn, at its rank (from 1), with the judge's score if there is one."""

    passage: int
    rank: int
    score: float | None


def draw_negatives(
    queries: Sequence[int],
    rankings: Sequence[NDArray[np.int32]],
    positives: NDArray[np.int32],
    answers: Callable[[int], set[int]],
    drawn: dict[int, list[Negative]],
    overlap: WordOverlap | None,
    rules: Rules,
    tally: Tally,
    draw: int = 0,
) -> None:
    """Draw negatives of some queries from one ranking each, and add them to `drawn`.

    Within a window candidates come in random order, the same for the same seed, query and `draw`, whatever other
    queries there are. Judged are no more candidates than needed: those that would be taken, and then others in the
    place of those thrown out.

    Args:
        queries: numbers of the queries.
        rankings: of each, passages with the best first.
        positives: the positive of every query of the training set.
        answers: the passages that answer a query.
        drawn: negatives of each query so far; extended.
        overlap: words of the passages; None if copies are not looked for.
        tally: counts what is kept and thrown out; extended.
        draw: number of the ranking, where there are several for a query.
    """
    taken = {query: {negative.passage for negative in drawn[query]} for query in queries}
    searches = []
    for query, ranking in zip(queries, rankings, strict=True):
        _count_positive(ranking, int(positives[query]), tally)
        generator = np.random.default_rng([rules.seed, draw, query])
        for window in rules.windows:
            candidates = ranking[window.first - 1 : window.last]
            order = generator.permutation(len(candidates))
            searches.append(_Search(query, window, candidates[order], window.first + order))
    positive_scores: dict[int, float] = {}
    while open_searches := [search for search in searches if search.is_open]:
        asked = list(_next_candidates(open_searches, answers, taken, tally))
        kept = _kept(asked, positives, overlap, rules, tally, positive_scores)
        for (search, passage, rank), score in zip(asked, kept, strict=True):
            if score is not None:
                search.drawn += 1
                tally.kept[str(search.window)] += 1
                value = None if rules.judge is None else score
                drawn[search.query].append(Negative(passage, rank, value))
    wanted = sum(window.count for window in rules.windows)
    found: Counter[int] = Counter()
    for search in searches:
        found[search.query] += search.drawn
    tally.short += sum(found[query] < wanted for query in queries)


def _count_positive(ranking: NDArray[np.int32], positive: int, tally: Tally) -> None:
    (ranks,) = np.nonzero(ranking == positive)
    if len(ranks):
        tally.positive_ranks["ranked"] += 1
        tally.positive_ranks["at 1"] += int(ranks[0] == 0)
        tally.positive_ranks["within 10"] += int(ranks[0] < 10)


def _next_candidates(
    searches: Sequence[_Search], answers: Callable[[int], set[int]], taken: dict[int, set[int]], tally: Tally
) -> Iterator[tuple[_Search, int, int]]:
    """For every search as many candidates as it lacks, without those that numbers alone rule out."""
    for search in searches:
        right = answers(search.query)
        lacking = search.window.count - search.drawn
        while lacking and search.place < len(search.candidates):
            passage, rank = int(search.candidates[search.place]), int(search.ranks[search.place])
            search.place += 1
            tally.examined += 1
            if passage in right:
                tally.dropped[ANSWER] += 1
            elif passage in taken[search.query]:
                tally.dropped[DRAWN] += 1
            else:
                taken[search.query].add(passage)
                lacking -= 1
                yield search, passage, rank


def _kept(
    asked: Sequence[tuple[_Search, int, int]],
    positives: NDArray[np.int32],
    overlap: WordOverlap | None,
    rules: Rules,
    tally: Tally,
    positive_scores: dict[int, float],
) -> list[float | None]:
    """The score of each candidate that is a negative (0 without a judge), None for one that is not."""
    scores: list[float | None] = [0.0] * len(asked)
    queries = np.array([search.query for search, _, _ in asked], np.int64)
    passages = np.array([passage for _, passage, _ in asked], np.int64)
    if overlap is not None and len(asked):
        for place in np.flatnonzero(overlap.jaccard(passages, positives[queries]) >= rules.overlap).tolist():
            scores[place] = None
            tally.dropped[COPY] += 1
    if rules.judge is None:
        return scores
    places = np.array([place for place, score in enumerate(scores) if score is not None], np.int64)
    if not len(places):
        return scores
    new = np.array(sorted({*queries[places].tolist()} - positive_scores.keys()), np.int64)
    judged = rules.judge.pair_scores(
        np.concatenate([new, queries[places]]), np.concatenate([positives[new], passages[places]])
    )
    positive_scores.update(zip(new.tolist(), judged[: len(new)].tolist(), strict=True))
    for place, score in zip(places.tolist(), judged[len(new) :].tolist(), strict=True):
        scores[place] = score
        if score > positive_scores[int(queries[place])] - rules.margin:
            scores[place] = None
            tally.dropped[FALSE_NEGATIVE] += 1
    return scores

"""Which queries and passages each step sees: decided by the seed and the number of the batch alone.

So a training that goes on from a checkpoint sees what it would have seen, and nothing about the order is saved.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from retrieval.training.combine import ensemble_scores
from retrieval.training.recipe import Recipe
from retrieval.training.training_set import TrainingSet
from runtime.errors import UsageError


@dataclass(frozen=True, eq=False)
class TrainingBatch:
    """One batch, in numbers of queries and passages of the training set.

    Attributes:
        queries: int64 ``[q]``.
        passages: int64 ``[p]``, ascending and distinct: positives and drawn negatives.
        listed: int64 ``[q, n]``, columns in `passages` of each query's positive and negatives; -1 for none.
        known: bool ``[q, p]``, passages that answer the query by some pair of the set.
        listed_scores: float32 ``[q, n]`` of the training set's teachers, where the recipe needs them.
        batch_scores: float32 ``[q, p]`` in [0, 1], of its bi-encoders, likewise.
    """

    queries: NDArray[np.int64]
    passages: NDArray[np.int64]
    listed: NDArray[np.int64]
    known: NDArray[np.bool_]
    listed_scores: NDArray[np.float32] | None = None
    batch_scores: NDArray[np.float32] | None = None


class TrainingBatches:
    """The batches of a training, by number.

    Args:
        data: what is trained on.
        recipe: with what.

    Raises:
        UsageError: the recipe needs scores, teachers, negatives or groups that the set does not have, or a batch has
            more queries than the set.
    """

    def __init__(self, data: TrainingSet, recipe: Recipe) -> None:
        self._data, self._recipe, self._settings = data, recipe, recipe.batch
        self._needs_listed = any(
            loss.kind == "margin_mse" or (loss.kind == "kl" and loss.over == "listed")
            for loss in recipe.losses
        )
        self._needs_batch = any(loss.kind == "kl" and loss.over == "batch" for loss in recipe.losses)
        self._require(recipe)
        self._per_epoch = len(data) // self._settings.queries
        # One text may be asked several times, with other answers: none of them is a negative of it.
        numbers: dict[str, int] = {}
        self._texts = np.array([numbers.setdefault(text, len(numbers)) for text in data.queries], np.int64)
        answers: dict[int, list[int]] = {}
        for number, passage in zip(self._texts.tolist(), data.positives.tolist(), strict=True):
            answers.setdefault(number, []).append(passage)
        self._answers = {number: np.unique(found) for number, found in answers.items()}
        self._epoch = lru_cache(maxsize=1)(self._order)

    def __getitem__(self, number: int) -> TrainingBatch:
        """The batch of this number, from 0 on without an end."""
        data, settings = self._data, self._settings
        epoch, place = divmod(number, self._per_epoch)
        queries = self._epoch(epoch)[place * settings.queries :][: settings.queries]
        draw = np.random.default_rng([self._recipe.seed, 1, number])
        chosen = []  # per query the places of its drawn negatives in its list
        for query in queries:
            among = len(data.negatives[query])
            among = min(among, settings.negatives_from or among)
            picked = draw.permutation(among)[: settings.negatives]
            chosen.append(np.sort(picked))
        width = 1 + max(len(picked) for picked in chosen)
        numbers = np.full((len(queries), width), -1, np.int64)
        scores = np.zeros((len(queries), width), np.float32)
        for row, (query, picked) in enumerate(zip(queries, chosen, strict=True)):
            numbers[row, 0] = data.positives[query]
            numbers[row, 1 : 1 + len(picked)] = data.negatives[query][picked]
            if self._needs_listed and data.scores is not None:
                scores[row, 0] = data.scores[query][0]
                scores[row, 1 : 1 + len(picked)] = data.scores[query][1 + picked]
        passages = np.unique(numbers[numbers >= 0])
        listed = np.where(numbers >= 0, np.searchsorted(passages, numbers), -1)
        return TrainingBatch(
            queries,
            passages,
            listed,
            self._known(queries, passages),
            scores if self._needs_listed else None,
            ensemble_scores(data.teachers, queries, passages) if self._needs_batch else None,
        )

    def _order(self, epoch: int) -> NDArray[np.int64]:
        """Queries of an epoch, those of each batch beside each other."""
        draw = np.random.default_rng([self._recipe.seed, 0, epoch])
        order = draw.permutation(len(self._data))
        if not self._settings.topics or self._data.groups is None:
            return order
        size = self._settings.queries // self._settings.topics
        groups = self._data.groups[order]
        by_topic = order[np.argsort(groups, kind="stable")]
        starts = np.flatnonzero(np.diff(np.sort(groups), prepend=groups.min() - 1))
        shares, left = [], []
        for members in np.split(by_topic, starts[1:]):
            full = len(members) // size * size
            shares += list(members[:full].reshape(-1, size))
            left.append(members[full:])
        rest = np.concatenate(left)
        rest = rest[: len(rest) // size * size]  # of neighbouring topics, and still by topic
        shares += list(rest.reshape(-1, size))
        return np.concatenate([shares[i] for i in draw.permutation(len(shares))])

    def _known(self, queries: NDArray[np.int64], passages: NDArray[np.int64]) -> NDArray[np.bool_]:
        known = np.zeros((len(queries), len(passages)), bool)
        for row, text in enumerate(self._texts[queries].tolist()):
            answers = self._answers[text]
            columns = np.searchsorted(passages, answers)
            columns = columns[np.append(passages, -1)[columns] == answers]
            known[row, columns] = True
        return known

    def _require(self, recipe: Recipe) -> None:
        data, batch = self._data, recipe.batch
        if len(data) < batch.queries:
            raise UsageError(
                f"a batch takes {batch.queries} queries, but the training set has {len(data)}; "
                "give more pairs, or a smaller batch.queries"
            )
        if self._needs_listed and data.scores is None:
            raise UsageError(
                f"the recipe {recipe.name} learns from scores of listed passages, which the training set does not "
                "have; add them with: lexpert train teach"
            )
        if self._needs_batch and not data.teachers:
            raise UsageError(
                f"the recipe {recipe.name} learns from bi-encoder teachers, of which the training set has none; "
                "add one with: lexpert train teach"
            )
        listed = any(loss.kind != "contrastive" and loss.over == "listed" for loss in recipe.losses)
        if listed and not any(len(negatives) for negatives in data.negatives):
            raise UsageError(
                f"the recipe {recipe.name} compares with listed negatives, but the training set has none; "
                "add them with: lexpert train mine"
            )
        if batch.topics and data.groups is None:
            raise UsageError(
                "batches by topic need the training set's queries in groups, and it has none; "
                "make them with lexpert train mine, or set batch.topics=0"
            )

"""Batches: which queries meet."""

from __future__ import annotations

import numpy as np
import pytest

from retrieval.training.batches import TrainingBatches
from retrieval.training.recipe import Recipe
from retrieval.training.training_set import TrainingSet


def recipe(queries: int, topics: int) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "test",
            "reproduces": "nothing",
            "batch": {"queries": queries, "topics": topics, "negatives": 0},
            "losses": [{"kind": "contrastive"}],
        }
    )


def data(groups: list[int]) -> TrainingSet:
    count = len(groups)
    return TrainingSet(
        [f"query {i}" for i in range(count)],
        [f"passage {i}" for i in range(count)],
        np.arange(count, dtype=np.int32),
        [np.zeros(0, np.int32)] * count,
        groups=np.array(groups, np.int32),
    )


@pytest.mark.parametrize("topics", [1, 2, 4])
def test_a_batch_has_as_many_queries_of_each_of_its_topics(topics: int) -> None:
    groups = np.repeat(np.arange(10), 16)
    batches = TrainingBatches(data(groups.tolist()), recipe(8, topics))
    epoch = [batches[number].queries for number in range(20)]
    assert sorted(np.concatenate(epoch).tolist()) == list(range(160))
    for queries in epoch:
        shares = groups[queries].reshape(topics, 8 // topics)
        assert (shares == shares[:, :1]).all()
    assert len({tuple(sorted(set(groups[queries].tolist()))) for queries in epoch}) > 5


def test_topics_that_do_not_fill_a_share_lose_none_of_their_queries() -> None:
    groups = [0] * 5 + [1] * 3 + [2] * 7 + [3]
    batches = TrainingBatches(data(groups), recipe(4, 2))
    seen = np.concatenate([batches[number].queries for number in range(4)])
    assert sorted(seen.tolist()) == list(range(16))


def test_all_answers_of_a_text_are_known_and_nothing_else() -> None:
    draw = np.random.default_rng(0)
    asked = draw.integers(0, 6, 40)  # so that each text comes several times, with other answers
    positives = draw.integers(0, 25, 40).astype(np.int32)
    given = TrainingSet(
        [f"query {text}" for text in asked],
        [f"passage {i}" for i in range(25)],
        positives,
        [draw.permutation(25)[:3].astype(np.int32) for _ in asked],
    )
    answers = set(zip(asked.tolist(), positives.tolist(), strict=True))
    described = recipe(10, 0).changed({"batch.negatives": 2})
    batches = TrainingBatches(given, described)
    for number in range(8):
        batch = batches[number]
        obvious = [
            [(asked[query], passage) in answers for passage in batch.passages] for query in batch.queries
        ]
        assert batch.known.tolist() == obvious
        assert batch.known[np.arange(10), batch.listed[:, 0]].all()


def test_no_topics_mix_all() -> None:
    groups = np.repeat([0, 1], 50)
    batches = TrainingBatches(data(groups.tolist()), recipe(20, 0))
    assert all(len(set(groups[batches[number].queries].tolist())) == 2 for number in range(5))


def test_queries_are_shared_out_evenly_or_not_at_all() -> None:
    with pytest.raises(ValueError, match="20 queries of a batch cannot be shared out among 3 topics"):
        recipe(20, 3)

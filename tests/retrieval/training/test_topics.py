from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval.training.topics import find_topics
from runtime.errors import UsageError


@given(rows=st.integers(1, 40), data=st.data(), seed=st.integers(0, 50))
def test_every_topic_has_a_query_and_no_query_would_rather_be_elsewhere(
    rows: int, data: st.DataObject, seed: int
) -> None:
    topics = data.draw(st.integers(1, rows))
    vectors = np.random.default_rng(seed).normal(size=(rows, 4)).astype(np.float16)
    found = find_topics(vectors, topics, seed)
    assert found.dtype == np.int32
    assert sorted(set(found.tolist())) == list(range(topics))
    assert found.tolist() == find_topics(vectors, topics, seed).tolist()
    units = vectors.astype(np.float64) / np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    centres = np.array([units[found == topic].mean(axis=0) for topic in range(topics)])
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    cosines = units @ centres.T
    assert np.all(cosines[np.arange(rows), found] >= cosines.max(axis=1) - 1e-4)


def test_groups_apart_are_found() -> None:
    rng = np.random.default_rng(0)
    directions = np.eye(6)[:3] * 5
    vectors = np.concatenate([direction + rng.normal(scale=0.1, size=(20, 6)) for direction in directions])
    # The length of a vector does not count.
    vectors *= rng.uniform(0.2, 3, size=(60, 1))
    found = find_topics(vectors, 3, seed=1).reshape(3, 20)
    assert all(len(set(group.tolist())) == 1 for group in found)


def test_vectors_of_one_place_and_of_none_are_spread_over_topics() -> None:
    assert sorted(find_topics(np.ones((3, 2)), 3).tolist()) == [0, 1, 2]
    assert sorted(find_topics(np.zeros((3, 2)), 2).tolist())[0] == 0


@pytest.mark.parametrize("topics", [0, 4])
def test_more_topics_than_queries_are_refused(topics: int) -> None:
    with pytest.raises(UsageError, match="between 1 and the 3 queries"):
        find_topics(np.ones((3, 2)), topics)

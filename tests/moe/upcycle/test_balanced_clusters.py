"""Balanced assignment against the greedy one that defines it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from moe.upcycle.balanced_clusters import balanced_assignment, balanced_clusters
from tests.oracles.balanced_assignment import nearest_pairs_first


@given(
    arrays(
        np.float32, array_shapes(min_dims=2, max_dims=2, max_side=9), elements=st.integers(0, 4).map(float)
    )
)
def test_balanced_assignment_takes_the_nearest_pairs_first(distances: np.ndarray) -> None:
    assert balanced_assignment(distances).tolist() == nearest_pairs_first(distances)


@pytest.mark.parametrize(("points", "clusters"), [(12, 4), (13, 4), (5, 5), (6, 1)])
def test_clusters_have_the_same_size(points: int, clusters: int) -> None:
    drawn = np.random.default_rng(0).normal(size=(points, 3)).astype(np.float32)
    sizes = np.bincount(balanced_clusters(drawn, clusters, 0), minlength=clusters)
    assert sizes.max() - sizes.min() <= 1


def test_clusters_that_are_there_are_found() -> None:
    centres = np.eye(4, dtype=np.float32) * 10
    points = np.repeat(centres, 25, 0) + np.random.default_rng(1).normal(size=(100, 4)).astype(np.float32)
    clusters = balanced_clusters(points, 4, 0).reshape(4, 25)
    assert (clusters == clusters[:, :1]).all()
    assert len(set(clusters[:, 0].tolist())) == 4


def test_equal_points_are_shared_out() -> None:
    assert np.bincount(balanced_clusters(np.zeros((8, 2), np.float32), 4, 0)).tolist() == [2, 2, 2, 2]

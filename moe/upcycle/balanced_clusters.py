"""Clusters of equal size: k-means whose clusters take the same number of points each."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

ROUNDS = 10
"""Most rounds of assignment and averaging; clusters hardly change after a few."""


def balanced_clusters(points: NDArray[np.float32], num_clusters: int, seed: int) -> NDArray[np.int64]:
    """The cluster of each point, all clusters of the same size, or one apart where that does not divide.

    Lloyd's rounds from centres that are drawn far apart (k-means++), with `balanced_assignment` in place of the
    nearest centre.

    Args:
        points: ``[points, width]`` float32, at least as many as clusters.
        seed: of the first centres.

    Returns:
        int64 ``[points]``, from 0 to ``num_clusters - 1``.
    """
    centres = _spread_centres(points, num_clusters, np.random.default_rng(seed))
    clusters = np.full(len(points), -1, np.int64)
    for _ in range(ROUNDS):
        before, clusters = clusters, balanced_assignment(_squared_distances(points, centres))
        if np.array_equal(before, clusters):
            break
        sizes = np.bincount(clusters, minlength=num_clusters)
        order = np.argsort(clusters, kind="stable")
        sums = np.add.reduceat(points[order], np.cumsum(sizes) - sizes, axis=0)
        centres = (sums / sizes[:, None]).astype(np.float32)
    return clusters


def balanced_assignment(distances: NDArray[np.float32]) -> NDArray[np.int64]:
    """Assign points to clusters with room for ``⌈points / clusters⌉`` each, nearest pairs first.

    What going through all pairs in ascending order of distance gives (equal ones by lower point, then lower
    cluster), taking each whose point is free and whose cluster has room. It is computed as a stable matching,
    which is the same thing when both sides prefer by the same distances: every free point asks its nearest
    cluster that has not turned it down, and each cluster keeps the nearest that asked.

    Where the points do not divide, ``points mod clusters`` of the clusters take one more.

    Args:
        distances: ``[points, clusters]``.

    Returns:
        int64 ``[points]``.
    """
    num_points, num_clusters = distances.shape
    preferences = np.argsort(distances, axis=1, kind="stable")
    room = np.full(num_clusters, num_points // num_clusters)
    room[: num_points % num_clusters] += 1
    asked = np.zeros(num_points, np.int64)  # how many clusters have turned each point down
    while True:
        choice = preferences[np.arange(num_points), asked]
        price = distances[np.arange(num_points), choice]
        order = np.lexsort((price, choice))
        sizes = np.bincount(choice, minlength=num_clusters)
        place = np.empty(num_points, np.int64)
        place[order] = np.arange(num_points) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        refused = place >= room[choice]
        if not refused.any():
            return choice
        asked[refused] += 1


def _squared_distances(points: NDArray[np.float32], centres: NDArray[np.float32]) -> NDArray[np.float32]:
    return (centres**2).sum(1) - 2 * points @ centres.T + (points**2).sum(1, keepdims=True)


def _spread_centres(
    points: NDArray[np.float32], num_clusters: int, generator: np.random.Generator
) -> NDArray[np.float32]:
    """Points drawn one after the other, with a chance in proportion to the squared distance to the nearest."""
    chosen = [int(generator.integers(len(points)))]
    nearest = np.full(len(points), np.inf, np.float32)
    while len(chosen) < num_clusters:
        nearest = np.minimum(nearest, _squared_distances(points, points[chosen[-1:]])[:, 0].clip(0))
        nearest[chosen] = 0
        total = float(nearest.sum(dtype=np.float64))
        if total > 0:
            chosen.append(int(generator.choice(len(points), p=nearest.astype(np.float64) / total)))
        else:  # all other points lie on a centre
            chosen.append(int(np.setdiff1d(np.arange(len(points)), chosen)[0]))
    return points[chosen]

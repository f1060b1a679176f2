"""Balanced assignment the slow and obvious way."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def nearest_pairs_first(distances: NDArray[np.float32]) -> list[int]:
    """Go through all pairs of a point and a cluster, nearest first; take those that are still possible."""
    points, clusters = distances.shape
    room = [points // clusters + (cluster < points % clusters) for cluster in range(clusters)]
    chosen = [-1] * points
    pairs = sorted((distances[p, c], p, c) for p in range(points) for c in range(clusters))
    for _, point, cluster in pairs:
        if chosen[point] < 0 and room[cluster] > 0:
            chosen[point] = cluster
            room[cluster] -= 1
    return chosen

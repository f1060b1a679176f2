"""A training step by step, as a PNG file: loss, nDCG, active terms and FLOPS."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from runtime.pictures import (
    BLUE,
    GREY,
    ORANGE,
    draw_steps,
    finish_steps,
    new_figure,
    save_figure,
    scale_by_powers,
)
from runtime.step_log import Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_training(records: Sequence[Record], title: str, path: Path) -> None:
    """Draw the figures of the step log of `retrieval.training`.

    Raises:
        NotFoundError: matplotlib is not installed.
    """
    steps = [record for record in records if "loss" in record]
    figure = new_figure(title, 10, 6.8)
    loss, quality, active, flops = (figure.add_subplot(2, 2, place) for place in range(1, 5))
    draw_steps(loss, steps, "loss", GREY, alpha=0.35)
    _smooth(loss, steps, "loss", BLUE, "mean of the last steps")
    finish_steps(loss, "loss, with penalties")
    collections = sorted({name for record in records for name in record if name.startswith("ndcg@10 ")})
    for name in collections:
        draw_steps(quality, records, name, GREY, name.removeprefix("ndcg@10 "), marker=".")
    draw_steps(quality, records, "ndcg@10", ORANGE, "mean", marker="o")
    finish_steps(quality, "nDCG@10")
    if not any("ndcg@10" in record for record in records):
        quality.text(0.5, 0.5, "not evaluated", ha="center", color=GREY, transform=quality.transAxes)
    _smooth(active, steps, "active_queries", ORANGE, "of queries")
    _smooth(active, steps, "active_passages", BLUE, "of passages")
    scale_by_powers(active)
    finish_steps(active, "active terms")
    _smooth(flops, steps, "flops", BLUE, None)
    scale_by_powers(flops)
    finish_steps(flops, "FLOPS: products of a query with a passage")
    save_figure(figure, path)


def _smooth(axes: Axes, records: Sequence[Record], name: str, colour: str, label: str | None) -> None:
    """Means over a fiftieth of the steps before each."""
    points = [(record["step"], record[name]) for record in records if name in record]
    if not points:
        return
    steps, values = (np.array(column, np.float64) for column in zip(*points, strict=True))
    width = max(1, len(values) // 50)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    starts = np.maximum(np.arange(1, len(sums)) - width, 0)
    means = (sums[1:] - sums[starts]) / (np.arange(1, len(sums)) - starts)
    axes.plot(steps, means, color=colour, label=label, linewidth=1.5)

"""A training step by step, as a PNG file: loss, nDCG, active terms and FLOPS."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from runtime.errors import NotFoundError
from runtime.step_log import Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Colours that people with the common colour blindnesses tell apart, and that survive a grey printer.
BLUE, ORANGE, GREY, INK = "#2a6f97", "#d1663b", "#9aa3ab", "#22282d"


def plot_training(records: Sequence[Record], title: str, path: Path) -> None:
    """Draw the figures of the step log of `retrieval.training`.

    Raises:
        NotFoundError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise NotFoundError(
            "pictures need matplotlib, which is not installed; run: pip install 'lexpert[eval]'"
        ) from None
    steps = [record for record in records if "loss" in record]
    figure = Figure(figsize=(10, 6.8), layout="constrained", dpi=130)
    figure.suptitle(title, x=0.01, ha="left", fontsize=12, color=INK)
    loss, quality, active, flops = (figure.add_subplot(2, 2, place) for place in range(1, 5))
    _line(loss, steps, "loss", GREY, None, alpha=0.35)
    _smooth(loss, steps, "loss", BLUE, "mean of the last steps")
    _finish(loss, "loss, with penalties")
    collections = sorted({name for record in records for name in record if name.startswith("ndcg@10 ")})
    for name in collections:
        _line(quality, records, name, GREY, name.removeprefix("ndcg@10 "), marker=".")
    _line(quality, records, "ndcg@10", ORANGE, "mean", marker="o")
    _finish(quality, "nDCG@10")
    if not any("ndcg@10" in record for record in records):
        quality.text(0.5, 0.5, "not evaluated", ha="center", color=GREY, transform=quality.transAxes)
    _smooth(active, steps, "active_queries", ORANGE, "of queries")
    _smooth(active, steps, "active_passages", BLUE, "of passages")
    active.set_yscale("log")
    _finish(active, "active terms")
    _smooth(flops, steps, "flops", BLUE, None)
    flops.set_yscale("log")
    _finish(flops, "FLOPS: products of a query with a passage")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    figure.savefig(partial, format="png", facecolor="white")
    partial.rename(path)


def _line(
    axes: Axes, records: Sequence[Record], name: str, colour: str, label: str | None, **style: Any
) -> None:
    points = [(record["step"], record[name]) for record in records if name in record]
    if points:
        axes.plot(*zip(*points, strict=True), color=colour, label=label, linewidth=1.3, markersize=5, **style)


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


def _finish(axes: Axes, title: str) -> None:
    axes.set_title(title, loc="left", fontsize=10, color=INK)
    axes.set_xlabel("step", fontsize=9)
    axes.grid(axis="y", color="#e4e8eb", linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=8)

"""Recall against latency, a line for each engine, as a PNG file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from evals.plots import BLUE, GREY, INK, ORANGE
from evals.search_bench.comparison import Comparison, Measurement
from evals.search_bench.engines.catalogue import OURS
from evals.search_bench.front import pareto_front
from runtime.errors import NotFoundError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = {
    OURS: ORANGE, "seismic": BLUE, "lucene": INK, "sindi": "#5a9367", "kannolo": "#8c6bb1", "bm25s": GREY,
    "scipy": "#b8a23a",
}  # fmt: skip
LOWEST = 0.8
TICKS = (0.8, 0.85, 0.9, 0.95, 0.97, 0.99, 0.995, 0.999, 1.0)
END = 1.002


def plot_comparison(found: Comparison, path: Path) -> None:
    """Draw the Pareto front of each engine: recall of the exact top k across, median µs of a query up.

    Raises:
        NotFoundError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise NotFoundError(
            "pictures need matplotlib, which is not installed; run: pip install 'lexpert[eval]', or leave out --plot"
        ) from None
    depths = sorted({row.k for row in found.measurements})
    figure = Figure(figsize=(1.2 + 5.6 * len(depths), 5.2), layout="constrained", dpi=150)
    figure.suptitle(
        f"{found.documents:,} documents, one core",
        x=0.01,
        ha="left",
        fontsize=12,
        color=INK,
    )
    for place, k in enumerate(depths):
        axes = figure.add_subplot(1, len(depths), place + 1)
        _draw(axes, [row for row in found.measurements if row.k == k], k)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png", facecolor="white")


def _stretched(recall: NDArray[np.float64]) -> NDArray[np.float64]:
    return -np.log(END - np.minimum(recall, 1.0015))


def _recall(stretched: NDArray[np.float64]) -> NDArray[np.float64]:
    return END - np.exp(-stretched)


def _draw(axes: Axes, rows: list[Measurement], k: int) -> None:
    from matplotlib.ticker import NullLocator, ScalarFormatter

    lowest = 1.0
    for engine in dict.fromkeys(row.engine for row in rows):
        points = {(row.recall, row.rate): row.median_us for row in rows if row.engine == engine}
        front = [point for point in pareto_front(points) if point[0] >= LOWEST]
        if not front:
            continue
        across, up = [recall for recall, _ in front], [points[point] for point in front]
        lowest = min(lowest, across[0])
        width = 2.4 if engine == OURS else 1.4
        axes.plot(
            across,
            up,
            marker="o",
            markersize=2.4 * width,
            linewidth=width,
            color=COLOURS[engine],
            label=engine,
        )
    # The last per cent are where engines differ: an even axis would squeeze them together.
    axes.set_xscale("function", functions=(_stretched, _recall))
    ticks = [tick for tick in TICKS if tick >= lowest - 0.05]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlim(ticks[0], 1.0005)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(ScalarFormatter())
    axes.yaxis.set_minor_formatter(ScalarFormatter())
    axes.tick_params(axis="y", which="minor", labelsize=7)
    axes.set(xlabel=f"share of the exact top {k}", ylabel="µs a query, median")
    axes.grid(axis="y", which="both", color="#e4e8eb", linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.set_title(f"k = {k}; lower is better", loc="left", fontsize=10, color=INK)
    axes.legend(frameon=False, fontsize=9)

"""Pictures of evaluations, as PNG files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from evals.comparison import Comparison
from evals.metrics import MEASURES
from runtime.errors import NotFoundError
from runtime.pictures import BLUE, GREY, INK, ORANGE, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from evals.report import Report

MEASURE = "nDCG@10"
"""The measure that is shown query by query."""


def plot_report(report: Report, path: Path) -> None:
    """Draw the means of all measures, and how nDCG@10 is spread over the queries."""
    figure, (left, right) = _figure(2, widths=(1, 1.35))
    _title(
        figure,
        f"{report.encoder} on {report.collection}/{report.split}",
        f"{report.queries:,} queries"
        + (f" over {report.documents:,} documents" if report.documents is not None else ""),
    )
    _bars(left, [report.metrics[name] for name in MEASURES])
    values = np.array([row[MEASURE] for row in report.per_query.values()])
    _histogram(right, values, report.metrics[MEASURE])
    save_figure(figure, path)


def plot_reports(reports: Sequence[Report], path: Path) -> None:
    """Draw nDCG@10 and R@100 of several collections side by side, with their mean."""
    figure, (axes,) = _figure(1, height=1.6 + 0.42 * (len(reports) + 1))
    _title(figure, f"{reports[0].encoder} on {len(reports)} collections", "bars: nDCG@10; marks: R@100")
    ordered = sorted(reports, key=lambda report: report.metrics[MEASURE])
    names = ["mean", *(f"{report.collection}/{report.split}" for report in ordered)]
    values = [report.metrics[MEASURE] for report in ordered]
    recalls = [report.metrics["R@100"] for report in ordered]
    values, recalls = [float(np.mean(values)), *values], [float(np.mean(recalls)), *recalls]
    places = np.arange(len(names))
    axes.barh(places, values, color=[ORANGE] + [BLUE] * len(ordered), height=0.68)
    axes.scatter(recalls, places, marker="|", s=160, linewidths=2, color=INK, zorder=3)
    for place, value in enumerate(values):
        colour = "white" if value > 0.08 else INK
        axes.text(0.01, place, f"{value:.3f}", va="center", color=colour, fontsize=9, fontweight="bold")
    axes.set_yticks(places, names)
    axes.set_xlim(0, 1)
    axes.tick_params(axis="y", length=0)
    save_figure(figure, path)


def plot_comparison(comparison: Comparison, name_a: str, name_b: str, path: Path) -> None:
    """Draw the difference of nDCG@10 for each query, sorted, and the mean difference of each measure."""
    figure, (left, right) = _figure(2, widths=(1.9, 1))
    _title(figure, f"{name_b} against {name_a}", f"{len(comparison.queries):,} queries")
    row = next(found for found in comparison.measures if found.measure == MEASURE)
    differences = np.sort(comparison.differences[MEASURE])[::-1]
    places = np.arange(len(differences))
    for part, colour in ((differences > 0, BLUE), (differences < 0, ORANGE)):
        left.fill_between(
            np.repeat(np.append(places, len(places)), 2)[1:-1] if len(places) else [],
            np.repeat(np.where(part, differences, 0.0), 2),
            color=colour,
            linewidth=0,
        )
    left.axhline(0, color=INK, linewidth=0.8)
    limit = max(0.05, float(np.abs(differences).max()) * 1.15)
    left.set(xlim=(0, len(differences)), ylim=(-limit, limit))
    left.set_xlabel("queries, from the largest gain to the largest loss")
    left.set_ylabel(f"difference in {MEASURE}")
    left.text(0.02, 0.95, f"{name_b} better: {row.wins:,}", transform=left.transAxes, color=BLUE, va="top")
    left.text(
        0.98, 0.05, f"{name_a} better: {row.losses:,}", transform=left.transAxes, color=ORANGE, ha="right"
    )
    left.text(0.98, 0.95, f"equal: {row.ties:,}", transform=left.transAxes, color=GREY, ha="right", va="top")
    _difference_bars(right, comparison)
    save_figure(figure, path)


def _figure(panels: int, height: float = 4.4, widths: Sequence[float] = (1,)) -> tuple[Figure, list[Axes]]:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise NotFoundError(
            "plots need matplotlib; run: pip install 'lexpert[eval]', or leave them out with --no-plot"
        ) from None
    # Not pyplot: it keeps every figure in a global list and may ask for a display.
    figure = Figure(figsize=(10 if panels > 1 else 7.5, height), dpi=150)
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(1, panels, width_ratios=list(widths))
    axes = [figure.add_subplot(grid[0, column]) for column in range(panels)]
    for panel in axes:
        panel.spines[["top", "right"]].set_visible(False)
        panel.spines[["left", "bottom"]].set_color(GREY)
        panel.tick_params(colors=INK, labelsize=9)
        panel.xaxis.label.set_color(INK)
        panel.yaxis.label.set_color(INK)
    return figure, axes


def _title(figure: Figure, title: str, below: str) -> None:
    height = figure.get_figheight()  # inches, so that the head looks the same on figures of any height
    figure.text(0.012, 1 - 0.1 / height, title, va="top", fontsize=13, fontweight="bold", color=INK)
    figure.text(0.012, 1 - 0.36 / height, below, va="top", fontsize=9.5, color="#5c666e")
    figure.set_layout_engine("constrained", rect=(0.008, 0, 0.984, 1 - 0.62 / height))


def _bars(axes: Axes, values: list[float]) -> None:
    places = np.arange(len(values))[::-1]
    axes.barh(places, [1] * len(values), color="#edf0f2", height=0.62)
    axes.barh(places, values, color=[ORANGE if name == MEASURE else BLUE for name in MEASURES], height=0.62)
    for place, value in zip(places, values, strict=True):
        inside = value > 0.2
        axes.text(
            value + (-0.02 if inside else 0.02),
            place,
            f"{value:.3f}",
            va="center",
            ha="right" if inside else "left",
            color="white" if inside else INK,
            fontsize=10,
            fontweight="bold",
        )
    axes.set_yticks(places, list(MEASURES))
    axes.set_xlim(0, 1)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.set_title("mean over the queries", loc="left", fontsize=10, color=INK)


def _histogram(axes: Axes, values: Any, average: float) -> None:
    # The ends stand apart: a query that failed and one that is perfect are what a reader looks for.
    inner = values[(values > 0) & (values < 1 - 1e-9)]
    counts, edges = np.histogram(inner, bins=10, range=(0, 1))
    zero, one = int((values <= 0).sum()), int((values >= 1 - 1e-9).sum())
    centres = [-0.08, *((edges[:-1] + edges[1:]) / 2), 1.08]
    heights = [zero, *counts, one]
    axes.bar(centres, heights, width=0.09, color=[GREY, *[ORANGE] * len(counts), BLUE])
    for centre, height in zip(centres, heights, strict=True):
        if height:
            axes.text(centre, float(height), f"{height:,}", ha="center", va="bottom", fontsize=8.5, color=INK)
    axes.axvline(average, color=INK, linewidth=1, linestyle=(0, (4, 3)))
    axes.text(
        average,
        max(heights) * 1.13,
        f" mean {average:.3f}",
        ha="left" if average < 0.7 else "right",
        va="top",
        fontsize=9,
        color=INK,
    )
    ticks = [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    axes.set_xticks([-0.08, *ticks[1:-1], 1.08], ["0", *(f"{tick:.1f}" for tick in ticks[1:-1]), "1"])
    axes.set(
        xlim=(-0.15, 1.15), ylim=(0, max(heights) * 1.15), xlabel=f"{MEASURE} of a query", ylabel="queries"
    )
    axes.set_title(f"{MEASURE} query by query", loc="left", fontsize=10, color=INK)


def _difference_bars(axes: Axes, comparison: Comparison) -> None:
    places = np.arange(len(comparison.measures))[::-1]
    values = [row.difference for row in comparison.measures]
    axes.barh(places, values, color=[BLUE if value >= 0 else ORANGE for value in values], height=0.5)
    limit = max(0.005, max(abs(value) for value in values)) * 2.1
    for place, row in zip(places, comparison.measures, strict=True):
        rises = row.difference >= 0
        axes.text(
            row.difference + (limit * 0.03 if rises else -limit * 0.03),
            place,
            f"{row.difference:+.3f}\np {row.p_value:.3f}"
            if row.p_value >= 5e-4
            else f"{row.difference:+.3f}\np < .001",
            va="center",
            ha="left" if rises else "right",
            fontsize=8.5,
            color=INK,
        )
    axes.axvline(0, color=INK, linewidth=0.8)
    axes.set_yticks(places, [row.measure for row in comparison.measures])
    axes.set_xlim(-limit, limit)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.set_title("difference of the means", loc="left", fontsize=10, color=INK)

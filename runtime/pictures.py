"""What pictures have in common: colours, a figure, axes without ornament, and a file that appears when it is whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runtime.errors import NotFoundError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Colours that people with the common colour blindnesses tell apart, and that survive a grey printer.
BLUE, ORANGE, GREY, INK = "#2a6f97", "#d1663b", "#9aa3ab", "#22282d"


def new_figure(title: str, width: float, height: float) -> Figure:
    """An empty figure, `width` × `height` inches, with its title at the left.

    Raises:
        NotFoundError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise NotFoundError(
            "pictures need matplotlib, which is not installed; run: pip install 'lexpert[eval]'"
        ) from None
    figure = Figure(figsize=(width, height), layout="constrained", dpi=130)
    figure.suptitle(title, x=0.01, ha="left", fontsize=12, color=INK)
    return figure


def draw_steps(
    axes: Axes,
    records: Sequence[Mapping[str, Any]],
    name: str,
    colour: str,
    label: str | None = None,
    **style: Any,
) -> None:
    """A line through one figure of a step log, over the records that have it."""
    points = [(record["step"], record[name]) for record in records if name in record]
    if points:
        axes.plot(*zip(*points, strict=True), color=colour, label=label, linewidth=1.3, markersize=4, **style)


def scale_by_powers(axes: Axes) -> None:
    """A logarithmic scale for what was drawn, with plain numbers, of which there are some however short it is."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    axes.set_yscale("log")
    low, high = axes.get_ylim()
    powers = LogLocator(subs=(1, 2, 5) if high < 1000 * low else (1,))
    axes.yaxis.set_major_locator(MaxNLocator(6) if high < 10 * low else powers)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def finish_steps(axes: Axes, title: str) -> None:
    """Title, grid and legend of axes over steps."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    axes.set_title(title, loc="left", fontsize=10, color=INK)
    axes.set_xlabel("step", fontsize=9)
    axes.grid(axis="y", color="#e4e8eb", linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=8)


def save_figure(figure: Figure, path: Path) -> None:
    """Write a PNG file, which appears when it is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    try:
        figure.savefig(partial, format="png", facecolor="white")
        partial.rename(path)
    finally:
        partial.unlink(missing_ok=True)

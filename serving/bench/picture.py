"""Where the cores' time of a request goes, as a PNG file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from evals.plots import BLUE, GREY, INK, ORANGE
from runtime.errors import NotFoundError
from serving.bench.search import CLIENT

if TYPE_CHECKING:
    from serving.bench.search import SearchCost

COLOURS = {"API": ORANGE, "HAProxy": BLUE, "Ray's proxy": INK, CLIENT: GREY}
OTHER = "#d8d8d8"


def plot_search(found: SearchCost, path: Path) -> None:
    """Draw a bar for each proxy, route and number of connections: microseconds of each part, for a request.

    Raises:
        NotFoundError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise NotFoundError(
            "pictures need matplotlib, which is not installed; run: pip install 'lexpert[eval]', or leave out --plot"
        ) from None
    rows = list(found.sides.items())[::-1]
    figure = Figure(figsize=(8, 1.2 + 0.45 * len(rows)), layout="constrained", dpi=150)
    axes = figure.add_subplot()
    left = [0.0] * len(rows)
    parts = dict.fromkeys(part for _, side in rows for part in side.cpu)
    for part in sorted(parts, key=lambda name: [*COLOURS, name].index(name)):
        widths = [side.cpu.get(part, 0.0) for _, side in rows]
        axes.barh(range(len(rows)), widths, left=left, color=COLOURS.get(part, OTHER), label=part)
        left = [before + width for before, width in zip(left, widths, strict=True)]
    names = [f"{proxy}, {route}, {connections}" for (proxy, route, connections), _ in rows]
    axes.set_yticks(range(len(rows)), names)
    axes.set_xlabel("µs of the cores for a request")
    axes.legend(frameon=False, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png", facecolor="white")

"""Heat maps of a model's routers as a PNG file: load of each layer, and experts that tokens have together."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from moe.stats.layer_activity import LayerActivity
from moe.stats.statistics import RoutingStatistics
from runtime.errors import NotFoundError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK = "#22282d"
COLUMNS = 4


def plot_routing(statistics: RoutingStatistics, title: str, path: Path) -> None:
    """Draw the load of the experts of all layers, and the co-activation of those of each layer.

    Raises:
        NotFoundError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise NotFoundError(
            "pictures need matplotlib, which is not installed; run: pip install 'lexpert[eval]', or leave out --plot"
        ) from None
    layers = statistics.layers
    columns = min(COLUMNS, len(layers))
    rows = math.ceil(len(layers) / columns)
    top = 1.0 + 0.32 * len(layers)
    figure = Figure(
        figsize=(2.6 * max(columns, 3) + 1, top + 3.0 * rows + 0.6), layout="constrained", dpi=130
    )
    figure.suptitle(f"{title}: {statistics.tokens:,} tokens", x=0.01, ha="left", fontsize=12, color=INK)
    upper, lower = figure.subfigures(2, 1, squeeze=False, height_ratios=(top, 3.0 * rows)).flat
    axes = upper.add_subplot()
    loads = np.full((len(layers), max(layer.meter.num_units for layer in layers)), np.nan)
    for row, layer in enumerate(layers):
        loads[row, : layer.meter.num_units] = layer.load * layer.meter.num_units
    darkest = max(2.0, float(np.nanmax(loads)))
    image = axes.imshow(loads, cmap="Blues", vmin=0, vmax=darkest, aspect="auto")
    axes.set_title("load of each expert, of an even share", loc="left", fontsize=10, color=INK)
    axes.set_yticks(range(len(layers)), [layer.layer for layer in layers], fontsize=7)
    axes.set_xlabel("expert", fontsize=8)
    _whole_ticks(axes)
    upper.colorbar(image, ax=axes, pad=0.01)
    if loads.shape[1] <= 16:
        _write(axes, loads, darkest)
    small = lower.subplots(rows, columns, squeeze=False)
    lower.suptitle(
        "share of the tokens of an expert (row) that also go to another (column)",
        x=0.01, ha="left", fontsize=10, color=INK,
    )  # fmt: skip
    shares = [together(layer) for layer in layers]
    highest = max((float(share.max()) for share in shares), default=0.0) or 1.0
    last: Any = None
    for place, panel in enumerate(small.flat):
        if place >= len(layers):
            panel.set_visible(False)
            continue
        last = panel.imshow(shares[place], cmap="Oranges", vmin=0, vmax=highest)
        panel.set_title(layers[place].layer, loc="left", fontsize=7, color=INK)
        panel.tick_params(labelsize=7)
        _whole_ticks(panel)
    lower.colorbar(last, ax=small, pad=0.01)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    figure.savefig(partial, format="png", facecolor="white")
    partial.rename(path)


def together(layer: LayerActivity) -> NDArray[np.float64]:
    """Share of the tokens of each expert (row) that also go to each other one; 0 on the diagonal."""
    counts = layer.co_activation
    assert counts is not None
    share: NDArray[np.float64] = counts / np.maximum(counts.diagonal(), 1)[:, None]
    np.fill_diagonal(share, 0)
    return share


def _write(axes: Axes, values: NDArray[np.float64], darkest: float) -> None:
    for row, column in zip(*np.nonzero(~np.isnan(values)), strict=True):
        value = values[row, column]
        axes.text(
            column, row, f"{value:.2f}", ha="center", va="center", fontsize=7,
            color="white" if value > 0.6 * darkest else INK,
        )  # fmt: skip


def _whole_ticks(axes: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    if axes.get_title() == "" or axes.get_aspect() == 1.0:
        axes.yaxis.set_major_locator(MaxNLocator(8, integer=True))

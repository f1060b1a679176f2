"""A training step by step, as a PNG file: loss, perplexity, balance and entropy."""

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
    """Draw the figures of `runtime.step_log`.

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
    held_out = [record for record in records if "held_out_loss" in record]
    routed = [record for record in steps if record.get("layers")]
    rows = 2 if routed else 1
    figure = Figure(figsize=(10, 3.4 * rows), layout="constrained", dpi=130)
    figure.suptitle(title, x=0.01, ha="left", fontsize=12, color=INK)
    loss, perplexity = figure.add_subplot(rows, 2, 1), figure.add_subplot(rows, 2, 2)
    _line(loss, steps, "loss", GREY, "with the routers' losses")
    _line(loss, steps, "objective_loss", BLUE, "of the objective")
    _line(loss, held_out, "held_out_loss", ORANGE, "held out", marker="o")
    _finish(loss, "loss, nats a token")
    _line(perplexity, steps, "perplexity", BLUE, "training")
    _line(perplexity, held_out, "held_out_perplexity", ORANGE, "held out", marker="o")
    perplexity.set_yscale("log")
    _plain_numbers(perplexity)
    _finish(perplexity, "perplexity")
    if routed:
        balance, entropy = figure.add_subplot(rows, 2, 3), figure.add_subplot(rows, 2, 4)
        _layers(balance, routed, "load_balance")
        balance.axhline(1, color=INK, linewidth=0.8, linestyle=":")
        _finish(balance, "load balance of each layer; 1 is even")
        _layers(entropy, routed, "evenness")
        entropy.axhline(1, color=INK, linewidth=0.8, linestyle=":")
        _finish(entropy, "entropy of each layer's load, of the highest")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    figure.savefig(partial, format="png", facecolor="white")
    partial.rename(path)


def _line(axes: Axes, records: Sequence[Record], name: str, colour: str, label: str, **style: Any) -> None:
    points = [(record["step"], record[name]) for record in records if name in record]
    if points:
        axes.plot(*zip(*points, strict=True), color=colour, label=label, linewidth=1.3, markersize=4, **style)


def _layers(axes: Axes, records: Sequence[Record], name: str) -> None:
    """A line for each layer, from light at the bottom to dark at the top."""
    values = np.array([[layer.get(name, np.nan) for layer in record["layers"]] for record in records])
    steps = [record["step"] for record in records]
    count = values.shape[1]
    for layer in range(count):
        strength = 0.25 + 0.75 * (layer + 1) / count
        label = "bottom layer" if layer == 0 and count > 1 else "top layer" if layer == count - 1 else None
        axes.plot(steps, values[:, layer], color=BLUE, alpha=strength, linewidth=1.1, label=label)


def _finish(axes: Axes, title: str) -> None:
    axes.set_title(title, loc="left", fontsize=10, color=INK)
    axes.set_xlabel("step", fontsize=9)
    axes.grid(axis="y", color="#e4e8eb", linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=8)


def _plain_numbers(axes: Axes) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5, 7)))
    axes.yaxis.set_major_formatter(ScalarFormatter())
    axes.yaxis.set_minor_formatter(NullFormatter())

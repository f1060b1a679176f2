"""A training step by step, as a PNG file: loss, perplexity, balance and entropy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from runtime.pictures import (
    BLUE,
    GREY,
    INK,
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
    """Draw the figures of `runtime.step_log`.

    Raises:
        NotFoundError: matplotlib is not installed.
    """
    steps = [record for record in records if "loss" in record]
    held_out = [record for record in records if "held_out_loss" in record]
    routed = [record for record in steps if record.get("layers")]
    rows = 2 if routed else 1
    figure = new_figure(title, 10, 3.4 * rows)
    loss, perplexity = figure.add_subplot(rows, 2, 1), figure.add_subplot(rows, 2, 2)
    draw_steps(loss, steps, "loss", GREY, "with the routers' losses")
    draw_steps(loss, steps, "objective_loss", BLUE, "of the objective")
    draw_steps(loss, held_out, "held_out_loss", ORANGE, "held out", marker="o")
    finish_steps(loss, "loss, nats a token")
    draw_steps(perplexity, steps, "perplexity", BLUE, "training")
    draw_steps(perplexity, held_out, "held_out_perplexity", ORANGE, "held out", marker="o")
    scale_by_powers(perplexity)
    finish_steps(perplexity, "perplexity")
    if routed:
        balance, entropy = figure.add_subplot(rows, 2, 3), figure.add_subplot(rows, 2, 4)
        _layers(balance, routed, "load_balance")
        balance.axhline(1, color=INK, linewidth=0.8, linestyle=":")
        finish_steps(balance, "load balance of each layer; 1 is even")
        _layers(entropy, routed, "evenness")
        entropy.axhline(1, color=INK, linewidth=0.8, linestyle=":")
        finish_steps(entropy, "entropy of each layer's load, of the highest")
    save_figure(figure, path)


def _layers(axes: Axes, records: Sequence[Record], name: str) -> None:
    """A line for each layer, from light at the bottom to dark at the top."""
    values = np.array([[layer.get(name, np.nan) for layer in record["layers"]] for record in records])
    steps = [record["step"] for record in records]
    count = values.shape[1]
    for layer in range(count):
        strength = 0.25 + 0.75 * (layer + 1) / count
        label = "bottom layer" if layer == 0 and count > 1 else "top layer" if layer == count - 1 else None
        axes.plot(steps, values[:, layer], color=BLUE, alpha=strength, linewidth=1.1, label=label)

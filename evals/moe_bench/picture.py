"""Time against tokens, a line for each execution, as a PNG file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from evals.moe_bench.comparison import Found, Result
from evals.moe_bench.layer import OURS, QUANTISED
from evals.plots import BLUE, GREY, INK, ORANGE
from runtime.errors import NotFoundError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = {
    OURS: ORANGE, "eager": BLUE, "grouped_mm": INK, "batched_mm": GREY,
    "int8": "#5a9367", "int4-32": "#8c6bb1", "int4-128": "#b8a23a",
}  # fmt: skip


def plot_layers(found: Found, path: Path) -> None:
    """Draw, for each layer and dtype, milliseconds over the least that the machine allows, by tokens.

    Raises:
        NotFoundError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise NotFoundError(
            "pictures need matplotlib, which is not installed; run: pip install 'lexpert[eval]', or leave out --plot"
        ) from None
    kinds = sorted({_kind(result) for result in found.results})
    figure = Figure(figsize=(1.2 + 4.6 * len(kinds), 4.8), layout="constrained", dpi=150)
    figure.suptitle(
        f"experts of {found.width} × {found.inner}, {found.threads} threads: time over what bandwidth and arithmetic "
        "allow",
        x=0.01,
        ha="left",
        fontsize=12,
        color=INK,
    )
    for place, kind in enumerate(kinds):
        axes = figure.add_subplot(1, len(kinds), place + 1)
        _draw(axes, [result for result in found.results if _kind(result) == kind])
        axes.set_title(f"{kind[0]}, {kind[1]} experts, top {kind[2]}", loc="left", fontsize=10, color=INK)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png", facecolor="white")


def _kind(result: Result) -> tuple[str, int, int]:
    return result.case.dtype, result.case.num_experts, result.case.top_k


def _draw(axes: Axes, results: list[Result]) -> None:
    from matplotlib.ticker import NullLocator, ScalarFormatter

    for name in (OURS, "eager", "grouped_mm", "batched_mm", *QUANTISED):
        points = []
        for result in results:
            timing = result.timing(name) or result.timing(f"{name}/{result.same_precision}")
            ours = result.timing(OURS)
            if timing is not None and ours is not None:
                points.append((result.case.tokens, timing.median_s / ours.bound_s))
        if points:
            width = 2.4 if name == OURS else 1.4
            axes.plot(
                *zip(*points, strict=True), marker="o", linewidth=width, color=COLOURS[name], label=name
            )
    tokens = sorted({result.case.tokens for result in results})
    axes.axhline(1, color=GREY, linewidth=0.8, linestyle=":")
    axes.set_xscale("log")
    axes.set_xticks(tokens, [f"{count:,}" for count in tokens])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(ScalarFormatter())
    axes.set(xlabel="tokens", ylabel="times the limit; lower is better")
    axes.grid(axis="y", which="both", color="#e4e8eb", linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.legend(frameon=False, fontsize=9)

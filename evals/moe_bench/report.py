"""A comparison of layers as tables."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING

from evals.moe_bench.comparison import AS_IT_COMES, Found
from evals.moe_bench.layer import OURS, QUANTISED

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

BUSY = 0.05
"""Share of the cores in other hands from which a case is said to be disturbed."""


def print_layers(found: Found, console: Console) -> None:
    """Print times and ratios case by case, then what weights of few bits give, and the means."""
    bandwidth = statistics.median(result.bandwidth for result in found.results)
    operations = statistics.median(result.operations for result in found.results)
    console.print(
        f"hidden {found.width}, expert {found.inner}, {found.threads} threads, {found.rounds} rounds in turns; "
        f"a streaming read gives {bandwidth / 1e9:.1f} GB/s, a large float32 product {operations / 1e9:.0f} GFLOP/s",
        highlight=False,
    )
    console.print(_layers(found))
    if any(result.timing(name) for result in found.results for name in QUANTISED):
        console.print(_few_bits(found))
    mean, as_it_comes = found.geometric_mean(), found.geometric_mean(as_it_comes=True)
    if mean and as_it_comes:
        console.print(
            f"geometric mean: {mean:.2f}× the best of transformers at its best precision, "
            f"{as_it_comes:.2f}× as it comes",
            highlight=False,
        )
    for reason in dict.fromkeys(reason for result in found.results for reason in result.left_out):
        console.print(f"not measured: {reason}", highlight=False)
    disturbed = [result.others for result in found.results if result.others and result.others > BUSY]
    if disturbed:
        console.print(
            f"in {len(disturbed)} of {len(found.results)} cases other work had the cores for more than "
            f"{BUSY:.0%} of the time, at most {max(disturbed):.0%}; measure on an idle machine",
            highlight=False,
        )


def _table(title: str, *headings: str) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=title, title_justify="left", title_style="bold")
    for heading in headings:
        table.add_column(
            heading, justify="left" if heading in ("dtype", "limit", "best of transformers") else "right"
        )
    return table


def _layers(found: Found) -> Table:
    table = _table(
        "the layer",
        "dtype",
        "E/k",
        "tokens",
        "ours ms",
        "of the limit",
        "limit",
        "best of transformers",
        "ms",
        "ratio",
        "as it comes",
        "fastest runs",
        "of the limit",
        "routing",
        "others",
    )
    last = None
    for result in found.results:
        case = result.case
        ours, best = result.timing(OURS), result.best_peer(result.same_precision)
        if last is not None and (case.dtype, case.num_experts) != last:
            table.add_section()
        last = (case.dtype, case.num_experts)
        if ours is None or best is None:
            continue
        table.add_row(
            case.dtype,
            f"{case.num_experts}/{case.top_k}",
            f"{case.tokens:,}",
            _milliseconds(ours.median_s),
            f"{ours.of_bound:.0%}",
            ours.limit,
            best.name,
            _milliseconds(best.median_s),
            _times(result.ratio(result.same_precision)),
            _times(result.ratio(AS_IT_COMES)),
            _times(result.ratio_of_least),
            f"{result.of_bound_at_best:.0%}" if result.of_bound_at_best else "",
            f"{result.routing_share:.1%}" if result.routing_share is not None else "",
            f"{result.others:.0%}" if result.others is not None else "",
        )
    return table


def _few_bits(found: Found) -> Table:
    table = _table("weights of few bits, beside ours in bfloat16", "E/k", "tokens", "bfloat16 ms")
    for name in QUANTISED:
        table.add_column(f"{name} ms", justify="right")
        table.add_column("ratio", justify="right")
        table.add_column("of the limit", justify="right")
    for result in found.results:
        ours = result.timing(OURS)
        if ours is None or result.timing("int8") is None:
            continue
        cells = []
        for name in QUANTISED:
            timing = result.timing(name)
            if timing is not None:
                share = f"{timing.of_bound:.0%}"
                cells += [_milliseconds(timing.median_s), f"{ours.median_s / timing.median_s:.2f}×", share]
        case = result.case
        table.add_row(
            f"{case.num_experts}/{case.top_k}", str(case.tokens), _milliseconds(ours.median_s), *cells
        )
    return table


def _milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:,.2f}" if seconds < 0.1 else f"{1e3 * seconds:,.0f}"


def _times(ratio: float | None) -> str:
    return f"{ratio:.2f}×" if ratio else ""

"""A comparison of engines as tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

from evals.report import human_bytes
from evals.search_bench.comparison import Comparison, Measurement, described
from evals.search_bench.engines.catalogue import OURS
from evals.search_bench.front import rate_at

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

HIGH_RECALL = 0.99
BUSY_ENOUGH = 0.95


def print_comparison(found: Comparison, console: Console) -> None:
    """Print everything that was measured, then the ratios that it comes to."""
    console.print(
        f"{found.workload}: {found.documents:,} documents of {found.nnz / max(found.documents, 1):.0f} non-zeros, "
        f"{found.queries:,} queries, {found.rounds} rounds in turns, one core",
        highlight=False,
    )
    for k in sorted({row.k for row in found.measurements}):
        rows = [row for row in found.measurements if row.k == k]
        console.print(_measured(rows, k))
        if any(row.engine == OURS for row in rows) and any(row.engine != OURS for row in rows):
            console.print(_ratios(rows, k))
    if found.measurements:
        _print_work(found, console)
        _print_sizes(found, console)
        _print_start(found, console)
    for line in found.failed:
        console.print(f"not measured: {line}", highlight=False)
    shared = [row.busy for row in found.measurements if row.busy < BUSY_ENOUGH]
    if shared:
        console.print(
            f"in {len(shared)} of {len(found.measurements)} rows other work had the core for more than 5 % of the "
            f"time, at most {1 - min(shared):.0%}; measure on an idle machine",
            highlight=False,
        )


def _table(title: str, *headings: str) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=title, title_justify="left", title_style="bold")
    for heading in headings:
        table.add_column(heading, justify="left" if heading in ("engine", "build", "setting") else "right")
    return table


def _measured(rows: list[Measurement], k: int) -> Table:
    headings = (
        "engine",
        "build",
        "setting",
        "recall",
        "median µs",
        "p99 µs",
        "queries/s",
        "bytes",
        "in memory",
    )
    table = _table(f"k = {k}", *headings, "build s", "ours at this recall")
    ours = [(row.recall, row.rate) for row in rows if row.engine == OURS]
    last = None
    for row in rows:
        if last is not None and row.engine != last:
            table.add_section()
        last = row.engine
        reached = rate_at(ours, row.recall) if row.engine != OURS else None
        table.add_row(
            row.engine,
            described(row.options),
            described(row.setting),
            f"{row.recall:.4f}",
            f"{row.median_us:,.0f}",
            f"{row.p99_us:,.0f}",
            f"{row.rate:,.0f}",
            human_bytes(row.bytes),
            human_bytes(max(row.index_resident_bytes, 0)),
            f"{row.build_s:.1f}",
            f"{reached / row.rate:.2f}×" if reached else "",
        )
    return table


def ratios(rows: list[Measurement]) -> list[tuple[Measurement, dict[str, float | None]]]:
    """For each of our points, our rate over what each peer reaches at its recall; None where it does not."""
    peers = {row.engine for row in rows} - {OURS}
    found = []
    for row in rows:
        if row.engine == OURS:
            reached = {
                peer: rate_at([(of.recall, of.rate) for of in rows if of.engine == peer], row.recall)
                for peer in sorted(peers)
            }
            found.append((row, {peer: row.rate / rate if rate else None for peer, rate in reached.items()}))
    return found


def _ratios(rows: list[Measurement], k: int) -> Table:
    peers = sorted({row.engine for row in rows} - {OURS})
    table = _table(
        f"k = {k}: our queries/s over theirs at our recall", "setting", "recall", "queries/s", *peers
    )
    for row, of_peers in ratios(rows):
        cells = [f"{ratio:.2f}×" if ratio else "not reached" for ratio in of_peers.values()]
        table.add_row(described(row.setting), f"{row.recall:.4f}", f"{row.rate:,.0f}", *cells)
    return table


def _print_work(found: Comparison, console: Console) -> None:
    counted = [row for row in found.measurements if row.work]
    if not counted:
        return
    names = list(dict.fromkeys(name for row in counted for name in row.work or {}))
    table = _table("what the mean query touches", "engine", "k", "setting", "recall", *names)
    for row in counted:
        work = row.work or {}
        # A small index of ours is in windows, which count nothing; tiers add up postings, or count a full addition.
        counts = work.get("postings", 1) or work.get("exhaustive", 1)
        cells = [(f"{work[name]:,.0f}" if counts else "—") if name in work else "" for name in names]
        table.add_row(row.engine, str(row.k), described(row.setting), f"{row.recall:.4f}", *cells)
    console.print(table)


def _print_sizes(found: Comparison, console: Console) -> None:
    ours = _high(found, OURS)
    peers = sorted({row.engine for row in found.measurements} - {OURS})
    if ours is None or not peers:
        return
    least = min(row.k for row in found.measurements)
    table = _table(
        f"where {HIGH_RECALL:.2f} of the top {least} is reached", "engine", "bytes", "ours over it", "build s",
        "ours over it",
    )  # fmt: skip
    for name in (OURS, *peers):
        row = _high(found, name)
        if row is not None:
            share = (
                ("", "")
                if name == OURS
                else (f"{ours.bytes / row.bytes:.2f}", f"{ours.build_s / row.build_s:.2f}")
            )
            table.add_row(name, human_bytes(row.bytes), share[0], f"{row.build_s:.1f}", share[1])
    console.print(table)


def _high(found: Comparison, engine: str) -> Measurement | None:
    least = min(row.k for row in found.measurements)
    rows = [
        row
        for row in found.measurements
        if row.engine == engine and row.k == least and row.recall >= HIGH_RECALL
    ]
    return max(rows, key=lambda row: row.rate, default=None)


def _print_start(found: Comparison, console: Console) -> None:
    table = _table("a fresh process", "engine", "build", "open ms", "first query µs", "over its median")
    seen = set()
    for row in found.measurements:
        key = row.engine, described(row.options)
        # The first query was asked with the setting that was measured first for this index.
        if key in seen:
            continue
        seen.add(key)
        first = row.first_query_us
        table.add_row(*key, f"{1e3 * row.open_s:,.1f}", f"{first:,.0f}", f"{first / row.median_us:.1f}×")
    console.print(table)
    if found.threads:
        table = _table("two threads over one", "k", "setting", "one, s", "two, s", "ratio")
        for taken in found.threads:
            cells = f"{taken['one_s']:.3f}", f"{taken['two_s']:.3f}", f"{taken['ratio']:.2f}×"
            table.add_row(str(taken["k"]), described(taken["setting"]), *cells)
        console.print(table)

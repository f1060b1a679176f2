"""What it costs to ask a server, as tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

from evals.moe_bench.report import BUSY
from serving.bench.search import CLIENT, Side

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from serving.bench.encode import EncodeCost
    from serving.bench.search import SearchCost

FULL = 0.85
"""Of a core: a part that has so much of one is what limits."""


def print_search(found: SearchCost, console: Console) -> None:
    """Print rates, times and the cores' time of each route, and what they come to."""
    how = "".join(f", {name} {value}" for name, value in found.how.items())
    console.print(
        f"search in {found.documents:,} documents, k = {found.k}{how}; {found.rounds} rounds in turns",
        highlight=False,
    )
    table = _table("proxy", "route", "connections")
    for (proxy, route, connections), side in found.sides.items():
        _add(table, side, proxy, route, str(connections))
    console.print(table)
    for proxy in found.proxies():
        console.print(
            f"{proxy}: {found.ratio(proxy):.0%} of the requests/s that do nothing ({found.cpu_ratio(proxy):.0%} for "
            f"each second of the cores); a lone one takes {found.added_ms(proxy):.2f} ms more than the "
            f"{found.alone_ms:.2f} ms in this process",
            highlight=False,
        )
    if "default" in found.proxies():
        share = found.added_ms() / found.added_ms("default")
        console.print(f"that is {share:.0%} of what Ray's default proxy adds", highlight=False)
    _print_others(found.others, console)


def print_encode(found: EncodeCost, console: Console) -> None:
    """Print rates and times, and what they come to."""
    console.print(f"encode, one text a request; {found.rounds} rounds in turns", highlight=False)
    table = _table("connections")
    _add(table, found.many, str(found.connections))
    _add(table, found.lone, "1")
    console.print(table)
    console.print(
        f"{found.ratio:.0%} of the {found.batch_rate:.1f} texts/s of batches of {found.batch} in this process "
        f"({found.cpu_ratio:.0%} for each second of the cores); a lone "
        f"one takes {found.lone_ratio:.2f} times the {found.alone_ms:.1f} ms in this process",
        highlight=False,
    )
    _print_others(found.others, console)


def _table(*first: str) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in first:
        table.add_column(heading)
    for heading in (
        "requests/s",
        "median ms",
        "p99 ms",
        "API µs",
        "HAProxy µs",
        "Ray µs",
        "client µs",
        "most used",
    ):
        table.add_column(heading, justify="right")
    return table


def _add(table: Table, side: Side, *first: str) -> None:
    cpu = side.cpu
    part, cores = side.limit
    limit = f"{part}, {cores:.2f} of a core" + (", which limits" if cores > FULL else "")
    rest = sum(of for name, of in cpu.items() if name not in ("API", "HAProxy", CLIENT))
    own = (cpu.get("API", 0.0), cpu.get("HAProxy", 0.0), rest, cpu[CLIENT])
    table.add_row(
        *first,
        f"{side.rate:,.0f}",
        f"{side.median_ms:.2f}",
        f"{side.p99_ms:.2f}",
        *(f"{microseconds:,.0f}" for microseconds in own),
        limit,
    )


def _print_others(others: float | None, console: Console) -> None:
    if others is not None and others > BUSY:
        console.print(
            f"all other processes, the server's among them, had the cores for {others:.0%} of the time; compare "
            "the cores' time of a request where other work is among them",
            highlight=False,
        )

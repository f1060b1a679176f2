"""Progress of long steps: a bar with rate and estimate on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Advance = Callable[[int], None]
"""Called with the number of units done since the last call."""

PLAIN_INTERVAL_S = 5.0


@contextmanager
def progress(description: str, total: int | None = None, unit: str = "documents") -> Iterator[Advance]:
    """Show the progress of one step on standard error and yield the function that advances it.

    Args:
        description: what is being done, e.g. ``"encoding"``.
        total: number of units expected; None when unknown (no estimate is shown then).
        unit: what is counted, in the plural.
    """
    if sys.stderr.isatty():
        with _terminal(description, total, unit) as advance:
            yield advance
    else:
        with _plain(description, total, unit) as advance:
            yield advance


@contextmanager
def _terminal(description: str, total: int | None, unit: str) -> Iterator[Advance]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            speed = task.finished_speed or task.speed
            return Text(f"{speed:,.0f} {unit}/s" if speed else "", style="progress.data.speed")

    count = "{task.completed:,.0f}" + ("/{task.total:,.0f}" if total is not None else "") + f" {unit}"
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn(count),
        Rate(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    ) as bar:
        task = bar.add_task(description, total=total)
        yield lambda done: bar.advance(task, done)


@contextmanager
def _plain(description: str, total: int | None, unit: str) -> Iterator[Advance]:
    started = last = time.monotonic()
    completed = 0

    def line(end: str) -> None:
        elapsed = time.monotonic() - started
        rate = completed / elapsed if elapsed > 0 else 0.0
        of_total = f"/{total:,}" if total is not None else ""
        print(
            f"{description}: {completed:,}{of_total} {unit}, {rate:,.0f}/s{end}", file=sys.stderr, flush=True
        )

    def advance(done: int) -> None:
        nonlocal completed, last
        completed += done
        now = time.monotonic()
        if now - last >= PLAIN_INTERVAL_S:
            last = now
            remaining = ""
            if total is not None and completed:
                remaining = f", {(total - completed) * (now - started) / completed:,.0f} s left"
            line(remaining)

    yield advance
    line(f", done in {time.monotonic() - started:.1f} s")

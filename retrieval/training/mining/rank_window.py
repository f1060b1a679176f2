"""Which ranks negatives are drawn from: the first ones are hardest, and most often right answers nobody marked."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from runtime.errors import UsageError

WRITTEN = re.compile(r"(\d+)-(\d+):(\d+)")


@dataclass(frozen=True)
class RankWindow:
    """Draw `count` negatives from ranks `first` to `last`, both counted from 1 and included."""

    first: int
    last: int
    count: int

    def __post_init__(self) -> None:
        if not 1 <= self.first <= self.last:
            raise UsageError(f"the window {self} must begin at 1 or later and not end before it begins")
        if not 1 <= self.count <= self.last - self.first + 1:
            raise UsageError(f"the window {self} must draw at least 1 and no more than it has ranks")

    def __str__(self) -> str:
        return f"{self.first}-{self.last}:{self.count}"


def parse_windows(written: Sequence[str]) -> tuple[RankWindow, ...]:
    """``["1-50:4", "51-1000:4"]`` to windows in the order of ranks.

    Raises:
        UsageError: one that cannot be read, or two that overlap.
    """
    windows = []
    for text in written:
        match = WRITTEN.fullmatch(text)
        if match is None:
            raise UsageError(f"the window {text!r} must be FIRST-LAST:COUNT, such as 1-50:4")
        windows.append(RankWindow(*map(int, match.groups())))
    windows.sort(key=lambda window: window.first)
    for before, after in pairwise(windows):
        if after.first <= before.last:
            raise UsageError(f"the windows {before} and {after} overlap; give ranges apart from each other")
    if not windows:
        raise UsageError("there is no window to draw negatives from; give one, such as 1-50:4")
    return tuple(windows)

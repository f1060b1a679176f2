"""Which way a search goes through the index, and how far."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from retrieval.index.calibration import Calibration
from runtime.errors import UsageError

Mode = Literal["exact", "exhaustive", "approximate"]
MODES: tuple[Mode, ...] = get_args(Mode)

DEFAULT_EFFORT = 0.1


@dataclass(frozen=True, slots=True)
class Traversal:
    """One of three ways.

    Attributes:
        mode: "exact" finds the best documents, and proves that there are no better ones; "exhaustive" finds the
            same by adding up every posting; "approximate" finds most of them.
        effort: of an approximate search, the share of the query's postings that is added up, in (0, 1].
        candidates: of an approximate search, how many documents are scored for every result wanted; None for
            as many as suit the effort.
    """

    mode: Mode = "exact"
    effort: float = 1.0
    candidates: float | None = None

    def num_candidates(self, k: int) -> int:
        """About how many documents are scored exactly for `k` results."""
        if self.mode != "approximate":
            return max(64, 2 * k)
        if self.candidates is not None:
            return math.ceil(k * self.candidates)
        return k + math.ceil(40 * math.sqrt(self.effort) * k**0.75)


def choose_traversal(
    mode: str | None,
    effort: float | None,
    target_recall: float | None,
    k: int,
    calibration: Calibration | None,
) -> Traversal:
    """The traversal for what a caller asked: exact by default, approximate where an effort or a recall is given.

    Raises:
        UsageError: an unknown mode, values out of range, values that go with another mode, or a recall that this
            index is not calibrated for.
    """
    if mode is None:
        mode = "exact" if effort is None and target_recall is None else "approximate"
    if mode not in MODES:
        raise UsageError(f"mode is {mode!r}, but must be one of {', '.join(MODES)}")
    if mode != "approximate":
        if effort is not None or target_recall is not None:
            given = "effort" if effort is not None else "target_recall"
            raise UsageError(f"{given} is for approximate searches, but mode is {mode!r}")
        return Traversal("exhaustive" if mode == "exhaustive" else "exact")
    if effort is not None and target_recall is not None:
        raise UsageError("give an effort or a target_recall, not both")
    if target_recall is not None:
        if not 0 < target_recall <= 1:
            raise UsageError(f"target_recall is {target_recall}, but must be above 0 and at most 1")
        if target_recall == 1:
            return Traversal("exact")
        if calibration is None:
            raise UsageError(
                "this index is not calibrated, so it cannot aim at a recall; "
                "run lexpert index calibrate, or give an effort"
            )
        point = calibration.cheapest(target_recall, k)
        if point is None:
            return Traversal("exact")
        # As many documents as were scored when it was measured: for fewer results no fewer of them.
        return Traversal("approximate", point.effort, point.candidates * point.k / k)
    effort = DEFAULT_EFFORT if effort is None else effort
    if not 0 < effort <= 1:
        raise UsageError(f"effort is {effort}, but must be above 0 and at most 1")
    return Traversal("approximate", effort)

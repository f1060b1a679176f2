"""Which segments to merge, and when: a tiered policy over neighbours, so that documents keep their order.

Segments fall into tiers by size, each tier `segments_per_tier` times the one before. As soon as that many
neighbours have gathered that are of a tier or below, they become one segment of a tier above. So a posting is
rewritten about once a tier, and an index of n postings has some ``segments_per_tier · log(n)`` segments. Source: the
logarithmic method of Bentley & Saxe (1980); Lucene's ``LogMergePolicy`` is of the same kind.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from runtime.errors import UsageError


@dataclass(frozen=True, slots=True)
class SegmentSize:
    """What a merge of a segment costs: its documents, how many of them are deleted, and its postings.

    Attributes:
        is_provisional: whether it is laid out for being written, although it is large enough for tiers.
    """

    documents: int
    deleted: int
    postings: int
    is_provisional: bool = False

    @property
    def live(self) -> float:
        """Postings and documents that a merge keeps, if those of deleted documents are like the others."""
        if not self.documents:
            return 0.0
        return (self.postings + self.documents) * (1 - self.deleted / self.documents)


@dataclass(frozen=True, slots=True)
class MergePolicy:
    """When segments are merged.

    Attributes:
        segments_per_tier: neighbours of about the same size that are merged into one, ≥ 2.
        max_deleted: share of deleted documents above which a segment is rewritten even alone.
        max_postings: no merge gives more than about so many postings; segments of more than half of it are left
            alone until enough of their documents are deleted.
        smallest: postings up to which segments count as equally small.

    Raises:
        UsageError: a value that cannot work.
    """

    segments_per_tier: int = 8
    max_deleted: float = 0.2
    max_postings: int = 1 << 28
    smallest: int = 1 << 16

    def __post_init__(self) -> None:
        if self.segments_per_tier < 2 or self.smallest < 1 or self.max_postings < self.smallest:
            raise UsageError(
                "a merge policy needs 2 segments a tier or more, and 1 ≤ smallest ≤ max_postings"
            )
        if not 0 < self.max_deleted <= 1:
            raise UsageError(f"max_deleted is {self.max_deleted}, but must be above 0 and at most 1")

    def tier(self, size: SegmentSize) -> int:
        """0 for the smallest segments; one more for every factor of `segments_per_tier`."""
        tier, bound = 0, float(self.smallest)
        while size.live > bound:
            tier, bound = tier + 1, bound * self.segments_per_tier
        return tier

    def needs_rewrite(self, size: SegmentSize) -> bool:
        """Whether it is rewritten even alone: many of its documents are deleted, or its layout is provisional."""
        return size.is_provisional or size.deleted > self.max_deleted * size.documents


def plan_merges(sizes: Sequence[SegmentSize], policy: MergePolicy) -> list[range]:
    """The merges that an index asks for, the cheapest first: disjoint ranges of neighbouring segments.

    An empty list means that nothing is to be done; doing what is planned, again and again, comes to that.

    Args:
        sizes: of all segments, in document order.
    """
    tiers = [policy.tier(size) for size in sizes]
    planned: list[range] = []
    is_taken = [False] * len(sizes)
    for tier in sorted(set(tiers)):
        fits = [
            tiers[place] <= tier and not is_taken[place] and sizes[place].live <= policy.max_postings / 2
            for place in range(len(sizes))
        ]
        for run in _runs(fits):
            if len(run) < policy.segments_per_tier:
                continue
            for group in _within(run, sizes, policy.max_postings):
                planned.append(group)
                for place in group:
                    is_taken[place] = True
    # Rewriting is left to a merge that comes anyway, where there is one.
    planned += [
        range(place, place + 1)
        for place, size in enumerate(sizes)
        if policy.needs_rewrite(size) and not is_taken[place]
    ]
    return sorted(planned, key=lambda group: sum(sizes[place].live for place in group))


def _runs(fits: Sequence[bool]) -> list[range]:
    """The longest ranges of places that all fit."""
    runs, start = [], 0
    for place, fit in enumerate([*fits, False]):
        if not fit:
            if place > start:
                runs.append(range(start, place))
            start = place + 1
    return runs


def _within(run: range, sizes: Sequence[SegmentSize], max_postings: int) -> list[range]:
    """A run cut, from its start, into ranges of two or more segments of at most `max_postings` together."""
    groups, start, total = [], run.start, 0.0
    for place in run:
        if place > start and total + sizes[place].live > max_postings:
            groups.append(range(start, place))
            start, total = place, 0.0
        total += sizes[place].live
    groups.append(range(start, run.stop))
    return [group for group in groups if len(group) > 1]

"""What recall an approximate search of an index reaches, by how much it does: measured once, kept in the manifest."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class CalibrationPoint(BaseModel):
    """One setting of the approximate search, and what came of it.

    Attributes:
        k: results wanted.
        effort: share of a query's postings that was added up.
        candidates: documents scored for every result wanted.
        recall: mean share of the exact best `k` that was found.
        cost: work done for a query, in postings added up; a scored document counts as many.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    k: int
    effort: float
    candidates: float
    recall: float
    cost: float


class Calibration(BaseModel):
    """Settings that no other one beats in both recall and cost, for several `k`.

    Attributes:
        documents: live documents when it was measured.
        queries: how many queries it was measured with.
        held_back: whether they were real queries; otherwise they were made from documents.
        points: by k, then by ascending recall.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    documents: int
    queries: int
    held_back: bool
    points: list[CalibrationPoint]

    def cheapest(self, recall: float, k: int) -> CalibrationPoint | None:
        """The cheapest setting that reached the recall for the next larger `k` measured; None if none did."""
        measured = sorted({point.k for point in self.points})
        if not measured:
            return None
        larger = [size for size in measured if size >= k]
        nearest = larger[0] if larger else measured[-1]
        reaching = [point for point in self.points if point.k == nearest and point.recall >= recall]
        return min(reaching, key=lambda point: point.cost, default=None)

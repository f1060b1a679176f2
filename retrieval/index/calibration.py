"""What recall an approximate search of an index reaches, by how much it does: measured once, kept in the manifest."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class CalibrationPoint(BaseModel):
    """One setting of the approximate search, and what came of it.

    Attributes:
        k: results wanted.
        effort: share of a query's postings that was added up.
        candidates: documents scored for every result wanted.
        recall: what may be promised of the share of the exact best `k` that is found, on average over queries:
            `mean` less two standard errors, because other queries are not those that it was measured with.
        mean: mean share of the exact best `k` that was found.
        cost: work done for a query, in postings added up; a scored document counts as many.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    k: int
    effort: float
    candidates: float
    recall: float
    mean: float
    cost: float


class Calibration(BaseModel):
    """Settings that no other one beats in both recall and cost, and that cost less than exact search, for several `k`.

    Attributes:
        documents: live documents when it was measured.
        queries: how many queries it was measured with.
        held_back: whether they were real queries; otherwise they were made from documents.
        points: by k, then by ascending recall. None where exact search is as fast as any other: there are no
            tiers to search approximately.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    documents: int
    queries: int
    held_back: bool
    points: list[CalibrationPoint]

    def summary(self) -> dict[str, int | bool]:
        """What it was measured with, and how many settings it offers."""
        return {
            "documents": self.documents,
            "queries": self.queries,
            "held_back": self.held_back,
            "points": len(self.points),
        }

    def cheapest(self, recall: float, k: int) -> CalibrationPoint | None:
        """The cheapest setting that reached the recall for the next larger `k` measured.

        None if none did, or if nothing was measured for so large a `k`: only exact search keeps the promise then.
        """
        larger = [point.k for point in self.points if point.k >= k]
        reaching = [
            point for point in self.points if point.k == min(larger, default=0) and point.recall >= recall
        ]
        return min(reaching, key=lambda point: point.cost, default=None)

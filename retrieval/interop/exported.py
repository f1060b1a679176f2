"""What an export wrote."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Exported:
    """Counts of one export.

    Attributes:
        documents: live documents of the index, all of which are in the file unless it says otherwise.
        postings: impacts written.
        dropped: impacts that rounded to 0 and were left out.
        empty: documents without an impact.
        scale: what impacts were multiplied by before rounding; None where they were not rounded.
    """

    documents: int
    postings: int
    dropped: int
    empty: int
    scale: float | None

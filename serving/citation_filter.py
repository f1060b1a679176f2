"""Citations in a text that comes piece by piece: those that point at no passage are taken out."""

from __future__ import annotations

import re
from dataclasses import dataclass

INSIDE = r"[0-9,;\-– \t]{1,64}"
CITATION = re.compile(rf"([ \t]*)\[({INSIDE})\]")
"""Numbers in brackets, with the blanks before them, as ``[1]``, ``[1, 2]`` or ``[2-4]``."""

UNFINISHED = re.compile(r"[ \t]*\[[0-9,;\-– \t]{0,64}\Z|[ \t]+\Z")
"""The end of a text that may be the beginning of a citation."""

NUMBERS = re.compile(r"([0-9]+)(?:[ \t]*[-–][ \t]*([0-9]+))?")


class CitationFilter:
    """Passes a text on, but for numbers in brackets that are none of ``1 … passages``.

    A citation of which no number is right goes with the blanks before it; of others the right numbers stay. What may
    become a citation is held back until it is one or cannot be.

    Args:
        passages: how many there are.

    Attributes:
        cited: numbers that the text has cited so far, each once, in the order in which they first came.
    """

    def __init__(self, passages: int) -> None:
        self.cited: list[int] = []
        self._passages = passages
        self._held = ""

    def feed(self, text: str) -> str:
        """What is final, now that `text` has come."""
        self._held += text
        unfinished = UNFINISHED.search(self._held)
        ready = len(self._held) if unfinished is None else unfinished.start()
        final, self._held = self._held[:ready], self._held[ready:]
        return CITATION.sub(self._checked, final)

    def end(self) -> str:
        """The rest, when nothing more comes."""
        rest, self._held = self._held, ""
        return rest

    def _checked(self, citation: re.Match[str]) -> str:
        blanks, inside = citation.groups()
        numbers = right_numbers(inside, self._passages)
        if numbers is None:
            return citation[0]
        self.cited += [number for number in dict.fromkeys(numbers.right) if number not in self.cited]
        if numbers.are_all:
            return citation[0]
        return f"{blanks}[{', '.join(map(str, numbers.right))}]" if numbers.right else ""


@dataclass(frozen=True)
class RightNumbers:
    """The numbers of a citation that point at a passage.

    Attributes:
        right: in their order.
        are_all: whether there are no others.
    """

    right: list[int]
    are_all: bool


def right_numbers(inside: str, passages: int) -> RightNumbers | None:
    """Of what stands in brackets; None if there is no number in it, so that it is no citation."""
    found = NUMBERS.findall(inside)
    if not found:
        return None
    right: list[int] = []
    are_all = True
    for first, last in found:
        low = int(first)
        high = int(last or first)
        right += range(max(low, 1), min(high, passages) + 1)
        are_all &= 1 <= low <= high <= passages
    return RightNumbers(right, are_all)

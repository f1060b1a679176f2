"""The prompt of an answer from passages, under a budget of tokens."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from runtime.errors import UsageError
from serving.citation_filter import CITATION

Count = Callable[[str], int]
"""Tokens of a text."""

LEAST = 32
"""Tokens below which a passage is rather left out than cut, if another is there."""

MOST_CHARACTERS = 16
"""Of a token, more or less: passages are cut to so many times the budget before anything is counted."""

TASK = (
    "Answer the question from the passages below and from nothing else. After each statement write the number of the "
    "passage that it comes from in square brackets, as [1]. If the passages do not answer the question, say so."
)


@dataclass(frozen=True)
class Passage:
    """A text to answer from."""

    title: str
    text: str


@dataclass(frozen=True)
class GroundedPrompt:
    """A prompt that is within its budget.

    Attributes:
        ids: of its tokens.
        cut: for each passage that it has, which are the first ones, whether it has only the beginning.
    """

    ids: list[int]
    cut: list[bool]


def grounded_prompt(
    question: str,
    passages: Sequence[Passage],
    budget: int,
    encode: Callable[[str], list[int]],
    count: Count,
    special: Iterable[str] = (),
) -> GroundedPrompt:
    """Build a prompt of at most `budget` tokens.

    All passages are whole if they fit. Else each gets the same room, of which short ones leave to the others what they
    do not need, and ends with a word; if that is not even `LEAST` tokens, the last ones are left out.

    Args:
        passages: one or more, best first.
        encode: from the text of the prompt to its ids.
        count: of a part of it.
        special: strings that `encode` makes into tokens of their own; taken out of question and passages, which could
            otherwise end a turn of the conversation.

    Raises:
        UsageError: not even the question fits, or not a word of a passage beside it.
    """
    special = [*special]
    question = without(question, special)
    frame = len(encode(prompt_text(question, [])))
    room = budget - frame
    if room < 1:
        raise UsageError(
            f"the question and what stands around it have {frame} tokens, but the prompt may have {budget}; ask "
            "something shorter, or give it more room"
        )
    entries, clipped = [], []
    for number, passage in enumerate(passages, 1):
        text = entry(number, Passage(without(passage.title, special), without(passage.text, special)))
        entries.append(text[: budget * MOST_CHARACTERS])
        clipped.append(len(text) > len(entries[-1]))
    if not any(clipped) and sum(map(len, entries)) <= budget * MOST_CHARACTERS:
        ids = encode(prompt_text(question, entries))
        if len(ids) <= budget:
            return GroundedPrompt(ids, clipped)
    lengths = [count(text) for text in entries]
    while room > 0:
        kept = [
            cut(text, share, count)
            for text, share in zip(entries, shares(lengths, room, LEAST), strict=False)
        ]
        kept = kept[: next((place for place, text in enumerate(kept) if is_bare(text)), len(kept))]
        ids = encode(prompt_text(question, kept))
        if kept and len(ids) <= budget:
            parts = zip(kept, entries, clipped, strict=False)
            return GroundedPrompt(ids, [was_clipped or text != whole for text, whole, was_clipped in parts])
        if not kept:
            break
        room -= len(ids) - budget  # tokens of parts do not quite add up to those of the whole
    raise UsageError(
        f"the question leaves no room for a passage among the {budget} tokens of the prompt; ask something shorter, "
        "or give it more room"
    )


def prompt_text(question: str, entries: Sequence[str]) -> str:
    passages = "".join(f"{text}\n\n" for text in entries)
    return f"{TASK}\n\n{passages}Question: {question}"


def entry(number: int, passage: Passage) -> str:
    """A passage as it stands in the prompt; its own numbers in brackets could be taken for citations."""
    text = "\n".join(part for part in (passage.title.strip(), passage.text.strip()) if part)
    text = CITATION.sub(r"\1(\2)", text)
    return f"[{number}] {text}"


def is_bare(text: str) -> bool:
    """Whether nothing but the number of a passage is left."""
    return re.fullmatch(r"(\[[0-9]+\])?\s*", text) is not None


def shares(lengths: Sequence[int], budget: int, least: int) -> list[int]:
    """How many tokens each of the first passages gets: one more to each that needs it, until none is left.

    Args:
        lengths: tokens of each passage.
        least: passages are left out from the end until all others get so many, or as many as they have; the first
            is always there.
    """
    number = 0
    needed = 0
    for length in lengths:
        needed += min(length, least)
        if needed > budget and number:
            break
        number += 1
    level, over, left = 0, number, budget
    for length in sorted(lengths[:number]):
        level = left // over
        if length > level:
            break
        left -= length
        over -= 1
    more = left - level * over
    given = []
    for length in lengths[:number]:
        is_more = length > level and more > 0 and over > 0
        more -= is_more
        given.append(min(length, level + is_more) if over else length)
    return given


def cut(text: str, limit: int, count: Count) -> str:
    """The longest beginning that ends with a word and has at most `limit` tokens; the text itself if it has no more."""
    if count(text) <= limit:
        return text
    ends = [0, *(word.end() for word in re.finditer(r"\S+", text))]
    fitting, tried = 0, len(ends)
    while tried - fitting > 1:
        middle = (fitting + tried) // 2
        if count(text[: ends[middle]]) <= limit:
            fitting = middle
        else:
            tried = middle
    return text[: ends[fitting]]


def without(text: str, strings: Sequence[str]) -> str:
    """A text with a blank in place of each of some strings, as often as that makes new ones."""
    strings = [each for each in strings if each.strip()]
    while any(each in text for each in strings):
        for each in strings:
            text = text.replace(each, " ")
    return text

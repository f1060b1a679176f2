from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from serving.citation_filter import CitationFilter

INSIDE = "0123456789,;-– \t"


def numbers_of(inside: str) -> list[tuple[int, int]]:
    """First and last of each range, read character by character."""
    tokens: list[str] = []
    for letter in inside:
        if letter.isdigit() and tokens and tokens[-1].isdigit():
            tokens[-1] += letter
        elif letter not in " \t":
            tokens.append("-" if letter == "–" else letter)
        else:
            tokens.append(" ")
    while " " in tokens:
        tokens.remove(" ")
    found: list[tuple[int, int]] = []
    place = 0
    while place < len(tokens):
        if tokens[place].isdigit():
            low = high = int(tokens[place])
            if tokens[place + 1 : place + 2] == ["-"] and "".join(tokens[place + 2 : place + 3]).isdigit():
                high = int(tokens[place + 2])
                place += 2
            found.append((low, high))
        place += 1
    return found


def filtered(text: str, passages: int) -> tuple[str, list[int]]:
    """The whole text at once, without regular expressions."""
    made, cited, place = "", [], 0
    while place < len(text):
        end = text.find("]", place)
        inside = text[place + 1 : end] if text[place] == "[" and end > 0 else ""
        ranges = numbers_of(inside) if 0 < len(inside) <= 64 and set(inside) <= set(INSIDE) else []
        if not ranges:
            made += text[place]
            place += 1
            continue
        every = [range(low, high + 1) if high < 100 else range(low, low + 1) for low, high in ranges]
        right = [number for numbers in every for number in numbers if 1 <= number <= passages]
        are_all = all(1 <= low <= high <= passages for low, high in ranges)
        if not right:
            made = made.rstrip(" \t")
        else:
            made += text[place : end + 1] if are_all else f"[{', '.join(map(str, right))}]"
        cited += [number for number in dict.fromkeys(right) if number not in cited]
        place = end + 1
    return made, cited


PARTS = st.sampled_from(
    [
        "[1]",
        "[2]",
        "[9]",
        "[1, 9]",
        "[2-3]",
        "[3 – 1]",
        "[2-99]",
        "[",
        "]",
        "1",
        " ",
        "\t",
        "-",
        ",",
        "a",
        ". ",
        "[a]",
    ]
)
TEXTS = st.one_of(
    st.lists(PARTS, max_size=12).map("".join), st.text("[]019 ,-a\n", max_size=30), st.text(max_size=10)
)


@given(text=TEXTS, passages=st.integers(0, 4), data=st.data())
def test_any_pieces_make_what_the_whole_makes(text: str, passages: int, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    checked = CitationFilter(passages)
    pieces = [
        checked.feed(text[first:last]) for first, last in zip([0, *cuts], [*cuts, len(text)], strict=True)
    ]
    assert ("".join(pieces) + checked.end(), checked.cited) == filtered(text, passages)


def test_examples() -> None:
    for text, expected, cited in (
        ("Yes [1]. No [4].", "Yes [1]. No.", [1]),
        ("Both [2][1], [2].", "Both [2][1], [2].", [2, 1]),
        ("Some [1, 7] of [0-2].", "Some [1] of [1, 2].", [1, 2]),
        ("[9] begins and ends [", " begins and ends [", []),
        ("list[0] and [x] [1", "list and [x] [1", []),
        ("a [9] [8] b", "a b", []),
        ("a [ ] b [-] [,]", "a [ ] b [-] [,]", []),
        ("[" + "1" * 64 + "][" + "1" * 65 + "]", "[" + "1" * 65 + "]", []),
    ):
        checked = CitationFilter(3)
        assert (checked.feed(text) + checked.end(), checked.cited) == (expected, cited)


def test_only_what_may_become_a_citation_is_held_back() -> None:
    checked = CitationFilter(3)
    assert [checked.feed(piece) for piece in ("so", " ", "[", "2", "]", " and", " [7", "]", ".", " [x")] == [
        "so", "", "", "", " [2]", " and", "", "", ".", " [x",
    ]  # fmt: skip

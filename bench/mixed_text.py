"""Texts dealt into one, so that its end, which is held out of a training, has some of each."""

from __future__ import annotations

import gzip
from collections.abc import Iterator, Sequence
from pathlib import Path

PIECE_BYTES = 1 << 20


def mix_texts(texts: Sequence[Path], out: Path, piece_bytes: int = PIECE_BYTES) -> None:
    """Write pieces of all texts, each as far into the result as into its own text; `out` appears when it is whole.

    A piece ends with a line, and a blank one is put behind it: a document that goes on there becomes two.

    Args:
        texts: UTF-8, or that compressed by gzip where the name ends in ``.gz``; all are in memory at once.
        piece_bytes: of a piece, and as many more as its last line takes.
    """
    placed: list[tuple[float, int, bytes]] = []
    for number, text in enumerate(texts):
        pieces = list(_pieces(text, piece_bytes))
        placed += [((at + 1) / len(pieces), number, piece) for at, piece in enumerate(pieces)]
    placed.sort(key=lambda entry: entry[:2])
    partial = out.with_name(out.name + ".partial")
    with partial.open("wb") as file:
        for _, _, piece in placed:
            file.write(piece.strip(b"\n") + b"\n\n")
    partial.rename(out)


def _pieces(text: Path, piece_bytes: int) -> Iterator[bytes]:
    lines: list[bytes] = []
    size = 0
    with gzip.open(text) if text.suffix == ".gz" else text.open("rb") as file:
        for line in file:
            lines.append(line)
            size += len(line)
            if size >= piece_bytes:
                yield b"".join(lines)
                lines, size = [], 0
    if lines:
        yield b"".join(lines)

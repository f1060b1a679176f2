"""Text packed to blocks of equal length, on disk."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from moe.token_stream import TokenPiece
from runtime.errors import FormatError, InputError
from runtime.progress import progress

Batch = dict[str, torch.Tensor]


def write_tokens(pieces: Iterable[TokenPiece], path: Path, most: int | None = None) -> None:
    """Write ids one after the other, int32 in the machine's order; the file appears when it is whole.

    Args:
        most: tokens to write; what follows is not read.
    """
    partial = path.with_name(path.name + ".partial")
    written = 0
    with partial.open("wb") as file, progress("reading text", most, "tokens") as advance:
        for piece in pieces:
            ids = array("i", piece.ids if most is None else islice(piece.ids, most - written))
            ids.tofile(file)
            written += len(ids)
            advance(len(ids))
            if written == most:
                break
    partial.rename(path)


class TokenBlocks(torch.utils.data.Dataset[Batch]):
    """Some of the blocks of a file of ids, which stays on disk.

    Attributes:
        ids: int32 ``[blocks, length]``.
    """

    def __init__(self, ids: NDArray[np.int32]) -> None:
        self.ids = ids

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, block: int) -> Batch:
        return {"input_ids": torch.from_numpy(self.ids[block].astype(np.int64))}


def stack(blocks: list[Batch]) -> Batch:
    """Blocks to a batch, ``[blocks, length]``."""
    return {"input_ids": torch.stack([block["input_ids"] for block in blocks])}


def split_blocks(path: Path, length: int, held_out: float, least: int) -> tuple[TokenBlocks, TokenBlocks]:
    """Blocks to train on, and the last of the text, to evaluate on; what fills no block is left out.

    The end is held out and not blocks in between, so that no article is partly on either side but one.

    Args:
        path: of `write_tokens`.
        length: of a block, in tokens.
        held_out: share of the blocks.
        least: blocks that there must be to train on.

    Raises:
        InputError: there are fewer.
        FormatError: the file is none of `write_tokens`.
    """
    if path.stat().st_size % 4:
        raise FormatError(f"{path} is truncated; remove it, and the text is read again")
    tokens: Any = np.memmap(path, np.int32, "r") if path.stat().st_size else np.zeros(0, np.int32)
    blocks = tokens[: len(tokens) // length * length].reshape(-1, length)
    kept = max(1, round(held_out * len(blocks)))
    if len(blocks) - kept < least:
        raise InputError(
            f"the text has {len(tokens):,} tokens, {len(blocks)} blocks of {length}, but a step takes {least} blocks "
            f"and the evaluation {kept}; give more text, or shorter blocks or a smaller batch"
        )
    return TokenBlocks(blocks[:-kept]), TokenBlocks(blocks[-kept:])


def spread(blocks: TokenBlocks, most: int) -> TokenBlocks:
    """At most so many of the blocks, evenly spread."""
    if len(blocks) <= most:
        return blocks
    return TokenBlocks(blocks.ids[np.linspace(0, len(blocks) - 1, most).astype(np.int64)])

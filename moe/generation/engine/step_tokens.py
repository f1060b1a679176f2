"""The tokens of one step: which sequences they belong to, and where their keys and values are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from moe.generation.engine.cache import KeyValueCache


@dataclass(frozen=True, slots=True)
class Span:
    """New tokens of one sequence.

    Attributes:
        tokens: ids.
        first: position of the first of them.
        blocks: of the sequence, from its first token to the last of these.
    """

    tokens: Sequence[int]
    first: int
    blocks: Sequence[int]


@dataclass(frozen=True, slots=True, eq=False)
class Chunk:
    """Several new tokens of one sequence, as attention sees them.

    Attributes:
        rows: of the step.
        first: position of the first of them.
        slots: int64, of all the sequence's tokens to the last of these.
    """

    rows: slice
    first: int
    slots: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class StepTokens:
    """A row for each new token; those of sequences with only one come first.

    Attributes:
        cache: where keys and values go.
        ids: int64 ``[1, rows]``.
        positions: int64 ``[1, rows]``.
        slots: int64 ``[rows]``, where the keys and values of each go.
        tables: int32 ``[single rows, blocks]``, the blocks of their sequences.
        lengths: int64 ``[single rows]``, tokens of their sequences with the new one.
        chunks: of the other rows.
        last_rows: int64 ``[sequences]``, the row of the last new token of each, in the order of the spans.
    """

    cache: KeyValueCache
    ids: Tensor
    positions: Tensor
    slots: Tensor
    tables: NDArray[np.int32]
    lengths: NDArray[np.int64]
    chunks: tuple[Chunk, ...]
    last_rows: Tensor

    @classmethod
    def of(cls, spans: Sequence[Span], cache: KeyValueCache, device: torch.device) -> StepTokens:
        """Lay out `spans`, those of one token first."""
        size = cache.block_tokens
        single = sum(len(span.tokens) == 1 for span in spans)
        lengths = np.array([span.first + 1 for span in spans[:single]], np.int64)
        tables = np.zeros((single, -(-int(lengths.max(initial=0)) // size)), np.int32)
        ids: list[int] = []
        positions, slots, lasts, chunks = [], [], [], []
        for place, span in enumerate(spans):
            end = span.first + len(span.tokens)
            blocks = np.asarray(span.blocks[: -(-end // size)], np.int64)
            row = len(ids)
            ids += span.tokens
            positions.append(np.arange(span.first, end))
            own = positions[-1]
            slots.append(blocks[own // size] * size + own % size)
            lasts.append(len(ids) - 1)
            if place < single:
                tables[place, : len(blocks)] = blocks
            else:
                every = (blocks[:, None] * size + np.arange(size)).reshape(-1)[:end]
                chunks.append(Chunk(slice(row, len(ids)), span.first, torch.from_numpy(every).to(device)))
        return cls(
            cache=cache,
            ids=torch.tensor([ids], device=device),
            positions=torch.from_numpy(np.concatenate(positions))[None].to(device),
            slots=torch.from_numpy(np.concatenate(slots)).to(device),
            tables=tables,
            lengths=lengths,
            chunks=tuple(chunks),
            last_rows=torch.tensor(lasts, device=device),
        )

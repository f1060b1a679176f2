"""Writes safetensors shards and their index as a stream: no more than one piece of a tensor is in memory."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from moe.upcycle.checkpoint_folder import DTYPES, INDEX_FILE, SINGLE_FILE
from runtime.progress import Advance
from runtime.write_errors import naming_what_cannot_be_written

SHARD_BYTES = 5 << 30
"""Most bytes of a shard, unless one tensor alone has more; small enough for any file system and for uploads."""

_DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True, slots=True)
class Output:
    """A tensor to write.

    Attributes:
        pieces: makes its values when called: tensors whose values follow one another.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    pieces: Callable[[], Iterable[Tensor]]

    @property
    def num_bytes(self) -> int:
        return self.dtype.itemsize * torch.Size(self.shape).numel()


def write_shards(
    folder: Path, outputs: Sequence[Output], advance: Advance, shard_bytes: int = SHARD_BYTES
) -> None:
    """Write the tensors, in this order, under the names that transformers looks for, and make them durable.

    Args:
        advance: called with the bytes written since the last call.

    Raises:
        LexpertError: a file cannot be written, for example because the disk is full.
    """
    shards = _shards(outputs, shard_bytes)
    names = (
        [SINGLE_FILE]
        if len(shards) == 1
        else [f"model-{place + 1:05}-of-{len(shards):05}.safetensors" for place in range(len(shards))]
    )
    for name, shard in zip(names, shards, strict=True):
        _write_shard(folder / name, shard, advance)
    if len(shards) > 1:
        index = {
            "metadata": {
                "total_parameters": sum(torch.Size(output.shape).numel() for output in outputs),
                "total_size": sum(output.num_bytes for output in outputs),
            },
            "weight_map": {
                output.name: name for name, shard in zip(names, shards, strict=True) for output in shard
            },
        }
        (folder / INDEX_FILE).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", "utf-8")


def _shards(outputs: Sequence[Output], shard_bytes: int) -> list[list[Output]]:
    shards: list[list[Output]] = [[]]
    size = 0
    for output in outputs:
        if shards[-1] and size + output.num_bytes > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(output)
        size += output.num_bytes
    # Readers need each tensor aligned to its type; wider types first keeps that without gaps, which are not allowed.
    return [sorted(shard, key=lambda output: -output.dtype.itemsize) for shard in shards]


def _write_shard(path: Path, outputs: Sequence[Output], advance: Advance) -> None:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for output in outputs:
        start, end = end, end + output.num_bytes
        header[output.name] = {
            "dtype": _DTYPE_NAMES[output.dtype],
            "shape": list(output.shape),
            "data_offsets": [start, end],
        }
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    with naming_what_cannot_be_written(path), path.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        for output in outputs:
            written = 0
            for piece in output.pieces():
                values = piece.detach().to(output.dtype).contiguous().reshape(-1).view(torch.uint8).numpy()
                file.write(values.data)
                written += values.nbytes
                advance(values.nbytes)
            assert written == output.num_bytes, f"{output.name}: {written} bytes, not {output.num_bytes}"
        file.flush()
        os.fsync(file.fileno())

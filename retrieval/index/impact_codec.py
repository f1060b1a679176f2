"""How impacts are stored: as float32, or as 8-bit codes times a step.

Only the tiers layout has 8-bit codes: documents are written as float32 first, and rounded once, when they come into
a segment of that layout. Steps are coarse numbers themselves (eighths of powers of two), so segments of similar
documents have the same step, and merging them rounds nothing again.
"""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from runtime.errors import UsageError

ImpactCodec = Literal["float32", "uint8"]

LARGEST_CODE = 255
SMALLEST_STEP = 2.0**-60
LARGEST_STEP = 2.0**100
STEPS_PER_OCTAVE = 8


def checked_codec(name: str) -> ImpactCodec:
    """Raise UsageError unless there is a codec of that name."""
    for codec in get_args(ImpactCodec):
        if codec == name:
            return codec
    raise UsageError(f"impacts are stored as {' or '.join(get_args(ImpactCodec))}, not as {name!r}")


def codec_dtype(codec: ImpactCodec) -> type:
    """The dtype of stored impacts."""
    return np.uint8 if codec == "uint8" else np.float32


def step_for(largest: float, are_whole: bool = False) -> float:
    """The step of impacts up to `largest`: the smallest n / 8 · 2^e (n from 8 to 15) whose codes reach it.

    1 where there are no impacts, and where all are whole numbers up to 255: those are stored exactly.
    """
    if largest <= 0 or (are_whole and largest <= LARGEST_CODE):
        return 1.0
    octave = 2.0 ** math.floor(math.log2(largest / LARGEST_CODE))
    eighths = STEPS_PER_OCTAVE
    while eighths / STEPS_PER_OCTAVE * octave * LARGEST_CODE < largest:
        eighths += 1
    return min(max(eighths / STEPS_PER_OCTAVE * octave, SMALLEST_STEP), LARGEST_STEP)


def encode_impacts(impacts: NDArray[np.float32], codec: ImpactCodec, step: float) -> NDArray[Any]:
    """Stored form of impacts > 0.

    8-bit codes are rounded to the nearest, but never to 0, which would drop the posting: an impact differs from
    what is read back by at most half a step, or, below half a step, by less than a step.
    """
    if codec == "float32":
        return impacts
    codes: NDArray[Any] = np.clip(np.rint(impacts / np.float32(step)), 1, LARGEST_CODE).astype(np.uint8)
    return codes


def decode_impacts(stored: NDArray[Any], step: float) -> NDArray[np.float32]:
    """float32 impacts of stored ones; exact, since steps have 4 significant bits and codes 8."""
    if stored.dtype == np.float32:
        return stored
    return stored.astype(np.float32) * np.float32(step)

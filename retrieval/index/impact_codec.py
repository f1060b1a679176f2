"""How impacts are stored: as float32, or as 8-bit codes times a step.

A step is a power of two. So whole numbers up to 255 are stored exactly, a code turns into float32 without
rounding, and ``weight × (code × step)`` equals ``(weight × step) × code`` bit by bit: a kernel scales the query
once and reads the codes as they are.
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


def checked_codec(name: str) -> ImpactCodec:
    """Raise UsageError unless there is a codec of that name."""
    for codec in get_args(ImpactCodec):
        if codec == name:
            return codec
    raise UsageError(f"impacts are stored as {' or '.join(get_args(ImpactCodec))}, not as {name!r}")


def codec_dtype(codec: ImpactCodec) -> type:
    """The dtype of stored impacts."""
    return np.uint8 if codec == "uint8" else np.float32


def step_for(largest: float) -> float:
    """The smallest step (a power of two) whose codes reach an impact; 1 if there is none."""
    if largest <= 0:
        return 1.0
    step = 2.0 ** math.ceil(math.log2(largest / LARGEST_CODE))
    while largest / step > LARGEST_CODE:
        step *= 2
    return min(max(step, SMALLEST_STEP), LARGEST_STEP)


def window_step(impacts: NDArray[np.float32], codec: ImpactCodec) -> float:
    """The step of impacts that are stored together; 1 where they are stored as they are."""
    return step_for(float(impacts.max(initial=0))) if codec == "uint8" else 1.0


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
    """float32 impacts of stored ones; exact."""
    if stored.dtype == np.float32:
        return stored
    return stored.astype(np.float32) * np.float32(step)

"""What every backend refuses in the same words: indices out of range and offsets that decrease."""

from __future__ import annotations

from runtime.activations import Array


def check_offsets(offsets: Array) -> None:
    """Raise ValueError if CSR offsets decrease."""
    if bool((offsets[1:] < offsets[:-1]).any()):
        raise ValueError("indptr must not decrease")


def check_bounds(name: str, indices: Array, size: int) -> None:
    """Raise ValueError for indices outside ``[0, size)``.

    Left to the libraries, negative ones count from the end, and others are an IndexError in one library, silence
    in compiled code and the end of the process on a GPU.
    """
    if len(indices):
        lowest, highest = int(indices.min()), int(indices.max())
        if not 0 <= lowest <= highest < size:
            raise ValueError(f"{name} run from {lowest} to {highest}, but must lie in [0, {size})")

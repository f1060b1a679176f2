"""Where groups of entries begin and end: what every product of groups asks of its offsets."""

from __future__ import annotations

from runtime.activations import Array, is_tensor
from runtime.errors import UsageError


def check_group_offsets(offsets: Array, num_groups: int, num_entries: int) -> None:
    """Refuse offsets that do not divide the entries into groups; compiled code goes by them without looking.

    Args:
        offsets: whole numbers ``[groups + 1]``; group `j` has the entries ``offsets[j]:offsets[j + 1]``.
        num_groups: how many there must be.
        num_entries: how many entries there are.

    Raises:
        UsageError: `offsets` are not whole numbers, not one-dimensional, too few or too many, decrease, or do not
            run from 0 to `num_entries`.
    """
    if offsets.ndim != 1 or not _is_whole(offsets):
        raise UsageError(
            f"offsets are {offsets.dtype} of shape {tuple(offsets.shape)}, but must be int64 [groups + 1]"
        )
    if len(offsets) != num_groups + 1:
        raise UsageError(f"{num_groups} groups need {num_groups + 1} offsets, not {len(offsets)}")
    # A list, because it comes from a GPU at once, and because torch takes longer to compare few numbers.
    bounds = offsets.tolist()
    if bounds[0] != 0 or bounds[-1] != num_entries:
        raise UsageError(
            f"offsets run from {bounds[0]} to {bounds[-1]}, but must run from 0 to {num_entries}, the number of entries"
        )
    if bounds != sorted(bounds):
        raise UsageError(
            "offsets must not decrease, for each group ends where the next begins; sort entries by group"
        )


def _is_whole(offsets: Array) -> bool:
    if is_tensor(offsets):
        import torch

        return not (offsets.is_floating_point() or offsets.is_complex() or offsets.dtype == torch.bool)
    return offsets.dtype.kind in "iu"

"""Which numbers can be seeds: the same ones in every command and router."""

from __future__ import annotations

from runtime.errors import UsageError

MOST_SEED = 2**32 - 1
"""That NumPy takes; torch would take more."""


def require_seed(seed: int) -> None:
    """Refuse what some generator does not take.

    Raises:
        UsageError: the seed is no whole number, below 0 or above `MOST_SEED`.
    """
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed <= MOST_SEED:
        raise UsageError(f"the seed is {seed!r}, but must be a whole number from 0 to {MOST_SEED}")

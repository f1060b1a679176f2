"""Which numbers can be seeds."""

from __future__ import annotations

from runtime.errors import UsageError

MOST_SEED = 2**32 - 1
"""That NumPy takes; torch would take more."""


def require_seed(seed: int) -> None:
    """Refuse what some generator does not take.

    Raises:
        UsageError: the seed is below 0 or above `MOST_SEED`.
    """
    if not 0 <= seed <= MOST_SEED:
        raise UsageError(f"the seed is {seed}, but must be 0 to {MOST_SEED}")

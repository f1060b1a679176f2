"""How often something may happen: on average, and at once after a pause."""

from __future__ import annotations

from collections.abc import Callable

ROUNDING = 1e-6
"""Part of a token that may be missing, so that who waits as long as told is not refused for a rounding error."""


class TokenBucket:
    """Holds up to `burst` tokens, gains `rate` of them a second, and starts full.

    Args:
        rate: tokens a second, 0.001 to a million.
        burst: the most that it holds, 1 or more.
        clock: seconds that never go back.
    """

    def __init__(self, rate: float, burst: int, clock: Callable[[], float]) -> None:
        self._rate = rate
        self._burst = burst
        self._clock = clock
        self._tokens = float(burst)
        self._counted = clock()

    def take(self) -> float:
        """Take a token: 0 if there was one, else the seconds until there is, and none is taken."""
        now = self._clock()
        self._tokens = min(self._burst, self._tokens + (now - self._counted) * self._rate)
        self._counted = now
        if self._tokens >= 1 - ROUNDING:
            self._tokens -= 1
            return 0.0
        return (1 - self._tokens) / self._rate

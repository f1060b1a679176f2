"""The secret of the Ray clusters that this process starts."""

from __future__ import annotations

from functools import cache
from secrets import token_hex


@cache
def cluster_token() -> str:
    """One for all of them, to serve and to build, since Ray reads it only once in a process."""
    return token_hex(32)

"""How long a request's body asks its work to take at most, read before the body waits for a thread."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import orjson

KEY = b'"timeout_ms"'

AT_ONCE_BYTES = 1 << 16
"""Bodies up to this length are parsed on the event loop, in far less than a millisecond."""


async def asked_timeout_s(body: bytes) -> float:
    """Seconds of a usable ``timeout_ms``; infinity without one. What is wrong with a body is told by its route."""
    if KEY not in body:
        return math.inf
    try:
        parsed = (
            orjson.loads(body) if len(body) <= AT_ONCE_BYTES else await asyncio.to_thread(orjson.loads, body)
        )
    except orjson.JSONDecodeError:
        return math.inf
    asked: Any = parsed.get("timeout_ms") if isinstance(parsed, dict) else None
    return asked / 1e3 if type(asked) is int and asked >= 1 else math.inf

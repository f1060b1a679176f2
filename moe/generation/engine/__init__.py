"""Many generations at once from one decoder: requests join and leave between steps."""

from __future__ import annotations

from typing import TYPE_CHECKING

from runtime.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from moe.generation.engine.engine import Engine
    from moe.generation.engine.request import QueueFullError, Request
    from moe.generation.engine.settings import EngineSettings
    from moe.generation.engine.submitted import Event, Submitted, TokenLogprobs, Usage

__all__ = [
    "Engine",
    "EngineSettings",
    "Event",
    "QueueFullError",
    "Request",
    "Submitted",
    "TokenLogprobs",
    "Usage",
]

_HOMES = {
    "Engine": "moe.generation.engine.engine",
    "EngineSettings": "moe.generation.engine.settings",
    "Event": "moe.generation.engine.submitted",
    "QueueFullError": "moe.generation.engine.request",
    "Request": "moe.generation.engine.request",
    "Submitted": "moe.generation.engine.submitted",
    "TokenLogprobs": "moe.generation.engine.submitted",
    "Usage": "moe.generation.engine.submitted",
}

__getattr__ = lazy_exports(__name__, _HOMES)

"""Serving: indexes and encoders over HTTP, as a Ray Serve application."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from serving.application import RunningServer, running
    from serving.configuration import Limits, ServerConfiguration

__all__ = ["Limits", "RunningServer", "ServerConfiguration", "running"]

_HOMES = {
    "Limits": "serving.configuration",
    "RunningServer": "serving.application",
    "ServerConfiguration": "serving.configuration",
    "running": "serving.application",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'serving' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)

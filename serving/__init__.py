"""Serving: indexes and encoders over HTTP, as a Ray Serve application."""

from __future__ import annotations

from typing import TYPE_CHECKING

from runtime.lazy_exports import lazy_exports

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

__getattr__ = lazy_exports(__name__, _HOMES)

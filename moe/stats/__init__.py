"""What routers do on a text: load, entropy and co-activation of the experts of each layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from runtime.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from moe.stats.layer_activity import LayerActivity
    from moe.stats.recorder import LayerRouting, RoutingRecorder
    from moe.stats.statistics import RoutingStatistics, routing_statistics

__all__ = ["LayerActivity", "LayerRouting", "RoutingRecorder", "RoutingStatistics", "routing_statistics"]

_HOMES = {
    "LayerActivity": "moe.stats.layer_activity",
    "LayerRouting": "moe.stats.recorder",
    "RoutingRecorder": "moe.stats.recorder",
    "RoutingStatistics": "moe.stats.statistics",
    "routing_statistics": "moe.stats.statistics",
}

__getattr__ = lazy_exports(__name__, _HOMES)

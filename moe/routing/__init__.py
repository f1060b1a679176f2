"""Routers: which experts each token goes to, one family a file, behind `moe.routing.router.Router`.

`build_router` makes any of them by name. Names can be imported from here and are loaded when first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from runtime.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from moe.routing.balance import BiasBalance, update_biases
    from moe.routing.catalogue import build_router
    from moe.routing.router import Router, Routing, Tokens, require_causal
    from moe.routing.sparse_mixer import SparseMixer
    from moe.routing.temperature import Temperature, set_steps

__all__ = [
    "BiasBalance",
    "Router",
    "Routing",
    "SparseMixer",
    "Temperature",
    "Tokens",
    "build_router",
    "require_causal",
    "set_steps",
    "update_biases",
]

_HOMES = {
    "BiasBalance": "moe.routing.balance",
    "Router": "moe.routing.router",
    "Routing": "moe.routing.router",
    "SparseMixer": "moe.routing.sparse_mixer",
    "Temperature": "moe.routing.temperature",
    "Tokens": "moe.routing.router",
    "build_router": "moe.routing.catalogue",
    "require_causal": "moe.routing.router",
    "set_steps": "moe.routing.temperature",
    "update_biases": "moe.routing.balance",
}

__getattr__ = lazy_exports(__name__, _HOMES)

"""Routers: which experts each token goes to, one family a file, behind `moe.routing.router.Router`.

`build_router` makes any of them by name. Names can be imported from here and are loaded when first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from runtime.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from moe.routing.router import Router, Routing, Tokens

__all__ = ["Router", "Routing", "Tokens"]

_HOMES = {
    "Router": "moe.routing.router",
    "Routing": "moe.routing.router",
    "Tokens": "moe.routing.router",
}

__getattr__ = lazy_exports(__name__, _HOMES)

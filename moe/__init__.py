"""Mixture of experts: routers, layers, and dense checkpoints made sparse.

Importing this package registers our execution of experts with transformers, now or when transformers is imported,
so that ``from_pretrained(…, experts_implementation="lexpert")`` runs any of its mixture models on it. Names are
loaded when first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from moe.registration import register_when_imported
from runtime.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from moe.experts import Experts
    from moe.layer import MoELayer
    from moe.upcycle.convert import upcycle

__all__ = ["Experts", "MoELayer", "upcycle"]

_HOMES = {
    "Experts": "moe.experts",
    "MoELayer": "moe.layer",
    "upcycle": "moe.upcycle",
}

__getattr__ = lazy_exports(__name__, _HOMES)

register_when_imported()

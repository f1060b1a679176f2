"""Our execution of experts in the registry of transformers, under the name ``"lexpert"``."""

from __future__ import annotations

from types import ModuleType

from moe.post_import import when_imported

NAME = "lexpert"


def register_when_imported() -> None:
    """Register as soon as transformers' registry of experts is there; doing so again changes nothing."""
    when_imported("transformers.integrations.moe", _register)


def _register(registry: ModuleType) -> None:
    functions = getattr(registry, "ALL_EXPERTS_FUNCTIONS", None)
    # Without it, this transformers has no experts to run, and without torch no models at all.
    if functions is not None and hasattr(registry, "torch"):
        from moe.transformers_experts import lexpert_experts_forward

        functions.register(NAME, lexpert_experts_forward)

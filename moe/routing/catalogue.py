"""Routers by name."""

from __future__ import annotations

import inspect
from importlib import import_module
from typing import Any

from moe.routing.router import Router
from runtime.errors import UsageError

ROUTERS = {
    "activation_gate": "moe.routing.activation_gate:ActivationGateRouter",
    "base": "moe.routing.base:BaseRouter",
    "dense_to_sparse": "moe.routing.dense_to_sparse:DenseToSparseRouter",
    "expert_choice": "moe.routing.expert_choice:ExpertChoiceRouter",
    "hash": "moe.routing.hash:HashRouter",
    "per_sequence": "moe.routing.per_sequence:PerSequenceRouter",
    "switch": "moe.routing.switch:SwitchRouter",
    "switch_and_mixture": "moe.routing.switch_and_mixture:SwitchAndMixtureRouter",
    "task_aware": "moe.routing.task_aware:TaskAwareRouter",
    "threshold": "moe.routing.threshold:ThresholdRouter",
    "top_k": "moe.routing.top_k:TopKRouter",
}
"""Name of each family to the class that makes it, imported when it is asked for."""


def router_class(name: str) -> type[Router]:
    """The class of the routers called `name`.

    Raises:
        UsageError: there is none.
    """
    if name not in ROUTERS:
        raise UsageError(f"there is no router {name!r}; there are {', '.join(sorted(ROUTERS))}")
    module, _, attribute = ROUTERS[name].partition(":")
    found: type[Router] = getattr(import_module(module), attribute)
    return found


def router_options(name: str) -> dict[str, Any]:
    """The options of a router and their defaults; `inspect.Parameter.empty` for one that must be given."""
    parameters = inspect.signature(router_class(name)).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


def build_router(name: str, width: int, num_experts: int, **options: Any) -> Router:
    """A router for hidden states of `width`.

    Args:
        name: one of `ROUTERS`.
        width: of the hidden states.
        num_experts: to choose from.
        options: those of the class.

    Raises:
        UsageError: there is no such router or option, an option is missing, or one cannot be honoured, for
            example more experts per token than there are.
    """
    known = router_options(name)
    unknown = sorted(set(options) - set(known))
    if unknown:
        has = f"it has {', '.join(known)}" if known else "it has none"
        raise UsageError(f"router {name!r} has no option {', '.join(map(repr, unknown))}; {has}")
    required = {option for option, default in known.items() if default is inspect.Parameter.empty}
    missing = sorted(required - set(options))
    if missing:
        raise UsageError(f"router {name!r} needs the option {', '.join(missing)}")
    build: Any = router_class(name)
    router: Router = build(width, num_experts, **options)
    return router

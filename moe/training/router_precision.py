"""Routers of transformers in float32, in a model that otherwise computes in bfloat16."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from moe.stats.recorder import RoutingRecorder


def keep_routers_in_float32(model: nn.Module) -> None:
    """Have the routers of a model compute in float32 under autocast too; ours do so by themselves.

    In bfloat16 logits tie, and some tokens go to other experts than in float32.
    """
    for name in RoutingRecorder(model).layers:
        module: Any = model.get_submodule(name)
        if hasattr(module, "experts"):
            continue  # a whole layer: one of ours, or of a model whose block routes by itself
        module.forward = _without_autocast(module.forward)


def _without_autocast(forward: Any) -> Any:
    def run(hidden: Tensor, *arguments: Any, **options: Any) -> Any:
        with torch.autocast(hidden.device.type, enabled=False):
            return forward(hidden.float(), *arguments, **options)

    return run

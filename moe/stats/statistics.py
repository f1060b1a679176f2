"""Statistics of a model's routers on a text."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from moe.stats.layer_activity import LayerActivity
from moe.stats.recorder import RoutingRecorder
from runtime.errors import InputError, UsageError


@dataclass(frozen=True, slots=True, eq=False)
class RoutingStatistics:
    """What the routers of a model did.

    Attributes:
        tokens: number of tokens that ran through the model.
        layers: of each layer with experts, from the bottom, with co-activation.
    """

    tokens: int
    layers: list[LayerActivity]

    def to_json(self) -> dict[str, Any]:
        """Numbers and lists only; `load` are shares, `co_activation` counts of tokens."""
        layers = []
        for layer in self.layers:
            assert layer.co_activation is not None
            activity = asdict(layer.report)
            layers.append(
                {
                    "layer": layer.layer,
                    **activity,
                    "evenness": layer.evenness,
                    "dropped": layer.dropped,
                    "losses": layer.losses,
                    "load": layer.load.tolist(),
                    "co_activation": layer.co_activation.tolist(),
                }
            )
        return {"tokens": self.tokens, "layers": layers}


@torch.inference_mode()
def routing_statistics(model: Any, batches: Iterable[Tensor]) -> RoutingStatistics:
    """Run a model over token ids and record what its routers do.

    Args:
        model: of transformers, in evaluation mode.
        batches: int64 ``[sequences, length]`` each, without padding.

    Raises:
        UsageError: no layer of the model has experts that can be recorded.
        InputError: there are no tokens.
    """
    recorder = RoutingRecorder(model)
    require_routers(recorder, model)
    activities: dict[str, LayerActivity] = {}
    tokens = 0
    with recorder:
        for ids in batches:
            ids = ids.to(model.device)
            model(input_ids=ids, attention_mask=torch.ones_like(ids))
            tokens += ids.numel()
            for routing in recorder.take():
                activity = activities.setdefault(
                    routing.layer, LayerActivity(routing.layer, routing.gates.num_units, co_activation=True)
                )
                activity.update(routing)
    if not tokens:
        raise InputError("the text has no tokens; give one with some sentences")
    return RoutingStatistics(tokens, list(activities.values()))


def require_routers(recorder: RoutingRecorder, model: Any) -> None:
    """Refuse a dense model.

    Raises:
        UsageError: it has no routers.
    """
    if not recorder.layers:
        raise UsageError(
            f"{type(model).__name__} has no routers whose logits transformers records, and so no experts to count; "
            "give a model with experts"
        )

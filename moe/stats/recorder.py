"""What the routers of a model decide, recorded as it runs: of transformers' decoders and of our encoders."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, Self

from torch import Tensor, nn

from moe.layer import MoELayer
from moe.routing.router import Routing
from moe.stats.router_scores import router_probabilities
from runtime.activations import SparseActivations
from runtime.errors import UsageError
from runtime.regularizers import load_balance, z_loss
from runtime.select import TopK


@dataclass(frozen=True, slots=True, eq=False)
class LayerRouting:
    """What one router decided in one pass.

    Attributes:
        layer: name of the router's module in the model.
        gates: ``[tokens, experts]``, the experts of each token.
        losses: scalars with gradients, not scaled; ``"load_balance"`` is 1 when even, ``"z"`` is the z-loss.
        capacity: most tokens that an expert takes; None drops nothing.
        unknown_scores: whether a router of transformers weighs by neither softmax nor sigmoids, so that it has no
            ``"load_balance"``.
    """

    layer: str
    gates: SparseActivations
    losses: dict[str, Tensor]
    capacity: int | None = None
    unknown_scores: bool = False


class RoutingRecorder:
    """Records while its ``with`` block lasts; `take` hands out what came since the last call.

    Routers of transformers are those whose logits the model's class says it can record. Their losses are computed
    layer by layer from these logits: transformers' own auxiliary loss pools all layers first, and finds layers that
    collapsed onto different experts well balanced. The experts are those that the router returns, chosen by groups
    and with biases as they may be, or, of one that returns none, the k of the highest logits. Their shares are
    multiplied by what the router weighs by, see `router_probabilities`.

    Every token counts; pass texts without padding, or a model of ours, which leaves padding out.

    Attributes:
        layers: names of the routers' modules, from the bottom; empty for a dense model.
    """

    def __init__(self, model: nn.Module) -> None:
        self._routers = dict(_routers(model))
        self._handles: list[Any] = []
        self._routings: dict[str, Callable[[], LayerRouting]] = {}
        self._experts: dict[str, Callable[[], tuple[Tensor, int]]] = {}

    @property
    def layers(self) -> list[str]:
        return list(self._routers)

    def __enter__(self) -> Self:
        for name, (module, index) in self._routers.items():
            self._handles.append(module.register_forward_hook(self._hook(name, index)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._routings.clear()
        self._experts.clear()

    def take(self) -> list[LayerRouting]:
        """What each router decided in the last pass, from the bottom."""
        taken = [self._routings[name]() for name in self._routers if name in self._routings]
        self._routings.clear()
        self._experts.clear()
        return taken

    def take_experts(self) -> dict[str, tuple[Tensor, int]]:
        """By layer, from the bottom, the experts of each token in the last pass, ``[tokens, k]``, and out of how many.

        For use in place of `take`, whose losses take longer than a pass of few tokens.

        Raises:
            UsageError: a layer gives tokens different numbers of experts, or does not say which it chose.
        """
        taken = {name: self._experts[name]() for name in self._routers if name in self._experts}
        self._routings.clear()
        self._experts.clear()
        return taken

    def _hook(self, name: str, index: int | None) -> Any:
        def record(module: nn.Module, inputs: Any, output: Any) -> None:
            del inputs
            if name in self._routings:
                return  # checkpointing comes here again in the backward pass
            # Losses are made when they are taken: what checkpointing runs again must be the model alone.
            self._routings[name] = (
                partial(_of_ours, name, output[1])
                if index is None
                else partial(_of_logits, name, module, output, index)
            )
            self._experts[name] = (
                partial(_experts_of_ours, name, output[1])
                if index is None
                else partial(_experts_of_logits, name, module, output, index)
            )

        return record


def _of_ours(name: str, routing: Routing) -> LayerRouting:
    return LayerRouting(name, routing.gates, routing.losses, routing.capacity)


def _experts_of_ours(name: str, routing: Routing) -> tuple[Tensor, int]:
    gates = routing.gates
    tokens, entries = gates.num_rows, len(gates.units)
    if entries % max(tokens, 1) or bool((gates.indptr.diff() != entries // max(tokens, 1)).any()):
        raise UsageError(f"{name} gives tokens different numbers of experts, which do not make a table")
    return gates.units.reshape(tokens, -1), gates.num_units


def _experts_of_logits(name: str, router: nn.Module, output: Any, index: int) -> tuple[Tensor, int]:
    outputs = output if isinstance(output, tuple | list) else (output,)
    logits = outputs[index]
    logits = logits.reshape(-1, logits.shape[-1])
    return _chosen(name, router, outputs, logits), logits.shape[1]


def _chosen(name: str, router: nn.Module, outputs: Sequence[Any], logits: Tensor) -> Tensor:
    """``[tokens, k]``, the experts that a router returned, or else those of its highest logits."""
    units = next((value for value in outputs if _is_selection(value, logits)), None)
    if units is None:
        _require_choice_by_logits(name, router)
        units = TopK(int(router.top_k))(logits.detach()).units  # type: ignore[arg-type]
    chosen: Tensor = units.reshape(len(logits), -1)
    return chosen


def _of_logits(name: str, router: nn.Module, output: Any, index: int) -> LayerRouting:
    outputs = output if isinstance(output, tuple | list) else (output,)
    logits: Tensor = outputs[index].float()
    logits = logits.reshape(-1, logits.shape[-1])
    units = _chosen(name, router, outputs, logits)
    probabilities = router_probabilities(logits, units, outputs)
    weights = logits.softmax(1) if probabilities is None else probabilities
    gates = SparseActivations.from_topk(units, weights.detach().gather(1, units.long()), logits.shape[1])
    losses = {"z": z_loss(logits)}
    if probabilities is not None:
        losses["load_balance"] = load_balance(gates, probabilities)
    return LayerRouting(name, gates, losses, unknown_scores=probabilities is None)


def _require_choice_by_logits(name: str, router: nn.Module) -> None:
    """Refuse to guess at what a router chose that looks at more than its logits."""
    has_bias = getattr(router, "e_score_correction_bias", None) is not None
    groups = max(int(getattr(router, group, None) or 1) for group in ("num_group", "n_group"))
    if has_bias or groups > 1 or not hasattr(router, "top_k"):
        raise UsageError(
            f"{name} is a {type(router).__name__}, which does not hand out the experts that it chose, and its logits "
            "alone do not say them; its load and balance cannot be known"
        )


def _is_selection(value: Any, logits: Tensor) -> bool:
    if not isinstance(value, Tensor) or value.is_floating_point() or value.ndim < 2:
        return False
    return value.numel() // value.shape[-1] == len(logits) and value.shape[-1] <= logits.shape[1]


def _routers(model: nn.Module) -> list[tuple[str, tuple[nn.Module, int | None]]]:
    """Each router with the place of its logits among its outputs; None for a layer of ours."""
    targets: dict[type[nn.Module], int] = {}
    for module in model.modules():
        recorders = (getattr(module, "_can_record_outputs", None) or {}).get("router_logits", ())
        for recorder in recorders if isinstance(recorders, list | tuple) else (recorders,):
            target: Any = getattr(recorder, "target_class", recorder)
            targets[target] = getattr(recorder, "index", 0)
    found: list[tuple[str, tuple[nn.Module, int | None]]] = []
    for name, module in model.named_modules():
        if isinstance(module, MoELayer):
            found.append((name, (module, None)))
        elif type(module) in targets:
            found.append((name, (module, targets[type(module)])))
    names = [name for name, _ in found]
    # JetMoE hands on the logits of a router inside its attention: that router is enough.
    return [entry for entry in found if not any(name.startswith(f"{entry[0]}.") for name in names)]

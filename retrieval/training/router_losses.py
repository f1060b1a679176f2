"""Losses of the routers of a model with experts, collected over all passes of a step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, Self

import transformers
from torch import Tensor, nn

from runtime.errors import UsageError


class Routing(Protocol):
    """What one router did in one pass; `losses` have gradients."""

    @property
    def layer(self) -> str: ...

    @property
    def losses(self) -> Mapping[str, Tensor]: ...


class RouterWatch(Protocol):
    """Records what the routers of a model did last: `moe.stats.recorder.RoutingRecorder`."""

    @property
    def layers(self) -> Sequence[str]: ...

    def __enter__(self) -> Any: ...

    def __exit__(self, kind: Any, error: Any, trace: Any, /) -> Any: ...

    def take(self) -> Sequence[Routing]: ...


class RouterLosses:
    """Collects while its ``with`` block lasts.

    Args:
        model: of any modules; each model of transformers within is watched.
        watch: makes the recorder of one.

    Raises:
        UsageError: there are no routers.
    """

    def __init__(self, model: nn.Module, watch: Callable[[Any], RouterWatch]) -> None:
        found = [module for module in model.modules() if isinstance(module, transformers.PreTrainedModel)]
        inner = {id(module) for outer in found for module in outer.modules() if module is not outer}
        self._watched = [(module, watch(module)) for module in found if id(module) not in inner]
        if not any(recorder.layers for _, recorder in self._watched):
            raise UsageError(
                "the recipe names losses of routers, but the model has no experts; upcycle it first with: lexpert moe "
                "upcycle"
            )
        self._routings: list[Routing] = []
        self._hooks: list[Any] = []

    def __enter__(self) -> Self:
        for module, recorder in self._watched:
            recorder.__enter__()
            self._hooks.append(module.register_forward_hook(self._after_pass(recorder)))
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        for _, recorder in self._watched:
            recorder.__exit__(kind, error, trace)

    def take(self, coefficients: Mapping[str, float]) -> Tensor | None:
        """The weighed losses since the last call: the mean over passes, the sum over layers; None without any."""
        routings, self._routings = self._routings, []
        passes = max(Counter(routing.layer for routing in routings).values(), default=1)
        losses = [
            coefficient * routing.losses[name] / passes
            for routing in routings
            for name, coefficient in coefficients.items()
            if name in routing.losses
        ]
        return sum(losses[1:], losses[0]) if losses else None

    def _after_pass(self, recorder: RouterWatch) -> Callable[..., None]:
        def collect(*_: Any) -> None:
            self._routings += recorder.take()

        return collect

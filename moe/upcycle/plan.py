"""What an upcycling is to make: how many experts, in which layers, by which method; checked before any work."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from moe.seed import require_seed
from runtime.errors import UsageError

MethodName = Literal["copy", "noise", "drop", "granular", "split"]
RouterName = Literal["random", "hidden-means", "clusters", "gates", "contributions"]
SplitBy = Literal["clusters", "contiguous"]


@dataclass(frozen=True, slots=True)
class UpcyclePlan:
    """Options of an upcycling.

    Attributes:
        experts: experts of a layer.
        top_k: experts that a token is sent to.
        layers: ``all``, ``every-other`` (the second, fourth, …), ``last:N``, or numbers from 0 such as ``1,3,5``.
        method: how a feed-forward block becomes experts; a file of ``moe/upcycle/methods`` each.
        router: how the router starts; a file of ``moe/upcycle/router_init`` each. By default random. A split
            block has its own: ``gates`` (the default), the mean gates of the neurons of each expert, or
            ``contributions``, a prediction from text.
        noise: standard deviation of the noise, as a share of the standard deviation of each tensor (noise).
        drop: share of the inner dimension that is drawn anew in each expert (drop).
        granularity: slices that the feed-forward block is cut into (granular).
        split_by: how neurons are grouped into experts (split): balanced clusters of the rows of their gates, or
            contiguous runs.
        attention: make experts of the attention projections as well.
        seed: of everything that is drawn; 0 to 2³² - 1. The same seed gives the same checkpoint.

    Raises:
        UsageError: a value that cannot be, such as more experts a token than experts.
    """

    experts: int = 8
    top_k: int = 2
    layers: str = "all"
    method: MethodName = "copy"
    router: RouterName | None = None
    noise: float = 0.01
    drop: float = 0.5
    granularity: int = 2
    split_by: SplitBy = "clusters"
    attention: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.experts < 1:
            raise UsageError(f"experts must be at least 1, got {self.experts}")
        if not 1 <= self.top_k <= self.experts:
            raise UsageError(
                f"a token cannot be sent to {self.top_k} of {self.experts} experts; "
                f"choose a top-k from 1 to {self.experts}"
            )
        for option, value, known in (
            ("method", self.method, get_args(MethodName)),
            ("router", self.starting_router, get_args(RouterName)),
            ("split_by", self.split_by, get_args(SplitBy)),
        ):
            if value not in known:
                raise UsageError(f"there is no {option} {value!r}; choose one of {', '.join(known)}")
        if (self.starting_router in ("gates", "contributions")) != (self.method == "split"):
            raise UsageError(
                f"router {self.starting_router} does not go with method {self.method}: the experts of a split block "
                "are found by what their neurons do (gates or contributions), and no others are"
            )
        if not 0 <= self.drop <= 1:
            raise UsageError(f"drop is a share from 0 to 1, got {self.drop:g}")
        if not 0 <= self.noise < float("inf"):
            raise UsageError(f"noise must be 0 or more, got {self.noise:g}")
        if self.granularity < 1:
            raise UsageError(f"granularity must be at least 1, got {self.granularity}")
        require_seed(self.seed)

    @property
    def starting_router(self) -> RouterName:
        return self.router or ("gates" if self.method == "split" else "random")

    def sparse_layers(self, num_layers: int) -> list[int]:
        """The layers that get experts, ascending, of a model with `num_layers`.

        Raises:
            UsageError: not a choice of layers, or none of the model's.
        """
        choice = self.layers.replace(" ", "")
        if choice == "all":
            return list(range(num_layers))
        if choice == "every-other":
            chosen = list(range(1, num_layers, 2))
            if not chosen:
                raise UsageError(
                    "every-other takes the second, fourth, … layer and the model has one; use all"
                )
            return chosen
        kind, _, number = choice.partition(":")
        if kind == "last" and _whole(number):
            if not 1 <= int(number) <= num_layers:
                raise UsageError(
                    f"layers {self.layers}: the model has {num_layers} layers; give last:1 to last:{num_layers}"
                )
            return list(range(num_layers - int(number), num_layers))
        numbers = choice.split(",")
        if not all(map(_whole, numbers)):
            raise UsageError(
                f"layers {self.layers!r} is no choice of layers; "
                "give all, every-other, last:N or numbers from 0 such as 1,3,5"
            )
        chosen = sorted(map(int, numbers))
        if chosen[-1] >= num_layers:
            raise UsageError(
                f"layers {self.layers}: there is no layer {chosen[-1]}; the model has layers 0 to {num_layers - 1}"
            )
        if len(set(chosen)) < len(chosen):
            raise UsageError(f"layers {self.layers} names a layer twice; name each once")
        return chosen


def _whole(text: str) -> bool:
    return text.isascii() and text.isdigit()

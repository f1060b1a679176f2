"""Rules that say where each parameter of a dense checkpoint goes when its feed-forward blocks become experts.

An architecture is data: which tensors are copied, which ones make up a feed-forward block, and which
architectures with experts can hold the result. A parameter that no rule names is an error, so that nothing is
ever left behind silently.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from moe.upcycle.plan import UpcyclePlan

PartName = Literal["gate", "up", "down", "gate_bias", "up_bias", "down_bias"]
"""A feed-forward block is ``down · (act(gate · x + gate_bias) ∘ (up · x + up_bias)) + down_bias``; without a gate
it is ``down · act(up · x + up_bias) + down_bias``. gate and up are ``[inner, width]``, down is ``[width, inner]``."""


@dataclass(frozen=True, slots=True)
class Copy:
    """A tensor that stays as it is.

    Attributes:
        pattern: regular expression that matches the whole name of the dense parameter.
        target: its name in the sparse checkpoint, with ``\\1`` and the like; the same name when None.
    """

    pattern: str
    target: str | None = None

    def renamed(self, name: str) -> str | None:
        """What `name` is called in the sparse checkpoint; None where the rule does not match it."""
        match = re.fullmatch(self.pattern, name)
        if match is None:
            return None
        return name if self.target is None else match.expand(self.target)


@dataclass(frozen=True, slots=True)
class LeaveOut:
    """A tensor that the sparse checkpoint does without.

    Attributes:
        pattern: regular expression that matches the whole name.
        reason: why it can be left out; of a tensor that must be zero, what cannot hold it otherwise.
        only_zero: leave it out when all its values are zero, and refuse the checkpoint when they are not.
    """

    pattern: str
    reason: str
    only_zero: bool = False

    def matches(self, name: str) -> bool:
        return re.fullmatch(self.pattern, name) is not None


@dataclass(frozen=True, slots=True)
class Part:
    """Where a part of a feed-forward block is found.

    Attributes:
        source: name of the dense parameter, with ``{layer}``.
        block: which of `blocks` equal blocks of rows it is, for parameters that hold several parts in one.
        transposed: stored as ``[in, out]``.
    """

    source: str
    block: int = 0
    blocks: int = 1
    transposed: bool = False


@dataclass(frozen=True, slots=True)
class FeedForward:
    """The feed-forward block of a layer: the parts it is made of.

    Attributes:
        parts: at least ``up`` and ``down``.
        module: name, with ``{layer}``, of the module of the dense model whose first argument is the block's
            input, ``[sequences, tokens, width]``.
    """

    parts: Mapping[PartName, Part]
    module: str

    def sources(self, layer: int) -> list[str]:
        """Names of the dense parameters of one layer, each once, in the order of the parts."""
        return list(dict.fromkeys(part.source.format(layer=layer) for part in self.parts.values()))


@dataclass(frozen=True, slots=True)
class AttentionProjections:
    """Names, with ``{layer}``, of the projections of a dense attention, all ``[out, in]`` and without biases."""

    query: str
    key: str
    value: str
    output: str

    def sources(self, layer: int) -> list[str]:
        """Names of one layer."""
        return [name.format(layer=layer) for name in (self.query, self.key, self.value, self.output)]


@dataclass(frozen=True, slots=True)
class AttentionExperts:
    """Names, with ``{layer}``, of the parameters of an attention whose query and output projections are experts.

    Attributes:
        router: ``[experts, width]``.
        query: ``[experts, heads · head width, width]``, one query head for each key.
        output: ``[experts, width, heads · head width]``.
        key_value: the key projection above the value projection, shared by all experts.
    """

    router: str
    query: str
    output: str
    key_value: str


@dataclass(frozen=True, slots=True)
class ExpertTensor:
    """A parameter of the experts of a layer in the sparse checkpoint.

    Attributes:
        name: with ``{layer}``, and with ``{expert}`` where each expert has a tensor of its own; without it the
            experts are stacked along a new first axis.
        parts: the parts of a feed-forward block that it holds, one below the other.
    """

    name: str
    parts: tuple[PartName, ...]

    @property
    def stacked(self) -> bool:
        return "{expert}" not in self.name


@dataclass(frozen=True, slots=True)
class SparseLayer:
    """The parameters of a layer of experts in the sparse checkpoint.

    Attributes:
        router: name of the router's weight ``[experts, width]``, with ``{layer}``.
        experts: the parameters of the experts.
        zeros: ``(name with {layer}, shape)`` of parameters that the architecture demands and that must do
            nothing, from the dense configuration.
        attention: the parameters of an attention with experts; None where attention stays dense.
    """

    router: str
    experts: tuple[ExpertTensor, ...]
    zeros: Callable[[Any], list[tuple[str, tuple[int, ...]]]] | None = None
    attention: AttentionExperts | None = None


@dataclass(frozen=True, slots=True)
class Target:
    """An architecture with experts that may hold an upcycled checkpoint.

    Attributes:
        model_type: as transformers knows it.
        layer: names of the parameters of a layer of experts. Those of a layer that stays dense are copied under
            their own names.
        refusal: from the dense configuration and the plan, why this architecture cannot hold the result
            exactly; None where it can. The reason completes "Mixtral …".
        config: from the dense configuration, the plan and the width of an expert, the sparse configuration, as
            keyword arguments of the configuration class of `model_type`.
        renamed: name of a copied parameter in this architecture, where that differs.
        left_out: rules for dense parameters that it cannot hold.
        notes: what someone who runs the result should know, each a sentence, from the sparse configuration.
    """

    model_type: str
    layer: SparseLayer
    refusal: Callable[[Any, UpcyclePlan], str | None]
    config: Callable[[Any, UpcyclePlan, int], dict[str, Any]]
    copies: tuple[Copy, ...] = ()
    left_out: tuple[LeaveOut, ...] = ()
    notes: Callable[[dict[str, Any]], list[str]] = field(default=lambda _: [])


@dataclass(frozen=True, slots=True)
class Architecture:
    """A dense architecture that can be upcycled.

    Attributes:
        model_type: as transformers knows it.
        copies: parameters that stay as they are; tried in order, the target's own before them.
        feed_forward: the block that becomes experts.
        attention: its projections, where there are targets that make experts of them.
        targets: architectures that may hold the result, the best known first; the first that does not refuse is
            taken.
        left_out: parameters that no sparse checkpoint needs.
        auto_class: the class of transformers that loads both, which gives ``logits`` or a last hidden state.
        complete: whether the checkpoint must hold every parameter of `auto_class`, tied ones aside.
        prefix: start of the names of all parameters but the head's.
        bare: rules for a folder of the model without its head, whose names lack the prefix; None where such a
            folder has no rules of its own.
    """

    model_type: str
    copies: tuple[Copy, ...]
    feed_forward: FeedForward
    targets: tuple[Target, ...]
    left_out: tuple[LeaveOut, ...] = ()
    attention: AttentionProjections | None = None
    auto_class: str = "AutoModelForCausalLM"
    complete: bool = True
    prefix: str = ""
    bare: Architecture | None = None

    def of_folder(self, names: Iterable[str]) -> Architecture:
        """These rules, or `bare` where none of the folder's parameters has the prefix."""
        has_prefix = any(name.startswith(self.prefix) for name in names)
        return self if has_prefix or self.bare is None else self.bare

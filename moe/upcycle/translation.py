"""From the tensors of a dense checkpoint to those of a sparse one: what to write, before any is written."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from moe.upcycle.attention_experts import AttentionTranslation
from moe.upcycle.checkpoint_folder import CheckpointFolder, widest
from moe.upcycle.methods.method import Block, Method, scaling_is_exact
from moe.upcycle.plan import UpcyclePlan
from moe.upcycle.router_init.start import RouterRows
from moe.upcycle.rules import Architecture, ExpertTensor, Part, PartName, Target
from moe.upcycle.shard_writer import Output
from runtime.errors import FormatError, UsageError


def choose_target(architecture: Architecture, config: Any, plan: UpcyclePlan) -> Target:
    """The first target of an architecture that can hold what the plan makes.

    Raises:
        UsageError: none can; says why, target by target.
    """
    reasons = []
    for target in architecture.targets:
        reason = target.refusal(config, plan)
        if reason is None:
            return target
        reasons.append(f"{target.model_type} {reason}")
    raise UsageError(
        f"no architecture with experts can hold this {architecture.model_type} checkpoint exactly: "
        + "; ".join(reasons)
    )


class Translation:
    """The tensors of the sparse checkpoint, in an order in which each layer of the dense one is read once.

    Attributes:
        layers: those that get experts.
        expert_width: neurons of an expert.
        expert_parameters: parameters of one expert of one layer, of its attention as well.
        expert_bytes: of all experts of all layers.
        dtype: of the experts of the first of these layers: the widest of its block, so that none is rounded.
        exact: whether the result computes what the dense model does.
    """

    def __init__(
        self,
        folder: CheckpointFolder,
        config: Any,
        architecture: Architecture,
        target: Target,
        plan: UpcyclePlan,
        method: Method,
        router_rows: RouterRows,
    ) -> None:
        """Find the layers, and what they will be like; there may be far too many experts to name their tensors yet.

        Raises:
            UsageError: no such layers, or blocks that the method cannot cut.
            FormatError: a parameter is missing, or has another shape than the configuration says.
        """
        self._folder, self._architecture, self._method = folder, architecture, method
        self._target, self._config = target, config
        self._plan, self._router_rows = plan, router_rows
        self._layer, self._block = -1, dict[PartName, Tensor]()
        self._expert, self._expert_parts = (-1, -1), dict[PartName, Tensor]()
        if architecture.complete:
            _require_complete(folder, config, architecture)
        self.layers = plan.sparse_layers(config.num_hidden_layers)
        _require_no_more_layers(folder, architecture, config.num_hidden_layers)
        self._names = {layer: self._sources(layer, config.num_hidden_layers) for layer in self.layers}
        dtypes = {layer: self._dtype(layer) for layer in self.layers}
        shapes = self._shapes(self.layers[0])
        self.expert_width = method.expert_width(shapes["up"][0])
        self.expert_parameters = sum(
            math.prod(self._expert_shape(shapes, tensor)) for tensor in target.layer.experts
        )
        self.dtype = dtypes[self.layers[0]]
        self.exact = all(map(method.is_exact, dtypes.values()))
        self._attention: AttentionTranslation | None = None
        if target.layer.attention is not None and architecture.attention is not None:
            self._attention = AttentionTranslation(
                folder, config, architecture.attention, target.layer.attention, plan
            )
            self.expert_parameters += self._attention.expert_parameters
            self.exact &= all(
                scaling_is_exact(self._attention.groups, self._attention.dtype(layer))
                for layer in self.layers
            )
            for layer in self.layers:
                self._names[layer] = architecture.attention.sources(layer) + self._names[layer]
        itemsizes = sum(dtype.itemsize for dtype in dtypes.values())
        self.expert_bytes = plan.experts * self.expert_parameters * itemsizes

    @cached_property
    def outputs(self) -> list[Output]:
        """What to write: every tensor matched with a rule, when it is first asked for.

        Raises:
            UsageError: a parameter without a rule, or one that the target cannot hold.
            FormatError: the projections of a block do not fit together.
        """
        folder, config, target, sources = self._folder, self._config, self._target, self._names
        dense_blocks = {
            name
            for layer in range(config.num_hidden_layers)
            if layer not in sources
            for name in self._architecture.feed_forward.sources(layer)
        }
        of_layer = {names[-1]: layer for layer, names in sources.items()}
        consumed = {name for names in sources.values() for name in names}
        outputs: list[Output] = []
        for name, entry in folder.entries.items():
            if name not in consumed:
                renamed = name if name in dense_blocks else self._renamed(name, target)
                if renamed is not None:
                    outputs.append(Output(renamed, entry.shape, entry.dtype, partial(self._read_one, name)))
            elif name in of_layer:
                outputs += self._layer_outputs(of_layer[name], target, config)
        twice = _first_repeated([output.name for output in outputs])
        if twice is not None:
            raise UsageError(f"two parameters of {folder.path} would both become {twice}; remove one")
        return outputs

    def _renamed(self, name: str, target: Target) -> str | None:
        for rule in (*target.copies, *self._architecture.copies):
            renamed = rule.renamed(name)
            if renamed is not None:
                return renamed
        for left_out in (*target.left_out, *self._architecture.left_out):
            if left_out.matches(name):
                if left_out.only_zero and bool(self._folder.read(name).any()):
                    raise UsageError(
                        f"{self._folder.path}: {name} is not zero and cannot be kept, because {left_out.reason}"
                    )
                return None
        raise UsageError(
            f"{self._folder.path}: no rule says where {name} goes in {target.model_type}; it is no parameter of a "
            f"plain {self._architecture.model_type} model"
        )

    def _sources(self, layer: int, num_layers: int) -> list[str]:
        names = self._architecture.feed_forward.sources(layer)
        for name in names:
            if name not in self._folder.entries:
                raise FormatError(
                    f"{self._folder.path} lacks {name}, though its configuration has {num_layers} layers; copy the "
                    "checkpoint again"
                )
        return names

    def _dtype(self, layer: int) -> torch.dtype:
        """The narrowest that holds every part of the block of a layer; exact, because floats only get wider."""
        return widest(self._folder, self._architecture.feed_forward.sources(layer))

    def _shapes(self, layer: int) -> dict[PartName, tuple[int, ...]]:
        shapes: dict[PartName, tuple[int, ...]] = {}
        for name, part in self._architecture.feed_forward.parts.items():
            shape = self._folder.entries[part.source.format(layer=layer)].shape
            shape = shape[::-1] if part.transposed else shape
            shapes[name] = (shape[0] // part.blocks, *shape[1:])
        return shapes

    def _layer_outputs(self, layer: int, target: Target, config: Any) -> Iterator[Output]:
        if self._attention is not None:
            yield from self._attention.outputs(layer)
        shapes = self._shapes(layer)
        inner, width = shapes["up"]
        if shapes["down"] != (width, inner) or shapes.get("gate", (inner, width)) != (inner, width):
            raise FormatError(
                f"{self._folder.path}: the projections of the feed-forward block of layer {layer} do not fit "
                "together; copy the checkpoint again"
            )
        dtype = self._dtype(layer)
        yield Output(
            target.layer.router.format(layer=layer),
            (self._plan.experts, width),
            dtype,
            partial(self._router, layer),
        )
        experts = range(self._plan.experts)
        for expert in experts:
            for tensor in target.layer.experts:
                if not tensor.stacked:
                    name = tensor.name.format(layer=layer, expert=expert)
                    shape = self._expert_shape(shapes, tensor)
                    yield Output(name, shape, dtype, partial(self._experts, layer, tensor, [expert]))
        for tensor in target.layer.experts:
            if tensor.stacked:
                shape = (len(experts), *self._expert_shape(shapes, tensor))
                name = tensor.name.format(layer=layer)
                yield Output(name, shape, dtype, partial(self._experts, layer, tensor, experts))
        for name, shape in target.layer.zeros(config) if target.layer.zeros else ():
            yield Output(name.format(layer=layer), shape, dtype, partial(_zeros, shape, dtype))

    def _expert_shape(self, shapes: dict[PartName, tuple[int, ...]], tensor: ExpertTensor) -> tuple[int, ...]:
        """Shape of what one expert has in a tensor."""
        inner = self._method.expert_width(shapes["up"][0])
        width = shapes["up"][1]
        of_part: dict[PartName, tuple[int, ...]] = {
            "gate": (inner, width),
            "up": (inner, width),
            "down": (width, inner),
            "gate_bias": (inner,),
            "up_bias": (inner,),
            "down_bias": (width,),
        }
        parts = [of_part[part] for part in tensor.parts]
        return (sum(part[0] for part in parts), *parts[0][1:])

    def _read_one(self, name: str) -> Iterator[Tensor]:
        yield self._folder.read(name)

    def _router(self, layer: int) -> Iterator[Tensor]:
        block = self._arranged(layer)
        yield self._method.router(self._router_rows(layer, self._method.router_rows, block))

    def _experts(self, layer: int, tensor: ExpertTensor, experts: range | list[int]) -> Iterator[Tensor]:
        for expert in experts:
            made = self._made(layer, expert)
            for part in tensor.parts:
                yield made[part]

    def _made(self, layer: int, expert: int) -> Block:
        """The parts of an expert; the last one is kept for its next tensor, and no other."""
        if self._expert != (layer, expert):
            self._expert_parts = {}
            self._expert_parts = dict(self._method.expert(self._arranged(layer), layer, expert))
            self._expert = (layer, expert)
        return self._expert_parts

    def _arranged(self, layer: int) -> Block:
        """The block of a layer as its method wants it; the last one is kept, and no other."""
        if layer != self._layer:
            self._block, self._expert_parts, self._expert = {}, {}, (-1, -1)
            dtype = self._dtype(layer)
            block = {
                name: self._part(part, layer).to(dtype)
                for name, part in self._architecture.feed_forward.parts.items()
            }
            self._block = dict(self._method.arrange(block, layer))
            self._layer = layer
        return self._block

    def _part(self, part: Part, layer: int) -> Tensor:
        tensor = self._folder.read(part.source.format(layer=layer))
        tensor = tensor.T if part.transposed else tensor
        return tensor.chunk(part.blocks)[part.block]


def _require_complete(folder: CheckpointFolder, config: Any, architecture: Architecture) -> None:
    """Compare names and shapes with those of the model that the configuration describes, without its memory."""
    import transformers

    with torch.device("meta"):
        model = getattr(transformers, architecture.auto_class).from_config(config)
    tied = set(getattr(model, "all_tied_weights_keys", None) or {})
    for name, parameter in model.state_dict().items():
        entry = folder.entries.get(name)
        if entry is None and name not in tied:
            raise FormatError(
                f"{folder.path} lacks {name}, which its configuration asks for; copy the checkpoint again"
            )
        if entry is not None and entry.shape != tuple(parameter.shape):
            raise FormatError(
                f"{entry.file}: {name} has shape {list(entry.shape)} where the configuration asks for "
                f"{list(parameter.shape)}; copy weights and configuration of the same model"
            )


def _require_no_more_layers(folder: CheckpointFolder, architecture: Architecture, num_layers: int) -> None:
    """Refuse weights of a layer that the configuration does not count; no rule would know what they are.

    Raises:
        FormatError: there is one.
    """
    beyond = next((n for n in architecture.feed_forward.sources(num_layers) if n in folder.entries), None)
    if beyond is not None:
        raise FormatError(
            f"{folder.path} has {beyond}, but its configuration has {num_layers} layers only, 0 to {num_layers - 1}; "
            "copy weights and configuration of the same model"
        )


def _zeros(shape: tuple[int, ...], dtype: torch.dtype) -> Iterator[Tensor]:
    yield torch.zeros(shape, dtype=dtype)


def _first_repeated(names: list[str]) -> str | None:
    return next((name for name, count in Counter(names).items() if count > 1), None)

"""Back from encoders with experts to BERT, DistilBERT and ModernBERT: where each of their tensors goes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moe.upcycle.checkpoint_folder import CheckpointFolder
from moe.upcycle.rules import Architecture, ExpertTensor
from moe.upcycle.shard_writer import Output
from moe.upcycle.targets.moe_encoder import OF_THE_MODEL_TYPE
from runtime.errors import FormatError, UsageError

DENSE_TYPES = {"moe_bert": "bert", "moe_distilbert": "distilbert", "moe_modernbert": "modernbert"}
"""Model type of an encoder with experts to that of the dense one."""


def dense_encoder_config(sparse: Path, config: Any, architecture: Architecture) -> Any:
    """The dense configuration of an encoder with experts.

    Args:
        sparse: its folder, for messages.
        config: of a model type of `DENSE_TYPES`.
        architecture: the rules of the dense one.

    Raises:
        UsageError: experts and dense layers have other numbers of neurons.
    """
    import transformers

    from moe.models.expert_configuration import ExpertConfiguration

    width_name = "hidden_dim" if config.model_type == "moe_distilbert" else "intermediate_size"
    width = getattr(config, width_name)
    of_experts = config.moe_intermediate_size or width
    if of_experts != width and len(config.moe_layers) < config.num_hidden_layers:
        raise UsageError(
            f"the experts of {sparse} have {of_experts} neurons and its dense layers {width}; a dense encoder has "
            "the same number in every layer"
        )
    of_no_dense_one = {*OF_THE_MODEL_TYPE, *(field.name for field in fields(ExpertConfiguration))}
    kept = {name: value for name, value in config.to_dict().items() if name not in of_no_dense_one}
    dense = transformers.AutoConfig.for_model(
        DENSE_TYPES[config.model_type], **kept | {width_name: of_experts}
    )
    loaders = getattr(transformers, architecture.auto_class)
    dense.architectures = [loaders._model_mapping[type(dense)].__name__]
    return dense


def dense_encoder_outputs(
    folder: CheckpointFolder, config: Any, architecture: Architecture, kept: list[int]
) -> Iterator[Output]:
    """The tensors of the dense encoder, each made of those of the experts `kept`; routers are left behind.

    Raises:
        FormatError: a tensor of the experts is missing.
        UsageError: one is there that no rule knows.
    """
    left = dict(folder.entries)
    layer_of_experts = architecture.targets[0].layer
    parts = architecture.feed_forward.parts
    for layer in config.moe_layers:
        router = layer_of_experts.router.format(layer=layer).removesuffix("gate.weight")
        for name in [name for name in left if name.startswith(router)]:
            del left[name]
        for tensor in layer_of_experts.experts:
            name = tensor.name.format(layer=layer)
            entry = left.pop(name, None)
            if entry is None or len(entry.shape) < 2 or entry.shape[0] != config.num_experts:
                raise FormatError(
                    f"{folder.path} lacks {name} of {config.num_experts} experts; save it again with save_pretrained"
                )
            source = _source_of(tensor, architecture)
            yield Output(
                parts[source].source.format(layer=layer),
                entry.shape[1:],
                entry.dtype,
                partial(_mean_of_stacked, folder, name, kept),
            )
    dense_layers = sorted(set(range(config.num_hidden_layers)) - set(config.moe_layers))
    stays = {name for layer in dense_layers for name in architecture.feed_forward.sources(layer)}
    for name, entry in left.items():
        if name not in stays and not any(rule.renamed(name) for rule in architecture.copies):
            raise UsageError(
                f"{folder.path}: no rule says where {name} goes in {architecture.model_type}; it is no parameter of "
                f"a plain {config.model_type} model"
            )
        yield Output(name, entry.shape, entry.dtype, partial(_as_it_is, folder, name))


def _source_of(tensor: ExpertTensor, architecture: Architecture) -> Any:
    """The part that names the dense tensor; a gate and what it gates are one tensor in both, in the same order."""
    sources = {architecture.feed_forward.parts[part].source for part in tensor.parts}
    assert len(sources) == 1, tensor
    return tensor.parts[0]


def _mean_of_stacked(folder: CheckpointFolder, name: str, kept: list[int]) -> Iterator[Tensor]:
    stacked = folder.read(name)
    yield stacked[kept[0]] if len(kept) == 1 else stacked[kept].to(torch.float64).mean(0)


def _as_it_is(folder: CheckpointFolder, name: str) -> Iterator[Tensor]:
    yield folder.read(name)

"""Back from experts: a checkpoint with one expert left, or with its experts averaged, becomes a dense one."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moe.upcycle.architectures.catalogue import architecture_of
from moe.upcycle.check import ReferenceOutputs, require_memory
from moe.upcycle.checkpoint_folder import CheckpointFolder, companion_files
from moe.upcycle.export_encoder import DENSE_TYPES, dense_encoder_config, dense_encoder_outputs
from moe.upcycle.model_runs import loaded_model
from moe.upcycle.rules import Architecture, Target
from moe.upcycle.sample_text import SAMPLE_TEXTS
from moe.upcycle.shard_writer import SHARD_BYTES, Output, write_shards
from moe.upcycle.targets import mixtral, qwen2_moe, qwen3_moe
from moe.upcycle.targets.decoder import shared_fields
from runtime.errors import FormatError, LexpertError, UsageError
from runtime.output_folder import new_folder, require_new, require_room
from runtime.progress import progress

_TARGETS: dict[str, Target] = {
    target.model_type: target for target in (mixtral.TARGET, qwen2_moe.TARGET, qwen3_moe.TARGET)
}


@dataclass(frozen=True, slots=True)
class ExportReport:
    """What an export made.

    Attributes:
        sparse: the folder that it was made from.
        out: the folder that was made.
        sparse_type, dense_type: model types of transformers.
        experts: experts of each layer that became one block.
        parameters: of the dense checkpoint; tied ones count once.
        difference: largest absolute difference between the outputs of the two on a text, in float32; None where
            that was not checked.
    """

    sparse: str
    out: str
    sparse_type: str
    dense_type: str
    experts: int
    parameters: int
    difference: float | None


def export_dense(
    sparse: str | Path,
    out: str | Path,
    *,
    expert: int | None = None,
    average: bool = False,
    check: bool = True,
    shard_bytes: int = SHARD_BYTES,
) -> ExportReport:
    """Make a dense checkpoint of one with experts: Mixtral, Qwen2-MoE or Qwen3-MoE, or an encoder of `moe.models`.

    With one expert in each layer the result computes the same. Of several, either one is kept, the same in
    all layers, or their parameters are averaged, which keeps what a checkpoint computes only while its experts
    are alike.

    Args:
        sparse: folder of the checkpoint.
        out: folder to make; it appears when it is whole.
        expert: keep this expert of each layer, from 0.
        average: keep the mean of all experts of each layer.
        check: compare the outputs of both models on a text. A difference where there was one expert is an error.

    Raises:
        UsageError: several experts and no word on which to keep, or a checkpoint that is no dense one's.
        NotFoundError: the folder, its configuration or its weights are missing.
        FormatError: they are damaged.
        ConflictError: `out` exists, or another process is writing it.
        LexpertError: not enough disk or memory, or a difference where there must be none.
    """
    sparse, out = Path(sparse), Path(out)
    require_new(out)
    folder = CheckpointFolder(sparse)
    if folder.model_type not in (*_TARGETS, *DENSE_TYPES):
        raise UsageError(
            f"{sparse} is of the architecture {folder.model_type!r}; dense checkpoints can be made of "
            f"{', '.join((*_TARGETS, *DENSE_TYPES))}"
        )
    if folder.model_type in DENSE_TYPES:
        import moe.models  # noqa: F401 - so that transformers knows its configuration
    config = folder.config()
    num_experts = int(config.num_local_experts if folder.model_type == "mixtral" else config.num_experts)
    kept = _kept_experts(sparse, num_experts, expert, average)
    if folder.model_type in DENSE_TYPES:
        architecture = architecture_of(DENSE_TYPES[folder.model_type]).of_folder(folder.entries)
        dense_config = dense_encoder_config(sparse, config, architecture)
        outputs = list(dense_encoder_outputs(folder, config, architecture, kept))
    else:
        dense_config = _dense_config(sparse, config)
        architecture = architecture_of(dense_config.model_type)
        outputs = list(_outputs(folder, config, _TARGETS[folder.model_type], architecture, kept))
    parameters = sum(math.prod(output.shape) for output in outputs)
    num_bytes = sum(output.num_bytes for output in outputs)
    require_room(out, num_bytes)
    before = None
    if check:
        require_memory(4 * sum(math.prod(entry.shape) for entry in folder.entries.values()))
        with loaded_model(sparse, architecture.auto_class) as model:
            before = ReferenceOutputs(sparse, config, model, SAMPLE_TEXTS)
    with new_folder(out) as unfinished:
        with progress("writing dense layers", num_bytes, "bytes") as advance:
            write_shards(unfinished, outputs, advance, shard_bytes)
        for path in companion_files(sparse):
            shutil.copyfile(path, unfinished / path.name)
        dense_config.save_pretrained(unfinished)
        difference = None
        if before is not None:
            difference = before.largest_difference(unfinished, architecture.auto_class)
            if num_experts == 1 and not before.is_within_tolerance(difference):
                raise LexpertError(
                    f"{sparse} and the dense checkpoint made of it differ by {difference:.3g}, though it has one "
                    "expert; it may do what its configuration does not say"
                )
    return ExportReport(
        str(sparse),
        str(out),
        folder.model_type,
        dense_config.model_type,
        num_experts,
        parameters,
        difference,
    )


def _kept_experts(sparse: Path, num_experts: int, expert: int | None, average: bool) -> list[int]:
    if expert is not None and average:
        raise UsageError("either one expert is kept or all are averaged; give one of the two")
    if expert is not None and not 0 <= expert < num_experts:
        raise UsageError(f"there is no expert {expert}; {sparse} has experts 0 to {num_experts - 1}")
    if expert is not None:
        return [expert]
    if num_experts > 1 and not average:
        raise UsageError(
            f"{sparse} has {num_experts} experts in a layer and a dense checkpoint has room for one; average them "
            "(--average) or name the one to keep (--expert)"
        )
    return list(range(num_experts))


def _dense_config(sparse: Path, config: Any) -> Any:
    """The dense configuration whose attention is that of a sparse one.

    Raises:
        UsageError: there is none.
    """
    from transformers import AutoConfig

    fields = shared_fields(config)
    if config.model_type == "qwen3_moe":
        types = ["sliding_attention" if config.use_sliding_window else "full_attention"]
        own = {
            "attention_bias": config.attention_bias,
            "use_sliding_window": config.use_sliding_window,
            "sliding_window": config.sliding_window,
            "layer_types": types * config.num_hidden_layers,
        }
        model_type = "qwen3"
    elif config.model_type == "qwen2_moe" and config.qkv_bias:
        own = {
            "use_sliding_window": config.use_sliding_window,
            "sliding_window": config.sliding_window or None,
            "layer_types": list(config.layer_types),
        }
        model_type = "qwen2"
    else:
        windows = {
            config.sliding_window or None if kind == "sliding_attention" else None
            for kind in getattr(config, "layer_types", None) or ["sliding_attention"]
        }
        if len(windows) > 1:
            raise UsageError(
                f"{sparse} has a sliding window in some layers and no attention biases, which no dense architecture "
                "known here has"
            )
        (window,) = windows
        # Llama demands heads that divide the width; Mistral does not
        plain = window is None and config.hidden_size % config.num_attention_heads == 0
        own, model_type = ({}, "llama") if plain else ({"sliding_window": window}, "mistral")
    widths = {config.intermediate_size}
    if config.model_type != "mixtral":
        layers = range(config.num_hidden_layers)
        has_dense = len(_sparse_layers(config)) < len(layers)
        widths = {config.moe_intermediate_size} | ({config.intermediate_size} if has_dense else set())
    if len(widths) > 1:
        raise UsageError(
            f"the experts of {sparse} have {config.moe_intermediate_size} neurons and its dense layers "
            f"{config.intermediate_size}; a dense architecture has the same number in every layer"
        )
    dense = AutoConfig.for_model(model_type, **fields | own | {"intermediate_size": widths.pop()})
    dense.architectures = [
        {
            "llama": "LlamaForCausalLM",
            "mistral": "MistralForCausalLM",
            "qwen2": "Qwen2ForCausalLM",
            "qwen3": "Qwen3ForCausalLM",
        }[model_type]
    ]
    return dense


def _sparse_layers(config: Any) -> list[int]:
    layers = range(config.num_hidden_layers)
    if config.model_type == "mixtral":
        return list(layers)
    return [
        layer
        for layer in layers
        if layer not in config.mlp_only_layers and (layer + 1) % config.decoder_sparse_step == 0
    ]


def _outputs(
    folder: CheckpointFolder, config: Any, target: Target, architecture: Architecture, kept: list[int]
) -> Iterator[Output]:
    """Every tensor of the sparse checkpoint goes somewhere, or is known to do nothing."""
    left = dict(folder.entries)
    sparse_layers = _sparse_layers(config)
    for layer in sparse_layers:
        names: dict[str, list[str]] = {
            name: [
                tensor.name.format(layer=layer, expert=expert)
                for expert in range(config.num_experts)
                for tensor in target.layer.experts
                if tensor.parts == (name,)
            ]
            for name in architecture.feed_forward.parts
        }
        router = target.layer.router.format(layer=layer)
        for needed in (router, *(one for of_part in names.values() for one in of_part)):
            if left.pop(needed, None) is None:
                raise FormatError(f"{folder.path} lacks {needed}; save it again with a recent transformers")
        for part_name, part in architecture.feed_forward.parts.items():
            chosen = [names[part_name][expert] for expert in kept]
            entry = folder.entries[chosen[0]]
            yield Output(
                part.source.format(layer=layer), entry.shape, entry.dtype, partial(_mean, folder, chosen)
            )
        zeros = (
            [name.format(layer=layer) for name, _ in target.layer.zeros(config)] if target.layer.zeros else []
        )
        given = [name for name in zeros if left.pop(name, None) is not None]
        if given and bool(folder.read(next(n for n in given if "down_proj" in n)).any()):
            raise UsageError(
                f"the shared expert of layer {layer} of {folder.path} takes part in what the model computes, and a "
                "dense checkpoint has no room for it"
            )
    stay_dense = {
        name
        for layer in range(config.num_hidden_layers)
        if layer not in sparse_layers
        for name in architecture.feed_forward.sources(layer)
    }
    rules = (*target.copies, *architecture.copies)
    for name, entry in left.items():
        if name not in stay_dense and not any(rule.renamed(name) for rule in rules):
            raise UsageError(
                f"{folder.path}: no rule says where {name} goes in {architecture.model_type}; it is no parameter of "
                f"a plain {target.model_type} model"
            )
        yield Output(name, entry.shape, entry.dtype, partial(_mean, folder, [name]))


def _mean(folder: CheckpointFolder, names: list[str]) -> Iterator[Tensor]:
    """The mean of equally shaped tensors, one in memory beside the sum; a single one as it is."""
    if len(names) == 1:
        yield folder.read(names[0])
        return
    total = folder.read(names[0]).to(torch.float64)
    for name in names[1:]:
        total += folder.read(name)
    yield total / len(names)

"""Upcycling: a dense checkpoint becomes one with experts (Komatsuzaki et al. 2023, "Sparse Upcycling")."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from moe.upcycle.architectures.catalogue import architecture_of
from moe.upcycle.check import ReferenceOutputs, require_memory
from moe.upcycle.checkpoint_folder import CheckpointFolder, companion_files
from moe.upcycle.methods.catalogue import method_of
from moe.upcycle.model_runs import hidden_states_of, loaded_model, token_ids, tokenizer_of
from moe.upcycle.plan import MethodName, RouterName, SplitBy, UpcyclePlan
from moe.upcycle.router_init.contributions import Activation
from moe.upcycle.router_init.start import FROM_TEXT, router_start
from moe.upcycle.rules import Architecture
from moe.upcycle.sample_text import SAMPLE_TEXTS
from moe.upcycle.shard_writer import SHARD_BYTES, write_shards
from moe.upcycle.sparse_config import sparse_config
from moe.upcycle.translation import Translation, choose_target
from runtime.errors import FormatError, LexpertError, UsageError
from runtime.output_folder import new_folder, require_new, require_room
from runtime.progress import progress

PLAN_FILE = "upcycling.json"
"""What the folder was made from and how; nothing needs it to load the model."""

ROUTER_TOKENS = 8192
"""Tokens, over all sample texts, that routers are initialised from."""


@dataclass(frozen=True, slots=True)
class UpcycleReport:
    """What an upcycling made.

    Attributes:
        dense: the folder that it was made from.
        out: the folder that was made.
        dense_type, sparse_type: model types of transformers.
        layers: the layers that got experts.
        expert_width: neurons of an expert.
        dense_parameters, sparse_parameters: numbers of parameters; tied ones count once.
        active_parameters: parameters of the sparse model that one token uses.
        exact: whether the sparse model is to compute what the dense one does.
        difference: largest absolute difference between the outputs of the two on the sample text, in float32;
            None where that was not checked.
        largest_output: largest absolute output of the dense model there.
        notes: what to know before the result is used, each a sentence.
    """

    dense: str
    out: str
    dense_type: str
    sparse_type: str
    layers: list[int]
    expert_width: int
    dense_parameters: int
    sparse_parameters: int
    active_parameters: int
    exact: bool
    difference: float | None
    largest_output: float | None
    notes: list[str]


def upcycle(
    dense: str | Path,
    out: str | Path,
    *,
    experts: int = 8,
    top_k: int = 2,
    layers: str = "all",
    method: MethodName = "copy",
    router: RouterName | None = None,
    noise: float = 0.01,
    drop: float = 0.5,
    granularity: int = 2,
    split_by: SplitBy = "clusters",
    attention: bool = False,
    seed: int = 0,
    sample: Sequence[str] | None = None,
    check: bool = True,
    shard_bytes: int = SHARD_BYTES,
) -> UpcycleReport:
    """Make a mixture-of-experts checkpoint of a dense one.

    The result is a folder of a standard architecture with experts, which transformers loads without this
    package; of an encoder, one of `moe.models`. Tensors are streamed: memory stays near that of one feed-forward
    block, but for the check and for routers that start from text, which load whole models in float32.

    Args:
        dense: folder with config.json, safetensors weights and, if there is one, the tokenizer.
        out: folder to make; it appears when it is whole.
        experts, top_k, layers, method, router, noise, drop, granularity, split_by, attention, seed: see
            `UpcyclePlan`.
        sample: texts for the check, and for a router that starts from hidden states: with as many texts as the
            router has rows, each expert (or virtual group) starts with one of them. Two short ones by default.
        check: compare the outputs of dense and sparse model on the sample text before the folder appears. An
            exact method that differs is an error.
        shard_bytes: most bytes of a file of weights.

    Raises:
        UsageError: the plan cannot be carried out, or no architecture holds its result.
        NotFoundError: the folder, its configuration or its weights are missing.
        FormatError: they are damaged.
        ConflictError: `out` exists, or another process is writing it.
        LexpertError: not enough disk or memory, or an exact method whose outputs differ.
    """
    dense, out = Path(dense), Path(out)
    plan = UpcyclePlan(
        experts, top_k, layers, method, router, noise, drop, granularity, split_by, attention, seed
    )
    texts = list(SAMPLE_TEXTS if sample is None else sample)
    if not all(text.strip() for text in texts) or not texts:
        raise UsageError("a sample text is empty; give some sentences or leave it out")
    if shard_bytes < 1 << 20:
        raise UsageError(f"a shard must take 1 MiB or more, got {shard_bytes} bytes")
    require_new(out)
    folder = CheckpointFolder(dense)
    architecture = architecture_of(folder.model_type).of_folder(folder.entries)
    config = folder.config()
    target = choose_target(architecture, config, plan)
    hidden: dict[int, list[Tensor]] = {}
    translation = Translation(
        folder,
        config,
        architecture,
        target,
        plan,
        method_of(plan),
        router_start(plan, hidden, _activation(dense / "config.json", config)),
    )
    require_room(out, translation.expert_bytes)
    num_bytes = sum(output.num_bytes for output in translation.outputs)
    require_room(out, num_bytes)
    sparse_parameters = sum(math.prod(output.shape) for output in translation.outputs)
    if check:
        require_memory(sparse_parameters * 4)
    made_config = sparse_config(target, config, plan, translation.expert_width, architecture.auto_class)
    outputs = None
    if check or plan.starting_router in FROM_TEXT:
        with loaded_model(dense, architecture.auto_class) as model:
            if plan.starting_router in FROM_TEXT:
                hidden |= _hidden_states(dense, model, architecture, translation.layers, texts)
            if check:
                outputs = ReferenceOutputs(dense, config, model, texts)
    with new_folder(out) as partial:
        with progress("writing experts", num_bytes, "bytes") as advance:
            write_shards(partial, translation.outputs, advance, shard_bytes)
        for path in companion_files(dense):
            shutil.copyfile(path, partial / path.name)
        made = {"dense": str(dense), "dense_type": folder.model_type, **asdict(plan)}
        (partial / PLAN_FILE).write_text(json.dumps(made, indent=2) + "\n", "utf-8")
        made_config.save_pretrained(partial)
        difference = None
        if outputs is not None:
            difference = outputs.largest_difference(partial, architecture.auto_class)
            if translation.exact and not outputs.is_within_tolerance(difference):
                raise LexpertError(
                    f"{dense} and what was made of it differ by {difference:.3g}, though method {plan.method} is "
                    "exact; the checkpoint may do what its configuration does not say"
                )
    unused = translation.expert_parameters * (plan.experts - plan.top_k) * len(translation.layers)
    return UpcycleReport(
        dense=str(dense),
        out=str(out),
        dense_type=folder.model_type,
        sparse_type=target.model_type,
        layers=translation.layers,
        expert_width=translation.expert_width,
        dense_parameters=sum(math.prod(entry.shape) for entry in folder.entries.values()),
        sparse_parameters=sparse_parameters,
        active_parameters=sparse_parameters - unused,
        exact=translation.exact,
        difference=difference,
        largest_output=None if outputs is None else outputs.largest,
        notes=_notes(plan, translation, sample) + target.notes(made_config.to_dict()),
    )


def _hidden_states(
    dense: Path, model: Any, architecture: Architecture, layers: list[int], texts: list[str]
) -> dict[int, list[Tensor]]:
    tokenizer = tokenizer_of(dense)
    if tokenizer is None:
        raise UsageError(
            f"{dense} has no tokenizer, which a router that starts from text needs; save it there, or start from a "
            "random router"
        )
    config = model.config
    positions = min(512, config.max_position_embeddings)
    ids = token_ids(tokenizer, texts, config.vocab_size, max(1, ROUTER_TOKENS // len(texts)), positions)
    return hidden_states_of(model, architecture, layers, ids)


def _activation(config_file: Path, config: Any) -> Activation:
    """The activation of the feed-forward blocks, under any of the names that configurations have for it.

    Raises:
        FormatError: transformers knows none of that name.
    """
    from transformers.activations import ACT2FN

    names = ("hidden_act", "hidden_activation", "activation")
    name = next(name for name in names if hasattr(config, name))
    activation = getattr(config, name)
    if activation not in ACT2FN:
        raise FormatError(
            f"{config_file} has {name} {activation!r}, which transformers does not know; give the name of an "
            "activation that it knows, such as silu"
        )
    function: Activation = ACT2FN[activation]
    return function


def _notes(plan: UpcyclePlan, translation: Translation, sample: Sequence[str] | None) -> list[str]:
    notes = []
    if plan.starting_router in FROM_TEXT and sample is None:
        notes.append(
            "the router started from two short texts; give some pages of the text that the model is for (sample)"
        )
    if translation.expert_width * translation.dtype.itemsize % 16:
        notes.append(
            f"experts of {translation.expert_width} neurons have rows of no whole 16 bytes, which torch's grouped_mm "
            'refuses; load them with experts_implementation="eager", or "lexpert" after importing moe'
        )
    if plan.top_k == 1 and plan.experts > 1:
        notes.append(
            "the gate of a token's only expert is 1 whatever the router says, so that only its balance loss "
            "trains the router; choose a top-k of 2 or more to train with"
        )
    if plan.method == "granular" and plan.top_k % plan.granularity:
        notes.append(
            f"top-k {plan.top_k} does not select whole groups of {plan.granularity} slices, so the result is not "
            "what the dense model computes"
        )
    return notes

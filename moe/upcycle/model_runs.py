"""Runs of whole models on a text: their outputs, and what enters their feed-forward blocks."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moe.upcycle.checkpoint_folder import companion_files, sentence
from moe.upcycle.rules import Architecture
from runtime.errors import FormatError, UsageError


@contextmanager
def loaded_model(folder: Path, auto_class: str) -> Iterator[Any]:
    """The model of a folder in float32, for as long as the block lasts.

    Raises:
        FormatError: it cannot be loaded, or parameters are missing or left over.
    """
    import transformers
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        model, report = getattr(transformers, auto_class).from_pretrained(
            folder,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            dtype=torch.float32,
            output_loading_info=True,
        )
    except Exception as error:  # ValueError, OSError, KeyError, SafetensorError, …
        raise FormatError(f"{folder} cannot be loaded: {sentence(error)}") from error
    finally:
        if shown:
            logging.enable_progress_bar()
    for kind in ("missing_keys", "mismatched_keys"):
        names = sorted(map(str, report[kind]))
        if names:
            raise FormatError(f"{folder} has {kind.replace('_', ' ')}, among them {names[0]}")
    if model._can_set_experts_implementation():
        # the obvious loop: the faster ones need rows of whole 16 bytes, which small experts may not have
        model.set_experts_implementation("eager")
    model.eval()
    try:
        yield model
    finally:
        del model
        gc.collect()


def tokenizer_of(folder: Path) -> Any | None:
    """The tokenizer of a folder; None where there is none.

    Raises:
        FormatError: it cannot be loaded.
    """
    if not any(path.name != "generation_config.json" for path in companion_files(folder)):
        return None
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # as above
        raise FormatError(f"the tokenizer in {folder} cannot be loaded: {sentence(error)}") from error


def token_ids(
    tokenizer: Any | None, texts: Sequence[str], vocabulary: int, most: int, positions: int
) -> list[list[Tensor]]:
    """Sequences of token ids of each text, int64 ``[1, tokens]`` each.

    Args:
        tokenizer: where None, the ids are drawn at random, always the same ones.
        most: tokens of a text; the rest of it is left out.
        positions: tokens of a sequence.
    """
    if tokenizer is None:
        draw = torch.Generator().manual_seed(0)
        return [[torch.randint(vocabulary, (1, min(most, positions)), generator=draw)] for _ in texts]
    of_texts = []
    for text in texts:
        # a token has a few characters; a whole corpus need not be cut for its first tokens
        ids = tokenizer(text[: most * 32], return_attention_mask=False, verbose=False)["input_ids"][:most]
        of_texts.append([torch.tensor([ids[at : at + positions]]) for at in range(0, len(ids), positions)])
    return of_texts


@torch.inference_mode()
def outputs_of(model: Any, sequences: Sequence[Tensor]) -> list[Tensor]:
    """Logits of each sequence, or the last hidden states of a model without a head; ``[tokens, …]``."""
    outputs = []
    for ids in sequences:
        output = model(input_ids=ids, attention_mask=torch.ones_like(ids))
        outputs.append((output.logits if "logits" in output else output.last_hidden_state)[0].clone())
    return outputs


@torch.inference_mode()
def hidden_states_of(
    model: Any, architecture: Architecture, layers: Sequence[int], texts: Sequence[Sequence[Tensor]]
) -> dict[int, list[Tensor]]:
    """What enters the feed-forward blocks of some layers: of each layer and text, float32 ``[tokens, width]``.

    Raises:
        UsageError: a text without tokens.
    """
    hidden: dict[int, list[Tensor]] = {layer: [] for layer in layers}
    seen: dict[int, list[Tensor]] = {layer: [] for layer in layers}

    def keep(layer: int) -> Any:
        return lambda _, inputs: seen[layer].append(inputs[0][0].float().clone())

    handles = [
        model.get_submodule(architecture.feed_forward.module.format(layer=layer)).register_forward_pre_hook(
            keep(layer)
        )
        for layer in layers
    ]
    try:
        for text in texts:
            if not text:
                raise UsageError("a sample text has no tokens; leave it out")
            for ids in text:
                model(input_ids=ids, attention_mask=torch.ones_like(ids))
            for layer in layers:
                hidden[layer].append(torch.cat(seen[layer]))
                seen[layer].clear()
    finally:
        for handle in handles:
            handle.remove()
    return hidden

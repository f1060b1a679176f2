"""A masked-language-model head for transformers that were saved without one, as most dense encoders are.

Its decoder is the input embeddings. Its hidden layer is fitted in closed form (`head_fit`), or starts as the identity
where that is not known for the architecture; masked-language-model training may follow.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForMaskedLM

from retrieval.encoders.backbones import register_backbone
from retrieval.encoders.language_model_folder import load_tokenizer, quiet
from retrieval.training.head_fit import HeadFit, can_fit, fit_head
from runtime.errors import FormatError, UsageError
from runtime.output_folder import new_folder


def add_head(
    base: Path,
    out: Path,
    texts: Sequence[str],
    *,
    threshold: float = 6.0,
    meaning: float = 0.0,
    device: str = "cpu",
) -> HeadFit | None:
    """Write a ``*ForMaskedLM`` folder with a new head over the weights in `base`.

    Args:
        base: a transformer with model.safetensors and its tokenizer.
        out: a new folder.
        texts: that the head is fitted on.
        threshold, meaning: see `fit_head`.
        device: of torch, for the fit.

    Returns:
        What the fit found; None for an architecture whose head cannot be fitted, and starts as the identity.

    Raises:
        FormatError: `base` cannot be loaded, or lacks other weights than those of a head.
        UsageError: it has a head already, or its architecture has no head whose decoder is the embeddings, or the
            texts are too short.
        ConflictError: `out` is there.
    """
    if not list(base.glob("model*.safetensors")):
        raise FormatError(f"{base} has no model.safetensors; give a folder with the model's weights")
    register_backbone(base)
    try:
        with quiet():
            model, report = AutoModelForMaskedLM.from_pretrained(
                base,
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=False,
                dtype=torch.float32,
                output_loading_info=True,
            )
    except Exception as error:  # transformers raises ValueError, OSError, KeyError, SafetensorError, …
        raise FormatError(
            f"{base} cannot be loaded as a masked language model: {(str(error) or 'no reason given').splitlines()[0]}"
        ) from error
    tokenizer = load_tokenizer(base, False, int(model.config.vocab_size))
    missing = sorted(report["missing_keys"])
    body = f"{model.base_model_prefix}."
    if any(name.startswith(body) for name in missing):
        raise FormatError(f"{base} lacks weights of the transformer itself, among them {missing[0]}")
    if not missing:
        raise UsageError(f"{base} has a head already; train it with lexpert train encoder")
    decoder = model.get_output_embeddings()
    if decoder is None or decoder.weight is not model.get_input_embeddings().weight:
        raise UsageError(
            f"{base} is of the type {model.config.model_type}, whose head is not tied to its embeddings; "
            "set tie_word_embeddings in its config.json"
        )
    head = [module for name, module in model.named_modules() if not f"{name}.".startswith(body)]
    with torch.no_grad():
        for module in head:
            _start(module, decoder)
    fit = None
    if can_fit(model):
        fit = fit_head(model.to(device).eval(), tokenizer, texts, threshold=threshold, meaning=meaning)
    with new_folder(out) as partial, quiet():
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
    return fit


def _start(module: Any, decoder: Any) -> None:
    if module is decoder:
        if decoder.bias is not None:
            decoder.bias.zero_()
    elif isinstance(module, nn.Linear) and module.in_features == module.out_features:
        nn.init.eye_(module.weight)
        if module.bias is not None:
            module.bias.zero_()

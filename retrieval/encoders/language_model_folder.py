"""A folder with a transformer: safetensors weights only, its own tokenizer, and no code from it.

The weights may be in the rounded form of `rounded_weights`; the model is float32 all the same.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)
from transformers.utils import logging as progress

from retrieval.encoders.backbones import register_backbone
from retrieval.encoders.fingerprint import ROUNDED_WEIGHTS, VOCABULARY_FILES, holds_vocabulary
from retrieval.encoders.rounded_weights import load_rounded
from runtime.errors import FormatError

LEAST_TOKENS = 0.5
"""Tokens that a tokenizer must have for each term of its model. Models round their vocabulary up (ModernBERT
has 50,368 terms for 50,280 tokens), but never by half."""


def load_language_model(folder: Path) -> Any:
    """The model with its vocabulary head, in float32, ready to infer.

    Raises:
        FormatError: no safetensors weights, damaged ones, or some are missing.
    """
    model, missing = _load(folder, AutoModelForMaskedLM, "a masked language model")
    if missing:
        raise FormatError(
            f"{folder} lacks {len(missing)} of the weights of a masked language model, among them "
            f"{missing[0]}; give a model that was saved with its vocabulary head, or make one with: lexpert train head"
        )
    return model


def load_transformer(folder: Path) -> Any:
    """The model that ends in one hidden state per token, in float32, ready to infer; heads are left out.

    Raises:
        FormatError: no safetensors weights, damaged ones, or some are missing.
    """
    model, missing = _load(folder, AutoModel, "a transformer")
    # BERT's pooler reads the hidden states and changes none; models trained without one do not save it.
    missing = [name for name in missing if not name.startswith("pooler.")]
    if missing:
        raise FormatError(
            f"{folder} lacks {len(missing)} of the weights of its transformer, among them {missing[0]}; "
            "save the model again"
        )
    if "add_pooling_layer" in inspect.signature(type(model).__init__).parameters:
        model.pooler = None  # it costs time, and in training it would be a weight without a gradient
    return model


def load_classifier(folder: Path) -> Any:
    """The model that ends in a few scores for a text or a pair of texts, in float32, ready to infer.

    Raises:
        FormatError: no safetensors weights, damaged ones, or some are missing.
    """
    model, missing = _load(folder, AutoModelForSequenceClassification, "a classifier")
    if missing:
        raise FormatError(
            f"{folder} lacks {len(missing)} of the weights of a classifier, among them {missing[0]}; "
            "give a model that was saved with its classification head"
        )
    return model


def word_tables(folder: Path) -> list[str]:
    """Names of the weights that have a row for each term: the embeddings of words, and the decoder of the vocabulary
    head; where they are one, a file has it under one of the names.

    Raises:
        FormatError: config.json does not describe a masked language model.
    """
    register_backbone(folder)
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        with torch.device("meta"):
            model = AutoModelForMaskedLM.from_config(config, trust_remote_code=False)
    except Exception as error:  # as in `_load`
        raise FormatError(
            f"{folder} cannot be read as a masked language model: {_sentence(error)}"
        ) from error
    modules = (model.get_input_embeddings(), model.get_output_embeddings())
    tables = {id(module.weight) for module in modules if module is not None}
    named = model.named_parameters(remove_duplicate=False)
    return [name for name, parameter in named if id(parameter) in tables]


def _load(folder: Path, auto_class: Any, kind: str) -> tuple[Any, list[str]]:
    """The model and the names of the weights that its folder lacks."""
    rounded = (folder / ROUNDED_WEIGHTS).is_file()
    if not rounded and not list(folder.glob("model*.safetensors")):
        pickled = next((path.name for path in sorted(folder.glob("*.bin"))), None)
        raise FormatError(
            f"{folder} has no model.safetensors; convert {pickled} to safetensors, because opening a pickled "
            "file can run code"
            if pickled
            else f"{folder} has no model.safetensors; give a folder with the model's weights"
        )
    register_backbone(folder)
    try:
        with quiet():
            source: dict[str, Any] = {"pretrained_model_name_or_path": folder}
            if rounded:
                config = AutoConfig.from_pretrained(folder, local_files_only=True)
                with torch.device("meta"):  # to learn its class, without weights
                    auto_class = type(auto_class.from_config(config, trust_remote_code=False))
                weights = load_rounded(folder / ROUNDED_WEIGHTS)
                source = {"pretrained_model_name_or_path": None, "config": config, "state_dict": weights}
            model, report = auto_class.from_pretrained(
                **source,
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=False,
                dtype=torch.float32,
                output_loading_info=True,
            )
    except FormatError:
        raise
    except Exception as error:  # transformers raises ValueError, OSError, KeyError, SafetensorError, …
        raise FormatError(f"{folder} cannot be loaded as {kind}: {_sentence(error)}") from error
    return model.eval(), sorted(report["missing_keys"])


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers from showing progress bars, which ignore whether there is a terminal, and from printing
    tables of the weights that it did not need."""
    shown, level = progress.is_progress_bar_enabled(), progress.get_verbosity()
    progress.disable_progress_bar()
    progress.set_verbosity_error()
    try:
        yield
    finally:
        progress.set_verbosity(level)
        if shown:
            progress.enable_progress_bar()


def load_tokenizer(folder: Path, lower_case: bool, num_terms: int) -> Any:
    """The tokenizer of a model that has `num_terms` terms.

    Raises:
        FormatError: it is missing, damaged, or has far fewer tokens than the model has terms.
    """
    if not holds_vocabulary(folder):
        # transformers would make up a tokenizer that knows its special tokens alone
        raise FormatError(
            f"{folder} has no tokenizer ({', '.join(VOCABULARY_FILES)}); save the model's tokenizer beside it"
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # as above
        raise FormatError(f"the tokenizer in {folder} cannot be loaded: {_sentence(error)}") from error
    if len(tokenizer) < num_terms * LEAST_TOKENS:
        raise FormatError(
            f"the tokenizer in {folder} has {len(tokenizer)} tokens for a model of {num_terms} terms; "
            "save the tokenizer that the model was trained with beside it"
        )
    if not isinstance(tokenizer.model_max_length, int | float):
        raise FormatError(
            f"{folder / 'tokenizer_config.json'}: model_max_length must be a number, "
            f"not {tokenizer.model_max_length!r:.60}"
        )
    if lower_case:
        from tokenizers.normalizers import Lowercase, Sequence

        backend = tokenizer.backend_tokenizer
        steps = [Lowercase()] if backend.normalizer is None else [Lowercase(), backend.normalizer]
        backend.normalizer = Sequence(steps)
    return tokenizer


def _sentence(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0].rstrip(".")

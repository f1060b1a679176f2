"""A folder of transformers with a language model, decoder or encoder, and its tokenizer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from runtime.errors import FormatError, NotFoundError

Objective = Literal["causal", "masked"]


@dataclass(frozen=True, slots=True, eq=False)
class LanguageModelFolder:
    """A model that is loaded to be trained or measured.

    Attributes:
        model: of transformers, in evaluation mode; experts run on ours.
        tokenizer: of transformers.
        objective: what it predicts: the next token, or tokens that are masked.
    """

    model: Any
    tokenizer: Any
    objective: Objective

    @classmethod
    def load(
        cls, folder: str | Path, *, dtype: str = "float32", device: str | None = None
    ) -> LanguageModelFolder:
        """Load from a folder and nowhere else.

        Args:
            folder: with ``config.json``, weights and tokenizer files.
            dtype: of the weights; ``"auto"`` takes that of the checkpoint.
            device: of torch; None takes a GPU where there is one.

        Raises:
            NotFoundError: the folder, its configuration, its weights or its tokenizer is missing.
            FormatError: a file is damaged, or holds no language model that transformers knows.
            UsageError: the dtype or the device is none.
        """
        from moe.generation.decoder_folder import DecoderFolder

        path = Path(folder)
        if not (path / "config.json").is_file():
            raise NotFoundError(
                f"{path} has no config.json; name the folder of a model as transformers saves it"
            )
        if objective_of(path) == "masked":
            return _load_encoder(path, dtype, device)
        decoder = DecoderFolder.load(path, dtype=dtype, device=device)
        return cls(decoder.model, decoder.tokenizer, "causal")


def objective_of(folder: Path) -> Objective:
    """What the model of a folder predicts, by its model type.

    Raises:
        FormatError: the configuration cannot be read, is of an unknown type, or of an encoder with a decoder.
    """
    import transformers

    import moe.models

    del moe  # which has registered our encoders
    try:
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # ValueError, OSError, KeyError, …
        raise FormatError(f"{folder} has a config.json that cannot be read: {_first_line(error)}") from error
    if getattr(config, "is_encoder_decoder", False):
        raise FormatError(
            f"{folder} holds {config.model_type}, an encoder with a decoder; give a decoder or an encoder"
        )
    # BERT and its like are registered as decoders too, which they are when their configuration says so.
    is_encoder = type(config) in transformers.MODEL_FOR_MASKED_LM_MAPPING
    return "masked" if is_encoder and not getattr(config, "is_decoder", False) else "causal"


def _load_encoder(path: Path, dtype: str, device: str | None) -> LanguageModelFolder:
    import torch
    import transformers

    try:
        with without_progress_bars():
            model, report = transformers.AutoModelForMaskedLM.from_pretrained(
                path, dtype=dtype, local_files_only=True, output_loading_info=True
            )
    except Exception as error:  # as above
        raise FormatError(f"{path} cannot be loaded as an encoder: {_first_line(error)}") from error
    missing = sorted(map(str, report["missing_keys"]))
    if missing:
        raise FormatError(
            f"{path} has no {missing[0]}; give an encoder with its vocabulary head (a masked language model)"
        )
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(path, local_files_only=True)
    except Exception as error:
        raise NotFoundError(
            f"{path} has no tokenizer that can be loaded ({_first_line(error)}); copy that of the model into it"
        ) from error
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    return LanguageModelFolder(model.to(device).eval(), tokenizer, "masked")


@contextmanager
def without_progress_bars() -> Iterator[None]:
    """Keep transformers from showing bars of its own when it loads and saves weights."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].rstrip(".")

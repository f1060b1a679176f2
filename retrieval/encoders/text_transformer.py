"""A transformer folder that turns texts into one hidden state per token: below dense and token-weight encoders."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from retrieval.encoders.bfloat16 import Precision, choose_dtype, processor_has_bfloat16
from retrieval.encoders.encoder import Advance
from retrieval.encoders.language_model_folder import load_tokenizer, load_transformer
from retrieval.encoders.masked_language_model import MAX_ROWS, PROBE_TEXTS, SORT_WINDOW
from retrieval.encoders.token_batches import token_batches
from retrieval.encoders.token_inputs import Tokens, chosen, padded, tokenize, usable_positions


class TextTransformer:
    """A model without its head, ready to encode; safetensors weights only, and no code from the folder.

    Attributes:
        model: the torch module.
        width: size of a hidden state.
        dtype: what the model computes in.
    """

    def __init__(
        self,
        folder: Path,
        *,
        device: str | None = None,
        dtype: Precision = "float32",
        token_budget: int | None = None,
        lower_case: bool = False,
    ) -> None:
        """Load the model.

        Args:
            folder: holds config.json, model.safetensors and the tokenizer.
            device: a torch device; CUDA where there is one by default.
            dtype: see `choose_dtype`.
            token_budget: most tokens of a batch, padding included; by default 4096 on a CPU and 65536 elsewhere.
            lower_case: lower-case texts before the tokenizer sees them.

        Raises:
            FormatError: the folder holds no transformer with complete safetensors weights, or its tokenizer is
                missing, damaged or another model's.
        """
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.token_budget = token_budget or (4096 if self.device.type == "cpu" else 65536)
        self.model = load_transformer(folder).to(self.device)
        self.tokenizer = load_tokenizer(folder, lower_case, int(self.model.config.vocab_size))
        self.width = int(self.model.config.hidden_size)
        self._positions = usable_positions(self.model)
        self.dtype = choose_dtype(dtype, processor_has_bfloat16(self.device), self._probe)
        self.model.to(self.dtype)

    def tokenize(self, texts: Sequence[str], max_length: int | None = None) -> Tokens:
        """Tokens of each text, special ones included, cut at `max_length` or what the model can take."""
        limit = min(max_length or int(self.tokenizer.model_max_length), self._positions)
        return tokenize(self.tokenizer, texts, limit)

    def hidden_states(self, tokens: Tokens) -> tuple[Tensor, Tensor]:
        """Hidden states ``[rows, length, width]`` of one batch and its mask ``[rows, length]``."""
        # The model may have been moved since, for training.
        inputs = padded(tokens, self.tokenizer.pad_token_id or 0, self.model.device)
        return self.model(**inputs).last_hidden_state, inputs["attention_mask"]

    def batches(
        self, texts: Sequence[str], max_length: int | None, advance: Advance | None = None
    ) -> Iterator[tuple[NDArray[np.int64], Tokens]]:
        """Places and tokens of batches of texts of similar length; every text comes exactly once."""
        for start in range(0, len(texts), SORT_WINDOW):
            tokens = self.tokenize(texts[start : start + SORT_WINDOW], max_length)
            lengths = [len(ids) for ids in tokens["input_ids"]]
            for batch in token_batches(lengths, self.token_budget, MAX_ROWS):
                yield start + batch, chosen(tokens, batch.tolist())
                if advance is not None:
                    advance(len(batch))

    def _probe(self, dtype: torch.dtype) -> Tensor:
        """Mean hidden states of the probe texts in `dtype`."""
        kept = self.model.dtype
        self.model.to(dtype)
        with torch.inference_mode():
            hidden, mask = self.hidden_states(self.tokenize(PROBE_TEXTS))
        self.model.to(kept)
        weights = mask.unsqueeze(-1).float()
        return (hidden.float() * weights).sum(1) / weights.sum(1)

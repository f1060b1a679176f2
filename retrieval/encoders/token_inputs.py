"""From texts to the tensors that a transformer reads: tokens, cut and padded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

Tokens = dict[str, list[list[int]]]
"""``input_ids`` of each text, and ``token_type_ids`` where the model has them; not padded."""


def tokenize(tokenizer: Any, texts: Sequence[str], max_length: int) -> Tokens:
    """Tokens of each text, special ones included, at most `max_length`."""
    if not texts:
        return {"input_ids": []}
    encoded = tokenizer(
        list(texts), truncation=True, max_length=max_length, padding=False, return_attention_mask=False
    )
    return {name: encoded[name] for name in ("input_ids", "token_type_ids") if name in encoded}


def chosen(tokens: Mapping[str, list[list[int]]], places: Sequence[int]) -> Tokens:
    """The tokens of the texts at `places`."""
    return {name: [values[place] for place in places] for name, values in tokens.items()}


def padded(tokens: Mapping[str, list[list[int]]], pad_token: int, device: torch.device) -> dict[str, Tensor]:
    """Tokens of one batch as int64 ``[rows, length]``, padded behind, with their ``attention_mask``."""
    lengths = np.array([len(ids) for ids in tokens["input_ids"]])
    mask = np.arange(lengths.max()) < lengths[:, None]
    inputs = {"attention_mask": torch.from_numpy(mask.astype(np.int64)).to(device)}
    padding = {"input_ids": pad_token}
    for name, values in tokens.items():
        rows = np.full(mask.shape, padding.get(name, 0), np.int64)
        rows[mask] = np.concatenate([np.asarray(row, np.int64) for row in values])
        inputs[name] = torch.from_numpy(rows).to(device)
    return inputs


def usable_positions(model: Any) -> int:
    """The longest text, in tokens, that the model has positions for."""
    positions = getattr(model.config, "max_position_embeddings", None) or 0
    for name, module in model.named_modules():
        # RoBERTa counts positions from behind its padding index, so that many can never be used.
        offset = getattr(module, "padding_idx", None)
        if name.endswith("position_embeddings") and offset is not None:
            positions -= offset + 1
    return positions if positions > 0 else 2**31 - 1

"""uniCOIL and DeepImpact, with the names that a training calls an encoder's sides by."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from retrieval.encoders.catalogue import ENCODER_FILE
from retrieval.encoders.sentence_transformers_folder import read_object
from retrieval.encoders.token_inputs import Tokens
from retrieval.encoders.token_weight_model import TokenWeightModel, TokenWeightSettings


class TokenWeights(nn.Module):
    """A `retrieval.training.sparse_model.TrainableEncoder`."""

    def __init__(self, model: TokenWeightModel, device: torch.device) -> None:
        super().__init__()
        self.model, self.device = model, device

    def tokenize_queries(self, texts: Sequence[str]) -> Tokens:
        return self.model.tokenize(texts, queries=True)

    def tokenize_passages(self, texts: Sequence[str]) -> Tokens:
        return self.model.tokenize(texts)

    def encode_queries(self, tokens: Tokens) -> Tensor:
        return self.model.forward_queries(tokens)

    def encode_passages(self, tokens: Tokens) -> Tensor:
        terms: Tensor = self.model(tokens)
        return terms

    def save(self, folder: Path) -> None:
        self.model.save(folder)


def start_token_weights(
    base: Path, settings: TokenWeightSettings, passages: Sequence[str], device: torch.device
) -> TokenWeights:
    """A model to train: an encoder of the same family as it is, or any other transformer with a new head."""
    if read_object(base / ENCODER_FILE).get("family") == settings.family:
        model = TokenWeightModel.load(base, device=str(device))
        model.settings = settings
    else:
        model = TokenWeightModel.start(base, settings, passages, device=str(device), dtype="float32")
    return TokenWeights(model, device)

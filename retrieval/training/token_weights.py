"""uniCOIL and DeepImpact, with the names that a training calls an encoder's sides by."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from retrieval.encoders.token_inputs import Tokens
from retrieval.encoders.token_weight_model import TokenWeightModel


class TokenWeights(nn.Module):
    """A `retrieval.training.sparse_model.TrainableEncoder`; one limit of tokens holds for both sides."""

    def __init__(self, model: TokenWeightModel, device: torch.device) -> None:
        super().__init__()
        self.model, self.device = model, device

    def tokenize_queries(self, texts: Sequence[str]) -> Tokens:
        return self.model.tokenize(texts)

    def tokenize_passages(self, texts: Sequence[str]) -> Tokens:
        return self.model.tokenize(texts)

    def encode_queries(self, tokens: Tokens) -> Tensor:
        return self.model.forward_queries(tokens)

    def encode_passages(self, tokens: Tokens) -> Tensor:
        terms: Tensor = self.model(tokens)
        return terms

    def save(self, folder: Path) -> None:
        self.model.save(folder)

"""uniCOIL: texts weigh their own tokens, each by one number (Lin & Ma 2021); nothing is expanded."""

from __future__ import annotations

from collections.abc import Sequence

from retrieval.encoders.token_weight_encoder import TokenWeightEncoder
from runtime.activations import SparseActivations


class UniCoilEncoder(TokenWeightEncoder):
    """Units are tokens, special ones left out; a token that comes more than once weighs as the heaviest of them."""

    family = "unicoil"

    def encode_queries(self, texts: Sequence[str]) -> SparseActivations:
        return self._encode(texts, queries=True)

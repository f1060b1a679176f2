"""DeepImpact: documents weigh their own words, each by one number (Mallia et al. 2021, "Learning Passage Impacts for
Inverted Indexes"), and queries are the words they have."""

from __future__ import annotations

from collections.abc import Sequence

from retrieval.encoders.token_weight_encoder import TokenWeightEncoder
from runtime.activations import SparseActivations


class DeepImpactEncoder(TokenWeightEncoder):
    """Units are whole words; the first token of a word's first occurrence says what it weighs.

    Unlike in the paper, the vocabulary is fixed when training starts, so that an index can rely on it: a word of
    several tokens that is not in it stands for all of them, see `WholeTerms`.
    """

    family = "deepimpact"

    def encode_queries(self, texts: Sequence[str]) -> SparseActivations:
        """Weight 1 for each distinct word; a word that its tokens stand for weighs 1 in all. Takes no inference."""
        return self._encode(texts, queries=True, binary=True)

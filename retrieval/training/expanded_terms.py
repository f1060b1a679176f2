"""A masked language model that stays as it is, with a term expansion that is learned beside it.

A text's weights are the sum of what the vocabulary head gives its tokens and of what the expansion makes of its dense
vector (`retrieval.encoders.expansion`, after SpaDE, Choi et al. 2022). With the transformer and its head left alone,
both inputs of a text are the same in every step: they are computed once, kept on disk, and a step on hundreds of texts
costs a product of their vectors with the rows of some terms.

The rows start where the transformer itself sees the terms. What it makes of a term alone says in which direction of the
dense vectors that term lies, and a row is that direction, divided by the spread of the texts' similarities with it, so
that a threshold in standard deviations is one for all terms:

    w_j = gain · max(0, z_j − threshold),    z_j = (t_j · x − mean_j) / deviation_j

Learned are a correction of each term's row, one linear map of all directions, which generalises to terms that no query
of the training set has, the biases and the gain.

Queries may be expanded, too (`retrieval.training.query_expansion`): some terms are given to directions of the dense
vectors, which are fixed like the model, so that what a text has of them is computed once as well. The rest then learns
what they do not find.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from retrieval.encoders import sentence_transformers_folder as st_folder
from retrieval.encoders.expanded_queries import sum_of
from retrieval.encoders.expansion import TermExpansion
from retrieval.encoders.fingerprint import fingerprint, model_files
from retrieval.encoders.masked_language_model import MaskedLanguageModel, TermWeighting
from retrieval.encoders.splade import SpladeOptions, SpladeSide
from retrieval.encoders.token_inputs import Tokens, tokenize
from retrieval.encoders.vocabulary_head import Activation
from retrieval.training.query_expansion import (
    directions_in_terms,
    free_terms,
    principal_directions,
    with_directions,
)
from retrieval.training.recipe import ExpansionSettings, QueryExpansionSettings
from retrieval.training.row_cache import CacheUse, DenseRows, RowCache, text_keys
from retrieval.training.save_tokenizer import save_tokenizer
from retrieval.training.term_vectors import term_vectors
from runtime.activations import SparseActivations
from runtime.errors import UsageError
from runtime.progress import Advance

MEASURED = 8192
"""Texts that means and deviations of similarities are taken over."""

LIT_AT_ONCE = 512
"""Texts whose weights of all terms are in memory together."""

SHARED_STEP = 1 / 8
"""Of the map that all terms share: an entry of it moves every term, so it goes so much slower than a row's."""

Encoded = tuple[SparseActivations, NDArray[np.float32]]
"""What the vocabulary head makes of texts, and their dense vectors."""


class EncodedRows(RowCache[Encoded]):
    """Rows of a frozen model: term weights and a dense vector each."""

    def _pack(self, rows: Encoded) -> dict[str, NDArray[Any]]:
        terms, vectors = rows
        return {
            "indptr": terms.indptr,
            "units": terms.units,
            "weights": terms.weights,
            "num_units": np.array(terms.num_units),
            "vectors": vectors,
        }

    def _unpack(self, arrays: dict[str, NDArray[Any]]) -> Encoded:
        indptr, units, weights = (arrays[name] for name in ("indptr", "units", "weights"))
        return SparseActivations(indptr, units, weights, int(arrays["num_units"])), arrays["vectors"]

    def _take(self, rows: Encoded, places: NDArray[np.int64]) -> Encoded:
        terms, vectors = rows
        return terms[places], vectors[places]

    def _join(self, parts: list[Encoded]) -> Encoded:
        terms, vectors = zip(*parts, strict=True)
        return SparseActivations.concat(terms), np.concatenate(vectors)

    def _count(self, rows: Encoded) -> int:
        return len(rows[0]) if len(rows[0]) == len(rows[1]) else -1


class ExpandedTerms(nn.Module):
    """Texts of a training set to term weights, through a frozen model and a learned expansion.

    Args:
        folder: of a masked language model, as `MaskedLanguageModel` reads it.
        settings: how the expansion starts.
        activation: of logits.
        texts: all that will be asked for.
        max_length: tokens of a text.
        cache: folder of all that models made of texts.
        device: of torch.
        advance: called with the number of texts that are encoded.
        queries: that `query_meanings` will be asked for, where the settings expand them.

    Raises:
        FormatError: the folder holds no masked language model, or one without a transformer apart from its head.
        UsageError: there is no text, or queries are expanded and no two terms of the vocabulary are free.
    """

    def __init__(
        self,
        folder: Path,
        settings: ExpansionSettings,
        activation: Activation,
        texts: Sequence[str],
        max_length: int,
        cache: Path,
        device: torch.device,
        advance: Advance = lambda _: None,
        queries: Sequence[str] = (),
    ) -> None:
        super().__init__()
        if not texts:
            raise UsageError("a term expansion needs texts to be fitted on; the training set has none")
        self.device, self._folder, self._activation = device, folder, activation
        frozen = MaskedLanguageModel(folder, device=str(device), dtype="float32")
        self.tokenizer, self.num_terms = frozen.tokenizer, len(frozen.vocabulary)
        self._max_length = max_length
        weighting = TermWeighting(activation=activation, max_length=max_length)
        weights = fingerprint({}, model_files(folder))
        encoded = EncodedRows(cache, CacheUse(), "expanded terms", weights, activation, str(max_length))
        of_terms = DenseRows(cache, CacheUse(), "vectors of terms", weights)

        def encode_of(given: Sequence[str]) -> Callable[[NDArray[np.int64], Advance], Encoded]:
            def encode(places: NDArray[np.int64], done: Advance) -> Encoded:
                return frozen.encode_with_pooled([given[place] for place in places], weighting, done)

            return encode

        def encode_terms(places: NDArray[np.int64], _done: Advance) -> NDArray[np.float32]:
            return term_vectors(frozen.model, self.tokenizer, torch.from_numpy(places)).numpy()

        self._terms, vectors = encoded.rows(text_keys(texts), encode_of(texts), advance)
        self.directions: TermExpansion | None = None
        learned = torch.ones(self.num_terms, device=device)
        if (expanding := settings.queries) is not None:
            self.directions = self._found_directions(expanding, texts, vectors)
            self._terms = sum_of(self._terms, _lit(self.directions, vectors, 1 / expanding.gain))
            learned[self.fixed_terms] = 0.0
            _, of_queries = encoded.rows(text_keys(queries), encode_of(queries), advance)
            self._meanings = _lit(self.directions, of_queries, 1.0)
        self._learned = learned
        numbers = text_keys([str(term) for term in range(self.num_terms)])
        directions = torch.from_numpy(of_terms.rows(numbers, encode_terms)).to(device)
        # Two texts that are cut to the same tokens are one.
        found = self.tokens_of(texts, max_length)["input_ids"]
        self._rows = {_key(ids): row for row, ids in enumerate(found)}
        self._vectors = torch.from_numpy(vectors).to(device)

        centre = self._vectors.mean(0)
        directions = nn.functional.normalize(directions - directions.mean(0), dim=1)
        some = self._vectors[:: max(1, len(texts) // MEASURED)]
        mean, deviation = _spread(some - centre, directions)
        self._directions = directions / deviation[:, None]
        self._centre = centre
        self.rows = nn.Parameter(torch.zeros_like(directions))
        self.shared = nn.Parameter(torch.zeros(directions.shape[1], directions.shape[1], device=device))
        self.bias = nn.Parameter(-(mean / deviation) - settings.threshold)
        self.log_gain = nn.Parameter(torch.tensor(settings.gain, device=device).log())

    def tokens_of(self, texts: Sequence[str], max_length: int) -> Tokens:
        return tokenize(self.tokenizer, texts, min(max_length, self._max_length))

    def forward(self, tokens: Tokens, terms: Tensor | None = None) -> Tensor:
        """float32 ``[rows, terms]``.

        Args:
            tokens: of texts that were given at first.
            terms: int64, ascending; only their weights are computed, and all others are 0.
        """
        rows = np.array([self._rows[_key(ids)] for ids in tokens["input_ids"]], np.int64)
        found = self._head(rows, terms) + self._expanded(self._vectors[torch.from_numpy(rows)], terms)
        if terms is None:
            return found
        return found.new_zeros(len(found), self.num_terms).index_copy(1, terms, found)

    def _head(self, rows: NDArray[np.int64], terms: Tensor | None) -> Tensor:
        """What the vocabulary head gives `terms`, float32 ``[rows, terms]``."""
        lit = self._terms[rows]
        number = np.arange(self.num_terms)
        count = self.num_terms
        if terms is not None:
            number, count = np.full(self.num_terms, -1), len(terms)
            number[terms.cpu().numpy()] = np.arange(count)
        row = np.repeat(np.arange(len(rows)), np.diff(lit.indptr))
        column = number[lit.units]
        dense = np.zeros((len(rows), count), np.float32)
        kept = column >= 0
        dense[row[kept], column[kept]] = lit.weights[kept]
        return torch.from_numpy(dense).to(self.device)

    def _expanded(self, vectors: Tensor, terms: Tensor | None) -> Tensor:
        weight, bias = self._weight(terms), self.bias if terms is None else self.bias[terms]
        found: Tensor = torch.addmm(bias, vectors - self._centre, weight.t()).relu() * self.log_gain.exp()
        return found * (self._learned if terms is None else self._learned[terms])

    def _weight(self, terms: Tensor | None) -> Tensor:
        directions = self._directions if terms is None else self._directions[terms]
        rows = self.rows if terms is None else self.rows[terms]
        found: Tensor = directions + directions @ self.shared * SHARED_STEP + rows
        return found

    @property
    def fixed_terms(self) -> Tensor | None:
        """int64 ``[n]``, the terms that stand for directions; None where queries are not expanded."""
        if self.directions is None or self.directions.of_queries is None:
            return None
        return self.directions.of_queries.terms

    @property
    def query_meanings(self) -> SparseActivations:
        """What the directions give the queries that were given at first, in their order."""
        return self._meanings

    def _found_directions(
        self, settings: QueryExpansionSettings, texts: Sequence[str], vectors: NDArray[np.float32]
    ) -> TermExpansion:
        free = free_terms(self.tokenizer, texts, self.num_terms, self._terms.units)
        centre, rows, _ = principal_directions(vectors[:: max(1, len(texts) // MEASURED)], len(free) // 2)
        if not len(rows):
            raise UsageError(
                f"the vocabulary of {self._folder} has no two terms that are in no text, which expanding queries needs"
            )
        return directions_in_terms(
            free, settings.scale * rows, centre, self.num_terms, settings.gain, settings.limit
        )

    def expansion(self) -> TermExpansion:
        """What was learned, of dense vectors as they are and with the gain in it, and what was fixed."""
        with torch.no_grad():
            weight, gain = self._weight(None), self.log_gain.exp()
            found = TermExpansion((weight * gain).cpu(), ((self.bias - weight @ self._centre) * gain).cpu())
        return found if self.directions is None else with_directions(found, self.directions)

    def save(self, transformer: Path, pooling: Path, max_length: int) -> None:
        """Write the model's files and settings, without the expansion."""
        route = st_folder.SpladeRoute(self._folder, "max", self._activation, max_length)
        SpladeSide(route, SpladeOptions()).write(transformer, pooling, self.num_terms)
        save_tokenizer(
            self.tokenizer, transformer
        )  # as that of queries is written, so that one can do for both


def _lit(directions: TermExpansion, vectors: NDArray[np.float32], factor: float) -> SparseActivations:
    """What directions give texts as queries, times `factor`; texts without a token of their own have nothing."""
    parts = []
    for start in range(0, max(len(vectors), 1), LIT_AT_ONCE):
        some = vectors[start : start + LIT_AT_ONCE]
        found = directions.query_terms(torch.from_numpy(some)).numpy() * np.float32(factor)
        parts.append(SparseActivations.from_dense(found * some.any(axis=1, keepdims=True)))
    return SparseActivations.concat(parts)


def _key(ids: Sequence[int]) -> bytes:
    return np.asarray(ids, np.int32).tobytes()


def _spread(vectors: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation over `vectors` of their products with each of `directions`."""
    mean = vectors.mean(0)
    centred = vectors - mean
    covariance = centred.t() @ centred / len(vectors)
    variance = ((directions @ covariance) * directions).sum(1)
    return directions @ mean, variance.clamp(min=1e-8).sqrt()

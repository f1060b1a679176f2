"""Queries expanded by what they mean, for an inference-free encoder with a term expansion: found, not trained.

A part of the vocabulary is in no text: BERT's has 994 terms that were kept free. Two of them are given to each
principal direction of the texts' dense vectors, one for either sign. A text lights them up by how far its vector lies
from the mean along the direction:

    w_j = scale · max(0, ±d_i · (x − mean))

Kept are the heaviest of a text, so that the product of two texts comes near that of their vectors, from few of the
directions: the code of a sparse autoencoder (Wen et al. 2025, "Beyond Matryoshka: Revisiting Sparse Coding for Adaptive
Representation") whose dictionary is an orthogonal one. Queries are expanded by these terms alone
(`retrieval.encoders.expanded_queries`), so that words still weigh what the table and the documents' model learned.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from retrieval.encoders import sentence_transformers_folder as st_folder
from retrieval.encoders.catalogue import ENCODER_FILE
from retrieval.encoders.encoder import Advance, SparseEncoder
from retrieval.encoders.expanded_queries import ExpandedQueriesEncoder
from retrieval.encoders.expansion import QueryExpansion, TermExpansion
from retrieval.encoders.inference_free import InferenceFreeEncoder
from retrieval.encoders.masked_language_model import TermWeighting
from runtime.errors import NotFoundError, UsageError
from runtime.output_folder import new_folder, require_new

MEASURED = 4096
"""Texts that directions are measured on: ten times as many as a vector of MiniLM has values."""


@dataclass(frozen=True)
class FoundDirections:
    """What `expand_queries` found.

    Attributes:
        texts: that it was measured on.
        directions: each of them has two terms.
        variance: share of the variance of the texts' vectors along these directions.
    """

    texts: int
    directions: int
    variance: float


def expand_queries(
    encoder: Path,
    out: Path,
    texts: Sequence[str],
    *,
    scale: float = 20.0,
    gain: float = 0.4,
    limit: int = 64,
    advance: Advance = lambda _: None,
) -> FoundDirections:
    """Write an encoder whose queries are expanded.

    Args:
        encoder: folder of an inference-free encoder with a term expansion.
        out: a new folder.
        texts: as of the documents to come; those that are encoded are `measured`.
        scale: of the weights of documents. The larger, the more of a document's terms are of this kind where their
            number is limited.
        gain: what a query weighs of what a document would.
        limit: so many of these terms are kept for a query, the heaviest.
        advance: called with the number of texts that are encoded.

    Raises:
        UsageError: the encoder is of another kind, no two terms of its vocabulary are free, there are fewer than two
            texts, or `scale`, `gain` or `limit` is not above 0.
        FormatError, NotFoundError: there is no such encoder.
        ConflictError: `out` exists, or another process is writing it.
    """
    for name, value in (("scale", scale), ("gain", gain), ("limit", limit)):
        if not 0 < value < float("inf"):
            raise UsageError(f"the {name} of an expansion of queries must be above 0, not {value}")
    require_new(out)
    if not encoder.is_dir():
        raise NotFoundError(f"there is no encoder folder {encoder}")
    whole = SparseEncoder.load(encoder, dtype="float32")
    if not isinstance(whole, InferenceFreeEncoder) or whole.documents.route.expansion is None:
        raise UsageError(
            f"{encoder} is no inference-free encoder with a term expansion; train one with a recipe that has an "
            "expansion, such as lexpert-mini-inference-free"
        )
    chosen = measured(texts)
    if len(chosen) < 2:
        raise UsageError(f"directions are measured on texts, and there are {len(chosen)}; give a larger set")
    documents = whole.documents
    route = documents.route
    weighting = TermWeighting(route.pooling, route.activation, route.max_length, route.prompt)  # type: ignore[arg-type]
    head, vectors = documents.model.encode_with_pooled(chosen, weighting, advance)
    spoken = [route.prompt, whole.query_prompt, *texts]
    free = free_terms(documents.model.tokenizer, spoken, len(whole.vocabulary), head.units)
    centre, directions, variance = principal_directions(vectors, len(free) // 2)
    if not len(directions):
        raise UsageError(
            f"the vocabulary of {encoder} has no two terms that are in no text, which this needs"
        )
    assert documents.model.expansion is not None
    found = directions_in_terms(free, scale * directions, centre, len(whole.vocabulary), gain, limit)
    expansion = with_directions(documents.model.expansion, found)
    with new_folder(out) as partial:
        whole.save(partial)
        module = st_folder.read_folder(partial).documents.expansion
        assert module is not None  # it was written with one
        expansion.save(module)
        (partial / ENCODER_FILE).write_text(
            json.dumps({"family": ExpandedQueriesEncoder.family}) + "\n", "utf-8"
        )
    return FoundDirections(len(chosen), len(directions), variance)


def measured(texts: Sequence[str]) -> list[str]:
    """The texts that directions are measured on: at most `MEASURED`, distinct, evenly spread over `texts`."""
    distinct = list(dict.fromkeys(text for text in texts if text.strip()))
    return distinct[:: -(-len(distinct) // MEASURED) or 1]


def free_terms(
    tokenizer: object, texts: Sequence[str], num_terms: int, lit: NDArray[np.int32]
) -> NDArray[np.int64]:
    """Terms that stand for nothing: no text has them, no head lights them up, and they are not special; ascending.

    Args:
        tokenizer: of transformers.
        lit: units that a head gives some of the texts, int32 ``[n]``.
    """
    free = np.ones(num_terms, bool)
    free[lit] = False
    free[[unit for unit in tokenizer.all_special_ids if unit < num_terms]] = False  # type: ignore[attr-defined]
    for start in range(0, len(texts), 1024):
        some = list(texts[start : start + 1024])
        found = tokenizer(some, add_special_tokens=False, return_attention_mask=False, verbose=False)  # type: ignore[operator]
        for ids in found["input_ids"]:
            free[[unit for unit in ids if unit < num_terms]] = False
    return np.flatnonzero(free)


def principal_directions(
    vectors: NDArray[np.float32], count: int
) -> tuple[NDArray[np.float32], NDArray[np.float32], float]:
    """Mean, directions of most variance, and the share of all variance along them.

    Args:
        vectors: float32 ``[texts, width]``.

    Returns:
        float32 ``[width]``, float32 ``[min(count, width), width]``, of length 1 and each with its largest entry above
        0, and the share.
    """
    exact = vectors.astype(np.float64)
    centre = exact.mean(0)
    centred = exact - centre
    variances, columns = np.linalg.eigh(centred.T @ centred / len(vectors))
    directions = columns.T[::-1][:count]
    largest = np.take_along_axis(directions, np.abs(directions).argmax(1)[:, None], 1)
    kept = variances[::-1][:count].sum() / max(float(variances.sum()), 1e-30)
    return centre.astype(np.float32), (directions * np.sign(largest)).astype(np.float32), float(kept)


def directions_in_terms(
    free: NDArray[np.int64],
    rows: NDArray[np.float32],
    centre: NDArray[np.float32],
    num_terms: int,
    gain: float,
    limit: int,
) -> TermExpansion:
    """An expansion by directions alone, and queries expanded by it.

    Args:
        free: int64 ``[n]``; two of these terms are given to each direction, one for either sign.
        rows: float32 ``[directions, width]``, times the scale.
        centre: float32 ``[width]``.
    """
    both = torch.from_numpy(np.stack([rows, -rows], 1).reshape(-1, rows.shape[1]))
    terms = torch.from_numpy(free[: len(both)])
    weight = torch.zeros(num_terms, rows.shape[1]).index_copy(0, terms, both)
    bias = torch.zeros(num_terms).index_copy(0, terms, -(both @ torch.from_numpy(centre)))
    return TermExpansion(weight, bias, QueryExpansion(terms, gain, limit))


def with_directions(expansion: TermExpansion, directions: TermExpansion) -> TermExpansion:
    """`expansion` with the rows of `directions` in place of its own, and queries expanded as those say."""
    assert directions.of_queries is not None
    terms = directions.of_queries.terms
    return TermExpansion(
        expansion.weight.index_copy(0, terms, directions.weight[terms]),
        expansion.bias.index_copy(0, terms, directions.bias[terms]),
        directions.of_queries,
    )

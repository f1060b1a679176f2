"""Terms that a text as a whole stands for, beside those that its tokens light up.

After SpaDE (Choi et al. 2022, "SpaDE: Improving Sparse Representations using a Dual Document Encoder for First-stage
Retrieval"): the weight of term j in a text is the sum of what the vocabulary head gives it and of an expansion, which
here reads the text's dense vector x (see `text_vector`):

    w_j = activation(max_i logit_ij) + max(0, W_j · x + b_j)

Queries that have no head, but a table, may be expanded as well: by some of the terms, with weights that are a multiple
of what a document would get (`QueryExpansion`, and `retrieval.encoders.expanded_queries`).

In an encoder folder it is a module of its own, after pooling, with one file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from retrieval.encoders.checked_tensors import load_checked, save_checked
from retrieval.encoders.fingerprint import EXPANSION_FILE
from retrieval.encoders.rounded_weights import Bits, restored, rounded
from runtime.errors import FormatError, UsageError

VERSION = "1"
FORM = "term_expansion"
OF_QUERIES = ("query_terms", "query_gain", "query_limit")
"""Tensors int32 ``[n]``, float ``[1]`` and int64 ``[1]`` of a `QueryExpansion`, in files that have one."""


@dataclass(frozen=True, eq=False)
class QueryExpansion:
    """By which terms queries are expanded.

    Attributes:
        terms: int64 ``[n]``, ascending.
        gain: what a document would get is multiplied by it.
        limit: so many of the terms are kept for a query, the heaviest.
    """

    terms: Tensor
    gain: float
    limit: int


class TermExpansion:
    """The matrix and the bias of an expansion.

    Attributes:
        weight: float32 ``[terms, width]``.
        bias: float32 ``[terms]``.
        of_queries: None where documents alone are expanded.
    """

    def __init__(self, weight: Tensor, bias: Tensor, of_queries: QueryExpansion | None = None) -> None:
        """Take what a training made.

        Raises:
            UsageError: the shapes do not fit each other, or a value is NaN or infinite; or the terms of queries are
                not terms in ascending order, or their gain or limit is not above 0.
        """
        if weight.ndim != 2 or bias.shape != weight.shape[:1]:
            raise UsageError(
                f"a term expansion has weights [terms, width] and a bias [terms], not {list(weight.shape)} and "
                f"{list(bias.shape)}; give tensors of those shapes"
            )
        self.weight, self.bias = (tensor.detach().float().contiguous() for tensor in (weight, bias))
        if not (bool(torch.isfinite(self.weight).all()) and bool(torch.isfinite(self.bias).all())):
            raise UsageError("the term expansion has weights that are NaN or infinite; train it again")
        self.of_queries = of_queries
        if of_queries is None:
            return
        terms = of_queries.terms
        fit = not len(terms) or (
            bool((terms.diff() > 0).all()) and 0 <= int(terms[0]) <= int(terms[-1]) < len(weight)
        )
        if not fit or not 0 < of_queries.gain < float("inf") or of_queries.limit < 1:
            raise UsageError(
                "queries are expanded by terms in ascending order, with a gain and a limit above 0, which a term "
                "expansion lacks; train it again"
            )

    @property
    def num_terms(self) -> int:
        return len(self.weight)

    @property
    def width(self) -> int:
        return self.weight.shape[1]

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what `save` wrote.

        Raises:
            FormatError: the file is missing, damaged, of another version, or does not hold an expansion.
        """
        path = folder / EXPANSION_FILE
        tensors = restored(load_checked(path, FORM, VERSION), path)
        if set(tensors) not in ({"weight", "bias"}, {"weight", "bias", *OF_QUERIES}):
            raise FormatError(
                f"{path} must hold weight and bias, and all of {', '.join(OF_QUERIES)} or none of them, not "
                f"{', '.join(sorted(tensors)) or 'nothing'}; save the encoder again"
            )
        try:
            return cls(tensors["weight"], tensors["bias"], _of_queries(tensors))
        except UsageError as error:
            raise FormatError(f"{path} cannot be used: {error}") from None

    def save(self, folder: Path, bits: Bits | None = None) -> None:
        """Write the module's file into `folder`; it appears when it is whole.

        Args:
            bits: of the weights, see `rounded_weights`; None keeps float32.

        Raises:
            UsageError: values do not fit so few bits.
        """
        folder.mkdir(parents=True, exist_ok=True)
        tensors: Mapping[str, Tensor] = {"weight": self.weight.cpu(), "bias": self.bias.cpu()}
        if (queries := self.of_queries) is not None:
            values = (queries.terms.int().cpu(), torch.tensor([queries.gain]), torch.tensor([queries.limit]))
            tensors = {**tensors, **dict(zip(OF_QUERIES, values, strict=True))}
        if bits is not None:
            tensors = rounded(tensors, {"weight": bits})
        save_checked(tensors, folder / EXPANSION_FILE, FORM, VERSION)

    def require_fit(self, num_terms: int, width: int) -> None:
        """Check that the expansion is of a model with so many terms and hidden states of this width.

        Raises:
            FormatError: it is another model's.
        """
        if (self.num_terms, self.width) != (num_terms, width):
            raise FormatError(
                f"the term expansion is of {self.num_terms} terms and vectors of {self.width} values, but the model "
                f"has {num_terms} terms and vectors of {width}; use the expansion that was trained with the model"
            )

    def to(self, device: torch.device) -> Self:
        """The same on a device of torch."""
        return type(self)(self.weight.to(device), self.bias.to(device), self.of_queries)

    def terms(self, pooled: Tensor) -> Tensor:
        """What the expansion gives each term.

        Args:
            pooled: float32 ``[texts, width]``, of length 1.

        Returns:
            float32 ``[texts, terms]``, all ≥ 0.
        """
        return torch.addmm(self.bias, pooled, self.weight.t()).relu_()

    def query_terms(self, pooled: Tensor) -> Tensor:
        """What the expansion gives each term of queries.

        Args:
            pooled: as for `terms`.

        Returns:
            float32 ``[texts, terms]``, all ≥ 0, at most `QueryExpansion.limit` of a row above 0; all 0 where queries
            are not expanded. Of equal weights the lower term stays.
        """
        found = pooled.new_zeros(len(pooled), self.num_terms)
        queries = self.of_queries
        if queries is None or not len(queries.terms):
            return found
        terms = queries.terms.to(pooled.device)
        weights = torch.addmm(self.bias[terms], pooled, self.weight[terms].t()).relu_() * queries.gain
        lighter = weights.argsort(dim=1, descending=True, stable=True)[:, queries.limit :]
        return found.index_copy_(1, terms, weights.scatter_(1, lighter, 0.0))


def _of_queries(tensors: Mapping[str, Tensor]) -> QueryExpansion | None:
    """What `TermExpansion.save` wrote of queries.

    Raises:
        UsageError: the tensors have other shapes.
    """
    if not set(OF_QUERIES) <= set(tensors):
        return None
    terms, gain, limit = (tensors[name] for name in OF_QUERIES)
    shapes = terms.ndim == 1 and gain.shape == (1,) and limit.shape == (1,)
    if not shapes or (terms.dtype, gain.dtype, limit.dtype) != (torch.int32, torch.float32, torch.int64):
        raise UsageError("what it says of queries has another form; train it again")
    return QueryExpansion(terms.long(), float(gain), int(limit))

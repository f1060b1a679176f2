"""Query vectors as clients send them: units by number, or terms of the encoder's vocabulary."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from serving.errors import ApiError, from_validation

if TYPE_CHECKING:
    from retrieval.encoders.encoder import Vocabulary
    from runtime.activations import SparseActivations


class NumberedVector(BaseModel):
    """``{"indices": […], "values": […]}``."""

    model_config = ConfigDict(extra="forbid", strict=True)

    indices: list[int]
    values: list[float]


LARGEST = float(np.finfo(np.float32).max)

TERM_VECTOR = TypeAdapter(dict[str, float], config=ConfigDict(strict=True))


@dataclass(frozen=True)
class QueryVectors:
    """Checked vectors, and the terms of each that the vocabulary has not."""

    activations: SparseActivations
    unknown_terms: list[list[str]]


def read_query_vectors(
    vectors: Sequence[dict[str, Any]], names: Sequence[str], vocabulary: Vocabulary
) -> QueryVectors:
    """Check and convert vectors; `names` are the parameters they came in, for messages.

    Weights must be finite in float32 and not negative. Weights of the same unit add up; zeros are dropped.

    Raises:
        ApiError: 422 naming the field.
    """
    from retrieval.index.scorable import is_scorable
    from runtime.activations import SparseActivations

    rows = []
    unknown_terms: list[list[str]] = []
    for vector, name in zip(vectors, names, strict=True):
        if set(vector) & {"indices", "values"} and not is_term_vector(vector):
            units, weights = read_numbered(vector, name, len(vocabulary))
            unknown_terms.append([])
        else:
            units, weights, unknown = read_terms(vector, name, vocabulary)
            unknown_terms.append(unknown)
        rows.append((units, weights))
    activations = SparseActivations.from_rows(rows, len(vocabulary))
    if not is_scorable(activations, len(vocabulary)):  # units in no order, or twice, or weights of 0
        coalesced = [coalesce(*row, name) for row, name in zip(rows, names, strict=True)]
        activations = SparseActivations.from_rows(coalesced, len(vocabulary))
    return QueryVectors(activations, unknown_terms)


def is_term_vector(vector: dict[str, Any]) -> bool:
    """Whether all values are numbers: "indices" and "values" are words too."""
    return all(isinstance(value, int | float) for value in vector.values())


def read_numbered(vector: dict[str, Any], name: str, num_units: int) -> tuple[list[int], list[float]]:
    try:
        parsed = NumberedVector.model_validate(vector)
    except ValidationError as error:
        raise from_validation(error, (name,)) from None
    if len(parsed.indices) != len(parsed.values):
        raise ApiError(
            422,
            "invalid_value",
            f"{name} has {len(parsed.indices)} indices and {len(parsed.values)} values; give as many of each",
            f"{name}.values",
        )
    if parsed.indices and not 0 <= min(parsed.indices) <= max(parsed.indices) < num_units:
        place, unit = next(
            (place, unit) for place, unit in enumerate(parsed.indices) if not 0 <= unit < num_units
        )
        raise ApiError(
            422,
            "invalid_value",
            f"{name}.indices.{place} is {unit}, but the vocabulary has units 0 to {num_units - 1}",
            f"{name}.indices.{place}",
        )
    check_weights(parsed.values, lambda place: f"{name}.values.{place}")
    return parsed.indices, parsed.values


def read_terms(
    vector: dict[str, Any], name: str, vocabulary: Vocabulary
) -> tuple[list[int], list[float], list[str]]:
    try:
        weights = TERM_VECTOR.validate_python(vector)
    except ValidationError as error:
        raise from_validation(error, (name,)) from None
    terms = list(weights)
    check_weights(list(weights.values()), lambda place: f"{name}.{terms[place]}")
    found = vocabulary.find(terms) if terms else []
    known = sorted((unit, weights[term]) for term, unit in zip(terms, found, strict=True) if unit >= 0)
    unknown = [term for term, unit in zip(terms, found, strict=True) if unit < 0]
    return [unit for unit, _ in known], [weight for _, weight in known], unknown


def check_weights(weights: Sequence[float], name_of: Callable[[int], str]) -> None:
    """Raise a 422 for the first weight, if any, that is none; `name_of` calls the weight at a place by its name."""
    for place, weight in enumerate(weights):
        if not 0 <= weight <= LARGEST:
            name = name_of(place)
            raise ApiError(
                422, "invalid_value", f"{name} is {weight}, but weights are 0 or more and finite", name
            )


def coalesce(units: Sequence[int], weights: Sequence[float], name: str) -> tuple[Any, Any]:
    """Distinct units in ascending order with the float32 sums of their weights, zeros left out."""
    distinct, places = np.unique(np.asarray(units, np.int64), return_inverse=True)
    sums = np.bincount(places, weights, len(distinct)).astype(np.float64)
    check_weights(sums.tolist(), lambda place: f"{name}: the weight of unit {distinct[place]}")
    kept = sums.astype(np.float32) > 0
    return distinct[kept], sums[kept]

"""Dense vectors of texts beside their terms: a dense encoder's own, whatever the batches."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from retrieval.encoders.masked_language_model import MaskedLanguageModel, TermWeighting
from retrieval.encoders.text_vector import TextVectors
from runtime.errors import FormatError

MakeModel = Callable[..., Path]


def plain_vector(folder: Path, text: str) -> np.ndarray:
    """The mean of the last hidden states on the unit sphere, with transformers alone, one text, no padding."""
    inputs = AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt", truncation=True, max_length=38)
    with torch.inference_mode():
        hidden = AutoModel.from_pretrained(folder).eval()(**inputs).last_hidden_state[0]
    mean = hidden.mean(0)
    return (mean / mean.norm()).numpy()


@pytest.mark.parametrize(
    "architecture", ["bert", "distilbert", "roberta", "modernbert", "albert", "mobilebert"]
)
@pytest.mark.parametrize("pooling", ["max", "sum"])
def test_vectors_are_those_of_the_transformer_and_terms_those_of_the_head(
    make_language_model: MakeModel, texts: list[str], architecture: str, pooling: str
) -> None:
    folder = make_language_model(architecture)
    model = MaskedLanguageModel(folder, dtype="float32", token_budget=50)
    weighting = TermWeighting(pooling, "log1p_relu", 38, max_active_dims=9)  # type: ignore[arg-type]
    given = [*texts, "", "  ", *texts[::-1]]
    alone = model.encode(given, weighting)
    done: list[int] = []
    terms, vectors = model.encode_with_pooled(given, weighting, done.append)
    assert sum(done) == len(given)
    assert vectors.dtype == np.float32
    expected = [plain_vector(folder, text) if text.strip() else np.zeros(vectors.shape[1]) for text in given]
    np.testing.assert_allclose(vectors, np.stack(expected), rtol=1e-4, atol=1e-5)
    for one, other in zip(alone, terms, strict=True):
        np.testing.assert_array_equal(one, other)
    nothing, none = model.encode_with_pooled([], weighting)
    assert nothing.num_rows == len(none) == 0


def test_prompts_are_read_by_both(make_language_model: MakeModel) -> None:
    model = MaskedLanguageModel(make_language_model(), dtype="float32")
    terms, vectors = model.encode_with_pooled(["virus"], TermWeighting(prompt="the "))
    written, expected = model.encode_with_pooled(["the virus"], TermWeighting())
    np.testing.assert_array_equal(vectors, expected)
    np.testing.assert_array_equal(terms.weights, written.weights)


def test_a_model_that_is_all_head_is_refused(make_language_model: MakeModel) -> None:
    body = AutoModel.from_pretrained(make_language_model())
    with pytest.raises(FormatError, match="no transformer apart from its vocabulary head"):
        TextVectors(body)

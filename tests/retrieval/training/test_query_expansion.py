"""Directions that queries are expanded by: found as the formula says, in terms that no text has."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from retrieval.encoders.bm25 import Bm25Encoder
from retrieval.encoders.encoder import SparseEncoder
from retrieval.encoders.expanded_queries import ExpandedQueriesEncoder
from retrieval.encoders.expansion import QueryExpansion, TermExpansion
from retrieval.encoders.inference_free import InferenceFreeEncoder
from retrieval.encoders.language_model_folder import load_tokenizer
from retrieval.encoders.masked_language_model import MaskedLanguageModel, TermWeighting
from retrieval.encoders.sentence_transformers_folder import SpladeRoute, TableRoute
from retrieval.encoders.shrink import shrink
from retrieval.encoders.splade import SpladeOptions, SpladeSide
from retrieval.training import query_expansion
from retrieval.training.query_expansion import (
    directions_in_terms,
    expand_queries,
    free_terms,
    principal_directions,
    with_directions,
)
from retrieval.training.training_set import TrainingSet
from runtime.errors import ConflictError, NotFoundError, UsageError
from tests.retrieval.conftest import TOKENS
from tests.retrieval.training.conftest import UNUSED, WORDS, dark

MakeModel = Callable[..., Path]

WIDTH = 16


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def write_encoder(model: Path, folder: Path, *, expanded: bool = True, prompt: str = "") -> Path:
    """An inference-free encoder with a term expansion of documents."""
    draw, scratch = torch.Generator().manual_seed(0), folder.with_name(folder.name + ".parts")
    weight = torch.randn(len(TOKENS), WIDTH, generator=draw)
    TermExpansion(weight, torch.randn(len(TOKENS), generator=draw)).save(scratch)
    save_file({"weight": torch.linspace(0.5, 4, len(TOKENS))}, scratch / "table.safetensors")
    route = SpladeRoute(
        model, "max", "log1p_relu", 30, prompt=prompt, expansion=scratch if expanded else None
    )
    table = TableRoute(model, scratch / "table.safetensors")
    InferenceFreeEncoder(table, SpladeSide(route, SpladeOptions())).save(folder)
    return folder


@pytest.fixture
def model(make_language_model: MakeModel, tmp_path: Path) -> Path:
    return dark(make_language_model(), tmp_path / "model", UNUSED)


@pytest.fixture
def encoder(model: Path, tmp_path: Path) -> Path:
    return write_encoder(model, tmp_path / "encoder")


@given(st.integers(2, 9), st.integers(1, 6), st.integers(0, 8), st.integers(0, 99))
def test_directions_are_those_of_most_variance(texts: int, width: int, count: int, seed: int) -> None:
    vectors = np.random.default_rng(seed).normal(size=(texts, width)).astype(np.float32)
    centre, directions, share = principal_directions(vectors, count)
    kept = min(count, width)
    assert (centre.dtype, directions.dtype, directions.shape) == (np.float32, np.float32, (kept, width))
    np.testing.assert_allclose(centre, vectors.mean(0), atol=1e-6)
    np.testing.assert_allclose(directions @ directions.T, np.eye(kept), atol=1e-6)  # orthogonal, of length 1
    for direction in directions:
        assert direction[np.abs(direction).argmax()] > 0
    centred = vectors.astype(np.float64) - vectors.astype(np.float64).mean(0)
    singular = np.zeros(width)  # the obvious way: a decomposition of the vectors themselves
    found = np.linalg.svd(centred, compute_uv=False)
    singular[: len(found)] = found
    along = np.square(centred @ directions.T).sum(0)
    np.testing.assert_allclose(along, np.square(singular[:kept]), rtol=1e-4, atol=1e-5)
    assert share == pytest.approx(np.square(singular[:kept]).sum() / np.square(singular).sum(), abs=1e-9)
    again = principal_directions(vectors, count)
    assert np.array_equal(again[0], centre)
    assert np.array_equal(again[1], directions)


def test_vectors_that_are_all_the_same_have_no_variance() -> None:
    _, directions, share = principal_directions(np.ones((3, 4), np.float32), 2)
    assert (directions.shape, share) == ((2, 4), 0.0)


def test_free_terms_are_in_no_text_and_never_lit(model: Path) -> None:
    tokenizer = load_tokenizer(model, False, len(TOKENS))
    texts = ["", *(["the cell"] * 1500), "of a virus"]  # more than are tokenized at once
    lit = np.array([10, 11, 40, 10], np.int32)
    found = free_terms(tokenizer, texts, len(TOKENS), lit)
    known = {TOKENS.index(word) for word in ("the", "cell", "of", "a", "virus")} | {0, 1, 2, 3, 4, 10, 11, 40}
    assert found.tolist() == [term for term in range(len(TOKENS)) if term not in known]
    fewer = free_terms(tokenizer, texts, 20, lit[:2])  # a head with fewer terms than the tokenizer has
    assert fewer.tolist() == [term for term in range(20) if term not in known]


@given(st.integers(0, 3), st.integers(6, 9), st.integers(0, 99))
def test_each_direction_has_two_terms_one_for_either_sign(count: int, num_terms: int, seed: int) -> None:
    draw = np.random.default_rng(seed)
    before = TermExpansion(
        torch.from_numpy(draw.normal(size=(num_terms, 4)).astype(np.float32)), torch.ones(num_terms)
    )
    rows, centre = (draw.normal(size=shape).astype(np.float32) for shape in ((count, 4), (4,)))
    free = np.sort(draw.choice(num_terms, 6, replace=False)).astype(np.int64)
    made = with_directions(before, directions_in_terms(free, rows, centre, num_terms, 0.5, 3))
    assert made.of_queries is not None
    assert made.of_queries.terms.tolist() == free[: 2 * count].tolist()
    assert (made.of_queries.gain, made.of_queries.limit) == (0.5, 3)
    vectors = draw.normal(size=(5, 4)).astype(np.float32)
    found = made.terms(torch.from_numpy(vectors)).numpy()
    expected = before.terms(torch.from_numpy(vectors)).numpy().astype(np.float64)
    for place, row in enumerate(rows.astype(np.float64)):
        along = (vectors.astype(np.float64) - centre) @ row
        expected[:, free[2 * place]] = np.maximum(along, 0)
        expected[:, free[2 * place + 1]] = np.maximum(-along, 0)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_an_encoder_expands_queries_by_directions_of_its_own_vectors(
    model: Path, encoder: Path, training_set: TrainingSet, tmp_path: Path
) -> None:
    passages, seen = training_set.passages, [0]
    given = [*passages, "", passages[0]]  # neither of which is measured
    found = expand_queries(
        encoder, tmp_path / "out", given, scale=9.0, gain=0.5, limit=6, advance=lambda done: seen.append(done)
    )
    assert (found.texts, found.directions, sum(seen)) == (len(passages), WIDTH, len(passages))
    assert found.variance == pytest.approx(1)  # these are all directions
    made, plain = (SparseEncoder.load(folder, dtype="float32") for folder in (tmp_path / "out", encoder))
    assert isinstance(made, ExpandedQueriesEncoder)
    assert isinstance(plain, InferenceFreeEncoder)
    _, vectors = MaskedLanguageModel(model, dtype="float32").encode_with_pooled(
        passages, TermWeighting(max_length=30)
    )
    centre, directions, _ = principal_directions(vectors, WIDTH)
    free = UNUSED[: 2 * WIDTH]
    expected = np.zeros((len(passages), len(TOKENS)))
    along = 9.0 * (vectors.astype(np.float64) - centre) @ directions.T
    expected[:, free[::2]], expected[:, free[1::2]] = np.maximum(along, 0), np.maximum(-along, 0)
    documents, before = (np.asarray(one.encode_documents(passages).to_dense()) for one in (made, plain))
    np.testing.assert_allclose(documents[:, free], expected[:, free], rtol=1e-3, atol=1e-3)
    others = np.setdiff1d(np.arange(len(TOKENS)), free)
    np.testing.assert_allclose(documents[:, others], before[:, others], rtol=1e-5, atol=1e-5)
    queries = np.asarray(made.encode_queries(passages).to_dense())
    words = np.asarray(plain.encode_queries(passages, counted=True).to_dense())
    np.testing.assert_array_equal(queries[:, others], words[:, others])
    heaviest = np.sort(expected, 1)[:, ::-1][:, :6]
    np.testing.assert_allclose(
        np.sort(queries[:, free], 1)[:, ::-1][:, :6], 0.5 * heaviest, rtol=1e-3, atol=1e-3
    )
    assert ((queries[:, free] > 0).sum(1) <= 6).all()
    # Twice the same, to the bit.
    expand_queries(encoder, tmp_path / "again", given, scale=9.0, gain=0.5, limit=6)
    assert SparseEncoder.load(tmp_path / "again").fingerprint == made.fingerprint
    shrink(tmp_path / "out", tmp_path / "small")
    assert SparseEncoder.load(tmp_path / "small").family == "expanded_queries"


def test_there_are_as_many_directions_as_pairs_of_free_terms(
    make_language_model: MakeModel, training_set: TrainingSet, tmp_path: Path
) -> None:
    model = dark(make_language_model(), tmp_path / "few", UNUSED[3:10])
    encoder = write_encoder(model, tmp_path / "encoder")
    found = expand_queries(encoder, tmp_path / "out", training_set.passages)
    assert found.directions == 3  # of 7 terms
    assert 0 < found.variance < 1
    [module] = (tmp_path / "out").glob("*_TermExpansion")
    queries = TermExpansion.load(module).of_queries
    assert isinstance(queries, QueryExpansion)
    assert queries.terms.tolist() == UNUSED[3:9]


def test_terms_of_a_prompt_are_not_free(
    make_language_model: MakeModel, training_set: TrainingSet, tmp_path: Path
) -> None:
    model = dark(make_language_model(), tmp_path / "dark", [TOKENS.index(piece) for piece in ("b", "c", "d")])
    encoder = write_encoder(model, tmp_path / "encoder", prompt="c ")
    expand_queries(encoder, tmp_path / "out", training_set.passages)
    [module] = (tmp_path / "out").glob("*_TermExpansion")
    queries = TermExpansion.load(module).of_queries
    assert queries is not None
    assert queries.terms.tolist() == [TOKENS.index("b"), TOKENS.index("d")]


def test_texts_to_measure_are_spread_over_all(
    encoder: Path, training_set: TrainingSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(query_expansion, "MEASURED", 15)
    found = expand_queries(encoder, tmp_path / "out", training_set.passages[:40])
    assert found.texts == 14  # every third of 40


def test_what_cannot_be_expanded_is_told_and_leaves_nothing(
    make_language_model: MakeModel, model: Path, encoder: Path, training_set: TrainingSet, tmp_path: Path
) -> None:
    passages, out = training_set.passages, tmp_path / "out"
    plain = write_encoder(model, tmp_path / "plain", expanded=False)
    lit = write_encoder(dark(make_language_model(), tmp_path / "bright", UNUSED[:1]), tmp_path / "lit")
    counting = tmp_path / "counting"
    Bm25Encoder().fit(passages).save(counting)
    for folder, texts, told in (
        (make_language_model(), passages, "no inference-free encoder with a term expansion"),
        (counting, passages, "dtype"),
        (plain, passages, "no inference-free encoder with a term expansion"),
        (encoder, [], "and there are 0"),
        (encoder, ["the", "", " ", "the"], "and there are 1"),
        (lit, passages, "has no two terms that are in no text"),
    ):
        with pytest.raises(UsageError, match=told):
            expand_queries(folder, out, texts)
    wrong: list[dict[str, Any]] = [
        {"scale": 0.0},
        {"gain": float("nan")},
        {"gain": float("inf")},
        {"limit": 0},
    ]
    for setting in wrong:
        with pytest.raises(UsageError, match=f"the {next(iter(setting))} of an expansion of queries must be"):
            expand_queries(encoder, out, passages, **setting)
    for missing in (Path("bm25"), tmp_path / "none"):
        with pytest.raises(NotFoundError, match="there is no encoder folder"):
            expand_queries(missing, out, passages)
    assert not list(tmp_path.glob("out*"))
    out.mkdir()
    with pytest.raises(ConflictError, match="exists already"):
        expand_queries(encoder, out, passages)


def test_a_failure_on_the_way_leaves_no_folder(
    encoder: Path, training_set: TrainingSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    partial = out.with_name("out.partial")  # as a killed run leaves it
    partial.mkdir()
    (partial / "write.lock").touch()
    (partial / "modules.json").write_text("half")

    def stop(*_: object) -> None:
        assert partial.is_dir()
        assert not out.exists()
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(TermExpansion, "save", stop)
        with pytest.raises(KeyboardInterrupt):
            expand_queries(encoder, out, training_set.passages)
    assert not out.exists()
    assert not partial.exists()
    expand_queries(encoder, out, training_set.passages)
    assert SparseEncoder.load(out).family == "expanded_queries"


def test_a_shrunk_encoder_can_be_expanded(encoder: Path, training_set: TrainingSet, tmp_path: Path) -> None:
    shrink(encoder, tmp_path / "small", word_bits=4)
    expand_queries(tmp_path / "small", tmp_path / "out", training_set.passages)
    made, small = (SparseEncoder.load(tmp_path / name, dtype="float32") for name in ("out", "small"))
    others = np.setdiff1d(np.arange(len(TOKENS)), UNUSED)
    ours, theirs = (np.asarray(one.encode_documents(WORDS).to_dense())[:, others] for one in (made, small))
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)

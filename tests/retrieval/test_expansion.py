"""Term expansions: the formula, their file, and encoders that have one."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import sentence_transformers
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from retrieval.encoders.checked_tensors import save_checked
from retrieval.encoders.encoder import SparseEncoder
from retrieval.encoders.expansion import FORM, VERSION, TermExpansion
from retrieval.encoders.fingerprint import EXPANSION_FILE
from retrieval.encoders.inference_free import InferenceFreeEncoder
from retrieval.encoders.masked_language_model import MaskedLanguageModel, TermWeighting, heaviest, with_added
from retrieval.encoders.rounded_weights import Bits, restored, rounded
from retrieval.encoders.sentence_transformers_folder import EXPANSION, SpladeRoute, TableRoute
from retrieval.encoders.splade import SpladeEncoder, SpladeOptions, SpladeSide
from runtime.activations import SparseActivations
from runtime.errors import FormatError, NotFoundError, UsageError

MakeModel = Callable[..., Path]


def random_expansion(num_terms: int, width: int, seed: int = 0, shift: float = -0.5) -> TermExpansion:
    draw = torch.Generator().manual_seed(seed)
    weight = torch.randn(num_terms, width, generator=draw)
    return TermExpansion(weight, torch.randn(num_terms, generator=draw) + shift)


def plain_terms(expansion: TermExpansion, pooled: np.ndarray) -> np.ndarray:
    """The formula, term by term, in float64."""
    weight, bias = expansion.weight.double().numpy(), expansion.bias.double().numpy()
    found = np.zeros((len(pooled), len(weight)))
    for row, vector in enumerate(pooled.astype(np.float64)):
        for term in range(len(weight)):
            found[row, term] = max(0.0, float(weight[term] @ vector + bias[term]))
    return found


@given(st.integers(0, 4), st.integers(0, 9), st.integers(1, 7), st.integers(0, 99))
def test_terms_are_those_of_the_formula(rows: int, num_terms: int, width: int, seed: int) -> None:
    expansion = random_expansion(num_terms, width, seed)
    pooled = torch.nn.functional.normalize(torch.randn(rows, width), dim=1)
    found = expansion.terms(pooled)
    assert found.dtype == torch.float32
    assert (found >= 0).all()
    np.testing.assert_allclose(found.numpy(), plain_terms(expansion, pooled.numpy()), rtol=1e-5, atol=1e-6)


def test_it_comes_back_from_its_folder(tmp_path: Path) -> None:
    expansion = random_expansion(7, 5)
    expansion.save(tmp_path / "module")
    again = TermExpansion.load(tmp_path / "module")
    assert torch.equal(again.weight, expansion.weight)
    assert torch.equal(again.bias, expansion.bias)
    assert [path.name for path in (tmp_path / "module").iterdir()] == [EXPANSION_FILE]
    content = (tmp_path / "module" / EXPANSION_FILE).read_bytes()
    again.save(tmp_path / "module")
    assert (tmp_path / "module" / EXPANSION_FILE).read_bytes() == content


@pytest.mark.parametrize("bits", [8, 4])
def test_it_can_be_rounded(tmp_path: Path, bits: Bits) -> None:
    expansion = random_expansion(7, 5)
    expansion.save(tmp_path, bits)
    again = TermExpansion.load(tmp_path)
    kept = restored(rounded({"w": expansion.weight}, {"w": bits}), tmp_path)
    assert torch.equal(again.weight, kept["w"])
    assert torch.equal(again.bias, expansion.bias.half().float())


def test_what_is_no_expansion_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"not \[3, 4\] and \[4\]"):
        TermExpansion(torch.ones(3, 4), torch.ones(4))
    with pytest.raises(UsageError, match="NaN or infinite"):
        TermExpansion(torch.ones(3, 4), torch.tensor([1.0, torch.nan, 0.0]))
    with pytest.raises(FormatError, match="7 terms and vectors of 5 values, but the model has 7 terms"):
        random_expansion(7, 5).require_fit(7, 6)
    with pytest.raises(FormatError, match="cannot be read"):
        TermExpansion.load(tmp_path)
    path = tmp_path / EXPANSION_FILE
    random_expansion(7, 5).save(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(FormatError, match="checksum does not fit"):
        TermExpansion.load(tmp_path)
    path.write_bytes(whole[:-3])
    with pytest.raises(FormatError, match="cannot be read"):
        TermExpansion.load(tmp_path)
    save_file({"weight": torch.ones(1, 1)}, path, {FORM: "9 of another time"})
    with pytest.raises(FormatError, match="version '9'"):
        TermExpansion.load(tmp_path)
    save_checked({"weight": torch.ones(2, 2)}, path, FORM, VERSION)
    with pytest.raises(FormatError, match=r"must hold weight and bias, .* not weight"):
        TermExpansion.load(tmp_path)
    save_checked({"weight": torch.ones(2, 2), "bias": torch.ones(3)}, path, FORM, VERSION)
    with pytest.raises(FormatError, match="cannot be used: a term expansion has"):
        TermExpansion.load(tmp_path)


# Encoders that have one.


def dense(rows: SparseActivations) -> np.ndarray:
    return np.asarray(rows.to_dense())


@pytest.mark.parametrize("architecture", ["bert", "mobilebert"])  # with the fused head and without
@pytest.mark.parametrize("pooling", ["max", "sum"])  # screened and dense
@pytest.mark.parametrize("limit", [None, 5])
def test_weights_are_the_sum_of_head_and_expansion(
    make_language_model: MakeModel, texts: list[str], architecture: str, pooling: str, limit: int | None
) -> None:
    folder = make_language_model(architecture)
    alone = MaskedLanguageModel(folder, dtype="float32", token_budget=60)
    expansion = random_expansion(len(alone.vocabulary), 16)
    model = MaskedLanguageModel(folder, dtype="float32", token_budget=60, expansion=expansion)
    given = [*texts, "", *texts[::-1]]
    whole = TermWeighting(pooling, "log1p_relu")  # type: ignore[arg-type]
    head, vectors = alone.encode_with_pooled(given, whole)
    expected = dense(head) + plain_terms(expansion, vectors)
    expected[len(texts)] = 0  # a text without a token of its own
    found = model.encode(given, replace(whole, max_active_dims=limit))
    assert found.weights.dtype == np.float32
    assert (found.weights > 0).all()
    for row, (units, weights) in enumerate(found):
        assert (np.diff(units) > 0).all()
        np.testing.assert_allclose(weights, expected[row, units], rtol=1e-5, atol=1e-5)
        left = np.delete(expected[row], units)
        assert (left <= (1e-5 if limit is None else weights.min(initial=np.inf) + 1e-5)).all()
        assert limit is None or len(units) == min(limit, (expected[row] > 1e-5).sum())
    again, same = model.encode_with_pooled(given, whole)
    np.testing.assert_array_equal(dense(again), dense(head))
    np.testing.assert_array_equal(same, vectors)


@given(st.integers(0, 99), st.sampled_from([None, 1, 3, 10]))
def test_equal_sums_keep_the_lower_unit(seed: int, limit: int | None) -> None:
    draw = np.random.default_rng(seed)
    more = draw.integers(0, 3, 12).astype(np.float32)
    units = np.sort(draw.choice(12, 5, replace=False)).astype(np.int32)
    row = (units, draw.integers(1, 3, 5).astype(np.float32))
    total = more.copy()
    for unit, weight in zip(*row, strict=True):
        total[unit] += weight
    best = sorted((unit for unit in range(12) if total[unit] > 0), key=lambda unit: (-total[unit], unit))
    found = with_added(row, more)
    kept = found if limit is None else heaviest(*found, limit)
    assert kept[0].tolist() == sorted(best[:limit])
    assert kept[0].dtype == np.int32
    assert kept[1].tolist() == total[sorted(best[:limit])].tolist()


def test_an_expansion_in_bfloat16_is_still_of_float32(
    make_language_model: MakeModel, texts: list[str]
) -> None:
    folder = make_language_model()
    expansion = random_expansion(len(SparseEncoder.load(folder).vocabulary), 16)
    exact, rough = (
        MaskedLanguageModel(folder, dtype=dtype, expansion=expansion).encode(texts, TermWeighting())
        for dtype in ("float32", "bfloat16")
    )
    assert rough.weights.dtype == np.float32
    np.testing.assert_allclose(dense(rough), dense(exact), atol=0.05 * dense(exact).max())


def test_another_models_expansion_is_refused(make_language_model: MakeModel) -> None:
    folder = make_language_model()
    terms = len(SparseEncoder.load(folder).vocabulary)
    for shape in ((terms, 15), (terms + 1, 16)):
        with pytest.raises(FormatError, match="use the expansion that was trained with the model"):
            MaskedLanguageModel(folder, expansion=random_expansion(*shape))


@pytest.fixture(params=["plain", "both sides", "documents", "inference-free"])
def encoder(
    request: pytest.FixtureRequest, make_language_model: MakeModel, tmp_path: Path
) -> SpladeEncoder | InferenceFreeEncoder:
    """Encoders with an expansion of documents, and of queries in the first two; not saved yet."""
    model, module = make_language_model(), tmp_path / "module"
    terms = len(SparseEncoder.load(model).vocabulary)
    random_expansion(terms, 16).save(module)
    expanded, options = (
        SpladeRoute(model, expansion=module),
        SpladeOptions(dtype="float32", max_active_dims=20),
    )
    if request.param == "inference-free":
        table = tmp_path / "table.safetensors"
        save_file({"weight": torch.linspace(0.5, 4, terms)}, table)
        side = SpladeSide(expanded, options, 20)
        return InferenceFreeEncoder(TableRoute(model, table), side, 20)
    if request.param == "both sides":
        queries = replace(expanded, folder=make_language_model(seed=1), max_length=9)
        return SpladeEncoder(SpladeSide(expanded, options), SpladeSide(queries, options))
    queries = SpladeRoute(model) if request.param == "documents" else expanded
    return SpladeEncoder(SpladeSide(expanded, options), SpladeSide(queries, options))


def test_a_saved_encoder_is_the_same(
    encoder: SpladeEncoder | InferenceFreeEncoder, texts: list[str], tmp_path: Path
) -> None:
    encoder.save(tmp_path / "saved")
    again = SparseEncoder.load(tmp_path / "saved", dtype="float32")
    assert again.fingerprint == encoder.fingerprint
    np.testing.assert_array_equal(
        dense(again.encode_documents(texts)), dense(encoder.encode_documents(texts))
    )
    np.testing.assert_array_equal(dense(again.encode_queries(texts)), dense(encoder.encode_queries(texts)))
    again.save(tmp_path / "again")
    assert SparseEncoder.load(tmp_path / "again").fingerprint == encoder.fingerprint
    encoder.source = again.source
    encoder.save_for_search(tmp_path / "side")
    assert SparseEncoder.load(tmp_path / "side").fingerprint == encoder.fingerprint
    with pytest.raises(Exception, match="TermExpansion"):
        sentence_transformers.SparseEncoder(str(tmp_path / "saved"), device="cpu")


def test_the_expansion_is_part_of_the_fingerprint_and_of_the_vectors(
    encoder: SpladeEncoder | InferenceFreeEncoder, texts: list[str], tmp_path: Path
) -> None:
    encoder.save(tmp_path / "one")
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    module = next((tmp_path / "two").glob("*2_TermExpansion"))
    random_expansion(len(encoder.vocabulary), 16, seed=1).save(module)
    one, two = SparseEncoder.load(tmp_path / "one"), SparseEncoder.load(tmp_path / "two")
    assert one.fingerprint != two.fingerprint
    if module.name != "query_2_TermExpansion":
        assert not np.array_equal(dense(one.encode_documents(texts)), dense(two.encode_documents(texts)))
    (module / EXPANSION_FILE).unlink()
    with pytest.raises(NotFoundError, match=r"the term expansion .* is missing"):
        SparseEncoder.load(tmp_path / "two")


def test_other_paths_to_such_a_module_are_refused(make_language_model: MakeModel, tmp_path: Path) -> None:
    model, module = make_language_model(), tmp_path / "module"
    random_expansion(len(SparseEncoder.load(model).vocabulary), 16).save(module)
    side = SpladeSide(SpladeRoute(model, expansion=module), SpladeOptions())
    SpladeEncoder(side, side).save(tmp_path / "saved")
    listed = tmp_path / "saved" / "modules.json"
    text = listed.read_text()
    for other, told in (
        ("lexpert.Other", "code from outside"),
        ("lexpert.more.TermExpansion", "code from outside"),
        ("sentence_transformers.models.TermExpansion", "SpladePooling \\+ TermExpansion; known are"),
    ):
        listed.write_text(text.replace(EXPANSION, other))
        with pytest.raises(FormatError, match=told):
            SparseEncoder.load(tmp_path / "saved")

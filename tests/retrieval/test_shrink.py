"""Encoders with their weights in 8 bits: nearly the same vectors, fewer bytes, and one sentence for what cannot be."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import lexpert
from retrieval.encoders import sentence_transformers_folder as st_folder
from retrieval.encoders.encoder import SparseEncoder
from retrieval.encoders.expansion import TermExpansion
from retrieval.encoders.fingerprint import EXPANSION_FILE, ROUNDED_WEIGHTS, tokenizer_files
from retrieval.encoders.inference_free import inference_free_from
from retrieval.encoders.rounded_weights import (
    Bits,
    load_rounded,
    restored,
    round_to_bytes,
    rounded,
    save_rounded,
)
from retrieval.encoders.sentence_transformers_folder import SpladeRoute, TableRoute, write_json
from retrieval.encoders.shrink import shrink, spread_layers, with_layers
from retrieval.encoders.splade import SpladeEncoder, SpladeOptions, SpladeSide
from retrieval.encoders.vector_difference import vector_difference
from runtime.errors import ConflictError, FormatError, NotFoundError, UsageError

MakeModel = Callable[..., Path]


@pytest.fixture(scope="module")
def encoder_folder(make_language_model: MakeModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An inference-free encoder in float32, with one tokenizer for both sides."""
    model, table = make_language_model(), tmp_path_factory.mktemp("table")
    for name, path in tokenizer_files(model).items():
        shutil.copyfile(path, table / name)
    terms = len(SparseEncoder.load(model).vocabulary)
    save_file({"weight": torch.linspace(0.5, 4, terms)}, table / "model.safetensors")
    folder = tmp_path_factory.mktemp("whole")
    inference_free_from(SpladeRoute(model), TableRoute(table, table / "model.safetensors")).save(folder)
    return folder


def dense(encoder: SparseEncoder, texts: list[str]) -> np.ndarray:
    return np.asarray(encoder.encode_documents(texts).to_dense())


def queries(encoder: SparseEncoder, texts: list[str]) -> np.ndarray:
    return np.asarray(encoder.encode_queries(texts).to_dense())


def files_of(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_a_shrunk_encoder_encodes_nearly_the_same(
    encoder_folder: Path, texts: list[str], tmp_path: Path
) -> None:
    done = shrink(encoder_folder, tmp_path / "small")
    names = sorted(path.name for path in (tmp_path / "small").rglob("*.safetensors"))
    assert names == ["model.safetensors", ROUNDED_WEIGHTS]  # the table of queries, and the model
    assert done.bytes_before == sum(path.stat().st_size for path in files_of(encoder_folder))
    assert done.bytes_after == sum(path.stat().st_size for path in files_of(tmp_path / "small"))
    assert done.layers == [0, 1]
    whole, small = SparseEncoder.load(encoder_folder), SparseEncoder.load(tmp_path / "small")
    expected, got = dense(whole, texts), dense(small, texts)
    assert 0 < np.abs(got - expected).mean() < 0.02 * expected.max()  # the tiny model has large weights
    assert small.fingerprint != whole.fingerprint
    assert np.array_equal(queries(small, texts), queries(whole, texts))


def test_one_tokenizer_of_two_is_kept_where_they_are_the_same(
    encoder_folder: Path, texts: list[str], tmp_path: Path
) -> None:
    shrink(encoder_folder, tmp_path / "one")
    [tokenizer] = (tmp_path / "one").rglob("tokenizer.json")
    assert "\n" not in tokenizer.read_text().strip()
    other = tmp_path / "other"
    shutil.copytree(encoder_folder, other)
    config = other / "query_0_SparseStaticEmbedding" / "tokenizer_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "model_max_length": 3}))
    shrink(other, tmp_path / "two")
    assert len(list((tmp_path / "two").rglob("tokenizer.json"))) == 2
    one, two = SparseEncoder.load(tmp_path / "one"), SparseEncoder.load(tmp_path / "two")
    assert np.array_equal(dense(one, texts), dense(two, texts))
    assert (queries(two, texts) > 0).sum(1).max() <= 3
    assert (queries(one, texts) > 0).sum(1).max() > 3


def test_the_shared_tokenizer_stays_inside_the_folder(encoder_folder: Path, tmp_path: Path) -> None:
    shrink(encoder_folder, tmp_path / "small")
    config = tmp_path / "small" / "query_0_SparseStaticEmbedding" / "config.json"
    write_json(config, {st_folder.SHARED_TOKENIZER: "../elsewhere"})
    with pytest.raises(FormatError, match="outside of it"):
        SparseEncoder.load(tmp_path / "small")


def test_saved_again_it_is_written_for_every_library(
    encoder_folder: Path, texts: list[str], tmp_path: Path
) -> None:
    from sentence_transformers import SparseEncoder as Peer

    shrink(encoder_folder, tmp_path / "small")
    small = SparseEncoder.load(tmp_path / "small")
    small.save(tmp_path / "again")
    assert not list((tmp_path / "again").rglob(ROUNDED_WEIGHTS))
    peer = Peer(str(tmp_path / "again"))
    found = peer.encode_document(texts, convert_to_sparse_tensor=False).cpu().numpy()
    np.testing.assert_allclose(dense(small, texts), found, rtol=1e-5, atol=1e-5)
    found = peer.encode_query(texts, convert_to_sparse_tensor=False).cpu().numpy()
    np.testing.assert_allclose(queries(small, texts), found, rtol=1e-5, atol=1e-5)


@given(st.integers(1, 30), st.integers(1, 30))
def test_layers_are_spread_from_the_first_to_the_last(count: int, wanted: int) -> None:
    if wanted > count:
        with pytest.raises(UsageError, match=f"has {count} layers"):
            spread_layers(count, wanted)
        return
    layers = spread_layers(count, wanted)
    gaps = np.diff(layers)
    assert len(layers) == wanted
    assert layers[-1] == count - 1
    assert wanted == 1 or layers[0] == 0
    assert (gaps >= 1).all()
    assert not len(gaps) or gaps.max() - gaps.min() <= 1 or count < 2 * wanted
    assert spread_layers(count, None) == list(range(count))


@pytest.mark.parametrize("architecture", ["bert", "distilbert"])
def test_fewer_layers_are_those_of_the_original(
    make_language_model: MakeModel, texts: list[str], tmp_path: Path, architecture: str
) -> None:
    model = make_language_model(architecture)
    assert shrink(model, tmp_path / "shallow", layers=1).layers == [1]
    whole, left = load_file(model / "model.safetensors"), load_rounded(tmp_path / "shallow" / ROUNDED_WEIGHTS)
    numbered = [name for name in left if ".layer." in name]
    assert numbered
    assert all(".layer.0." in name for name in numbered)
    for name, weight in left.items():
        original = whole[name.replace(".layer.0.", ".layer.1.")]
        if original.ndim == 2:
            codes, scales = round_to_bytes(original)
            original = codes * scales[:, None]
        assert torch.allclose(weight, original, atol=2e-3)
    assert (dense(SparseEncoder.load(tmp_path / "shallow"), texts) > 0).any()


@pytest.mark.parametrize(
    "architecture", ["bert", "distilbert", "roberta", "modernbert", "albert", "mobilebert"]
)
def test_tables_of_words_can_have_4_bits(
    make_language_model: MakeModel, texts: list[str], tmp_path: Path, architecture: str
) -> None:
    folder = make_language_model(architecture)
    shrink(folder, tmp_path / "eight")
    shrink(folder, tmp_path / "four", word_bits=4)
    whole, kept = load_file(folder / "model.safetensors"), load_file(tmp_path / "four" / ROUNDED_WEIGHTS)
    config = json.loads((folder / "config.json").read_text())
    tables = {name.removesuffix(".nibbles") for name in kept if name.endswith(".nibbles")}
    assert tables == {
        name
        for name, weight in whole.items()
        if "word" in name or "tok_embeddings" in name or (weight.ndim == 2 and "decoder" in name)
    }
    assert tables
    assert all(len(whole[name]) == config["vocab_size"] for name in tables)
    assert set(load_rounded(tmp_path / "four" / ROUNDED_WEIGHTS)) == set(whole)
    eight, four = (SparseEncoder.load(tmp_path / name) for name in ("eight", "four"))
    assert four.encode_documents(texts).nnz
    assert four.fingerprint != eight.fingerprint
    four.save(tmp_path / "again")  # in float32, which is what it computed with
    np.testing.assert_array_equal(dense(SparseEncoder.load(tmp_path / "again"), texts), dense(four, texts))


@pytest.mark.parametrize("word_bits", [8, 4])
def test_a_term_expansion_is_rounded_too(
    make_language_model: MakeModel, texts: list[str], tmp_path: Path, word_bits: Bits
) -> None:
    model = make_language_model()
    terms = len(SparseEncoder.load(model).vocabulary)
    draw = torch.Generator().manual_seed(0)
    weight, bias = torch.randn(terms, 16, generator=draw), torch.randn(terms, generator=draw)
    TermExpansion(weight, bias).save(tmp_path / "module")
    side = SpladeSide(SpladeRoute(model, expansion=tmp_path / "module"), SpladeOptions())
    SpladeEncoder(side, side).save(tmp_path / "whole")
    shrink(tmp_path / "whole", tmp_path / "small", word_bits=word_bits)
    small = SparseEncoder.load(tmp_path / "small")
    found = TermExpansion.load(tmp_path / "small" / "2_TermExpansion")
    expected = restored(rounded({"w": weight}, {"w": word_bits}), tmp_path)["w"]
    assert torch.equal(found.weight, expected)
    assert torch.equal(found.bias, bias.half().float())
    sizes = [
        (tmp_path / name / "2_TermExpansion" / EXPANSION_FILE).stat().st_size for name in ("whole", "small")
    ]
    assert sizes[1] < sizes[0]
    small.save(tmp_path / "again")
    again = load_file(tmp_path / "again" / "2_TermExpansion" / EXPANSION_FILE)
    assert again["weight"].dtype == torch.float32
    np.testing.assert_array_equal(dense(SparseEncoder.load(tmp_path / "again"), texts), dense(small, texts))
    with pytest.raises(UsageError, match="has a term expansion, which reads what all its layers make"):
        shrink(tmp_path / "whole", tmp_path / "shallow", layers=1)
    assert not (tmp_path / "shallow").exists()


def test_layers_that_are_not_alike_are_not_left_out(make_language_model: MakeModel, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="layers of this modernbert are not all alike"):
        shrink(make_language_model("modernbert"), tmp_path / "shallow", layers=1)
    with pytest.raises(UsageError, match="do not name its layers"):
        with_layers({"model_type": "albert", "num_hidden_layers": 2}, {"shared.weight": torch.ones(1)}, [1])
    assert not list(tmp_path.iterdir())


def test_terms_of_a_text_can_be_bounded(encoder_folder: Path, texts: list[str], tmp_path: Path) -> None:
    shrink(encoder_folder, tmp_path / "few", max_active_dims=4)
    few, whole = SparseEncoder.load(tmp_path / "few"), SparseEncoder.load(encoder_folder)
    difference = vector_difference(whole, few, texts)
    assert difference.most_terms_after == 4
    assert difference.terms_before > difference.terms_after
    assert (queries(few, texts) > 0).sum(1).max() <= 4


def test_another_length_is_kept(encoder_folder: Path, tmp_path: Path) -> None:
    shrink(encoder_folder, tmp_path / "short", max_length=4)
    start, longer = dense(
        SparseEncoder.load(tmp_path / "short"), ["a cell", "a cell in the body of the virus"]
    )
    np.testing.assert_allclose(start, longer, rtol=1e-5, atol=1e-5)


def test_vectors_are_compared_row_by_row(number_encoder: SparseEncoder) -> None:
    class Halved(type(number_encoder)):  # type: ignore[misc]  # a class that is made elsewhere
        def encode_documents(self, texts: list[str], advance: object = None) -> object:
            return super().encode_documents([text.rpartition(" ")[0] for text in texts], advance)

    found = vector_difference(number_encoder, Halved(), ["1:3 2:4", "", "5:1 6:0.5 7:1"])
    cosines = [3 / 5, 1.0, 1.25 / np.sqrt(2.25 * 1.25)]
    assert found.mean_cosine == pytest.approx(np.mean(cosines))
    assert found.lowest_cosine == pytest.approx(3 / 5)
    assert (found.documents, found.most_terms_after) == (3, 2)
    assert (found.terms_before, found.terms_after) == (pytest.approx(5 / 3), 1.0)
    with pytest.raises(UsageError, match="16 terms and the other 3"):
        vector_difference(number_encoder, type(number_encoder)(3), ["1:1"])
    with pytest.raises(UsageError, match="no texts"):
        vector_difference(number_encoder, number_encoder, [])


def test_missing_weights_are_told(encoder_folder: Path, tmp_path: Path) -> None:
    shrink(encoder_folder, tmp_path / "small")
    [path] = (tmp_path / "small").rglob(ROUNDED_WEIGHTS)
    weights = load_rounded(path)
    save_rounded({name: w for name, w in weights.items() if "layer.0" not in name}, path)
    with pytest.raises(FormatError, match=r"lacks \d+ of the weights"):
        SparseEncoder.load(tmp_path / "small").encode_documents(["the virus"])


def test_what_cannot_be_shrunk_leaves_nothing_behind(encoder_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    with pytest.raises(ConflictError, match="exists already"):
        shrink(encoder_folder, tmp_path / "kept")
    with pytest.raises(NotFoundError, match="no encoder folder"):
        shrink(tmp_path / "nowhere", tmp_path / "out")
    query_side = tmp_path / "kept" / "queries"
    SparseEncoder.load(encoder_folder).save_for_search(query_side)
    with pytest.raises(UsageError, match="no masked language model"):
        shrink(query_side, tmp_path / "out")
    assert list(tmp_path.iterdir()) == [tmp_path / "kept"]


def test_the_command_tells_sizes_and_differences(
    encoder_folder: Path,
    texts: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text(
        "".join(json.dumps({"_id": str(i), "text": text}) + "\n" for i, text in enumerate(texts))
    )
    command = ["lexpert", "train", "shrink", str(encoder_folder)]
    monkeypatch.setattr(sys, "argv", [*command, str(tmp_path / "a"), "--check", str(tmp_path), "--json"])
    with pytest.raises(SystemExit, match="0"):
        lexpert.main()
    told = json.loads(capsys.readouterr().out)
    assert told["bytes_after"] == sum(path.stat().st_size for path in files_of(tmp_path / "a"))
    assert told["check"]["documents"] == len(texts)
    assert 0.9 < told["check"]["lowest_cosine"] <= told["check"]["mean_cosine"] <= 1
    options = ["--check", str(corpus), "--documents", "2", "--word-bits", "4"]
    monkeypatch.setattr(sys, "argv", [*command, str(tmp_path / "b"), *options])
    with pytest.raises(SystemExit, match="0"):
        lexpert.main()
    out = capsys.readouterr().out
    assert "bytes before" in out
    assert "on 2 documents: cosine" in out
    monkeypatch.setattr(sys, "argv", [*command, str(tmp_path / "c"), "--word-bits", "5"])
    with pytest.raises(SystemExit, match="2"):
        lexpert.main()
    assert "--word-bits is 8 or 4, not 5" in capsys.readouterr().err

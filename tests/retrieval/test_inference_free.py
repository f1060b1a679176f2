"""Inference-free encoders: queries by a table, without a model, equal to sentence-transformers' routers."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from sentence_transformers import SparseEncoder as Peer
from sentence_transformers.sparse_encoder.modules import (
    Router,
    SparseStaticEmbedding,
    SpladePooling,
    Transformer,
)
from transformers import AutoTokenizer

from retrieval.encoders.encoder import SparseEncoder
from retrieval.encoders.inference_free import InferenceFreeEncoder, inference_free_from
from retrieval.encoders.query_table import read_query_table, read_tokenizer
from retrieval.encoders.sentence_transformers_folder import SpladeRoute, TableRoute
from runtime.activations import SparseActivations
from runtime.errors import FormatError, NotFoundError, UsageError

MakeModel = Callable[..., Path]
REPOSITORY = Path(__file__).resolve().parents[2]


def dense(rows: SparseActivations) -> np.ndarray:
    table = np.zeros((rows.num_rows, rows.num_units), np.float32)
    for row, (units, weights) in enumerate(rows):
        table[row, units] = weights
    return table


def assert_equal_vectors(ours: SparseEncoder, peer: Peer, texts: list[str]) -> None:
    for mine, theirs in (
        (ours.encode_queries(texts), peer.encode_query(texts, convert_to_sparse_tensor=False)),
        (ours.encode_documents(texts), peer.encode_document(texts, convert_to_sparse_tensor=False)),
    ):
        assert mine.nnz > 0
        np.testing.assert_allclose(dense(mine), theirs.cpu().numpy(), rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def weights(make_language_model: MakeModel) -> torch.Tensor:
    """One weight per token, one of them 0."""
    count = len(AutoTokenizer.from_pretrained(make_language_model()))
    table = torch.rand(count, generator=torch.Generator().manual_seed(0)) * 5
    table[20] = 0.0
    return table


@pytest.fixture(scope="module")
def router_folder(
    make_language_model: MakeModel, weights: torch.Tensor, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A router folder as sentence-transformers writes it."""
    folder = tmp_path_factory.mktemp("router")
    model = str(make_language_model())
    table = SparseStaticEmbedding(AutoTokenizer.from_pretrained(model), weights)
    router = Router.for_query_document(
        query_modules=[table],
        document_modules=[
            Transformer(model, transformer_task="fill-mask"),
            SpladePooling("max", "log1p_relu"),
        ],
    )
    peer = Peer(modules=[router], prompts={"query": "how do "}, device="cpu")
    peer.save(str(folder), create_model_card=False)
    return folder


def test_a_router_folder_gives_equal_vectors_here_and_ours_there(
    router_folder: Path, texts: list[str], tmp_path: Path
) -> None:
    ours = SparseEncoder.load(router_folder)
    assert isinstance(ours, InferenceFreeEncoder)
    assert_equal_vectors(ours, Peer(str(router_folder), device="cpu"), texts)
    ours.save(tmp_path / "ours")
    again = SparseEncoder.load(tmp_path / "ours")
    assert again.fingerprint == ours.fingerprint
    assert_equal_vectors(again, Peer(str(tmp_path / "ours"), device="cpu"), texts)
    # Version 5 knows its own module paths alone, and version 6 reads them as well.
    (router,) = json.loads((tmp_path / "ours" / "modules.json").read_text())
    assert router["type"] == "sentence_transformers.models.Router"
    routed = json.loads((tmp_path / "ours" / "router_config.json").read_text())
    assert set(routed["types"].values()) == {
        f"sentence_transformers.sparse_encoder.models.{kind}.{kind}"
        for kind in ("SparseStaticEmbedding", "MLMTransformer", "SpladePooling")
    }
    with pytest.raises(UsageError, match="another folder"):
        again.save(tmp_path / "ours")


def test_long_queries_and_repeated_words_equal_sentence_transformers(router_folder: Path) -> None:
    queries = ["virus " * 100 + "cell", "virus virus cell", "xylophone", "[MASK] virus"]
    ours, peer = SparseEncoder.load(router_folder), Peer(str(router_folder), device="cpu")
    assert_equal_vectors(ours, peer, queries)


@given(
    st.lists(st.lists(st.sampled_from(["virus", "cell", "the", "zebra"]), max_size=9), max_size=4),
    st.booleans(),
)
def test_repeated_words_weigh_more_where_they_are_counted(
    router_folder: Path, words: list[list[str]], is_limited: bool
) -> None:
    limit = 2 if is_limited else None
    query_side = next(router_folder.glob("query_0_*"))
    table = read_query_table(query_side, query_side / "model.safetensors")
    found = table.encode([" ".join(row) for row in words], max_active_dims=limit, counted=True)
    assert len(found) == len(words)
    for (units, weights), row in zip(found, words, strict=True):
        ids = table.tokenizer.encode(" ".join(row), add_special_tokens=False).ids
        expected = {unit: float(table.weights[unit]) * (1 + math.log(ids.count(unit))) for unit in set(ids)}
        heaviest = sorted(
            (unit for unit in expected if expected[unit] > 0), key=lambda unit: (-expected[unit], unit)
        )
        assert units.tolist() == sorted(heaviest[:limit])
        np.testing.assert_allclose(weights, [expected[unit] for unit in units.tolist()], rtol=1e-6)


def test_weights_from_a_json_of_tokens_are_read(
    make_language_model: MakeModel, texts: list[str], tmp_path: Path
) -> None:
    model = make_language_model()
    (tmp_path / "idf.json").write_text(json.dumps({"virus": 4.5, "the": 0.25, "no such token": 3.0}))
    encoder = inference_free_from(SpladeRoute(model), TableRoute(model, tmp_path / "idf.json"))
    queries = encoder.encode_queries(["the virus the virus", "cell"])
    terms = [encoder.vocabulary.term(unit) for unit in queries.units.tolist()]
    assert dict(zip(terms, queries.weights.tolist(), strict=True)) == {"the": 0.25, "virus": 4.5}
    assert queries.indptr.tolist() == [0, 2, 2]
    encoder.save(tmp_path / "saved")
    again = SparseEncoder.load(tmp_path / "saved")
    assert again.fingerprint == encoder.fingerprint
    assert_equal_vectors(again, Peer(str(tmp_path / "saved"), device="cpu"), texts)


def test_vectors_are_well_formed_and_empty_queries_light_up_nothing(
    router_folder: Path, texts: list[str]
) -> None:
    rows = SparseEncoder.load(router_folder).encode_queries([*texts, "", "  "])
    assert rows.weights.dtype == np.float32
    assert (rows.weights > 0).all()
    assert all((np.diff(units) > 0).all() for units, _ in rows)
    assert rows.indptr[-3] == rows.indptr[-1]
    assert SparseEncoder.load(router_folder).encode_queries([]).num_rows == 0


def test_a_limit_of_active_dimensions_keeps_the_heaviest_terms(router_folder: Path) -> None:
    full = SparseEncoder.load(router_folder).encode_queries(["the immune system of the body"])
    cut = SparseEncoder.load(router_folder, max_active_dims=3).encode_queries(
        ["the immune system of the body"]
    )
    assert sorted(cut.weights) == sorted(full.weights)[-3:]
    assert (np.diff(cut.units) > 0).all()


def test_bfloat16_tables_are_read(
    make_language_model: MakeModel, weights: torch.Tensor, tmp_path: Path
) -> None:
    save_file({"weight": weights.bfloat16()}, tmp_path / "model.safetensors")
    table = read_query_table(make_language_model(), tmp_path / "model.safetensors")
    np.testing.assert_array_equal(table.weights, weights.bfloat16().float().numpy())


def test_the_query_side_alone_encodes_queries_without_torch(
    router_folder: Path, texts: list[str], tmp_path: Path
) -> None:
    whole = SparseEncoder.load(router_folder)
    whole.save_for_search(tmp_path / "side")
    program = (
        "import sys, json; from retrieval.encoders.encoder import SparseEncoder\n"
        f"encoder = SparseEncoder.load({str(tmp_path / 'side')!r})\n"
        f"rows = encoder.encode_queries({texts!r})\n"
        "loaded = [name for name in ('torch', 'transformers') if name in sys.modules]\n"
        "print(json.dumps([loaded, encoder.fingerprint, rows.units.tolist(), rows.weights.tolist()]))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=REPOSITORY, check=True
    )
    expected = whole.encode_queries(texts)
    assert json.loads(ran.stdout) == [
        [],
        whole.fingerprint,
        expected.units.tolist(),
        expected.weights.tolist(),
    ]
    assert sum(path.stat().st_size for path in (tmp_path / "side").iterdir()) < 100_000


def test_the_query_side_finds_the_document_model_where_it_was(
    router_folder: Path, texts: list[str], tmp_path: Path
) -> None:
    shutil.copytree(router_folder, tmp_path / "whole")
    whole = SparseEncoder.load(tmp_path / "whole", max_length=9)
    whole.save_for_search(tmp_path / "side")
    expected = whole.encode_documents(texts)
    np.testing.assert_array_equal(
        dense(SparseEncoder.load(tmp_path / "side").encode_documents(texts)), dense(expected)
    )
    (tmp_path / "whole").rename(tmp_path / "moved")
    with pytest.raises(UsageError, match="holds only the query side"):
        SparseEncoder.load(tmp_path / "side").encode_documents(texts)


def test_a_query_side_without_a_source_refuses_documents(
    make_language_model: MakeModel, tmp_path: Path
) -> None:
    (tmp_path / "idf.json").write_text('{"virus": 1.0}')
    made = inference_free_from(
        SpladeRoute(make_language_model()), TableRoute(make_language_model(), tmp_path / "idf.json")
    )
    made.save_query_side(tmp_path / "side")
    side = SparseEncoder.load(tmp_path / "side")
    with pytest.raises(UsageError, match="give the folder of the whole encoder"):
        side.encode_documents(["virus"])
    side.save(tmp_path / "copied")
    assert SparseEncoder.load(tmp_path / "copied").fingerprint == made.fingerprint


def test_a_changed_query_side_is_found(router_folder: Path, tmp_path: Path) -> None:
    SparseEncoder.load(router_folder).save_for_search(tmp_path)
    blob = bytearray((tmp_path / "model.safetensors").read_bytes())
    blob[-1] ^= 1
    (tmp_path / "model.safetensors").write_bytes(bytes(blob))
    with pytest.raises(FormatError, match="not what was saved"):
        SparseEncoder.load(tmp_path)
    own = json.loads((tmp_path / "lexpert_encoder.json").read_text())
    (tmp_path / "lexpert_encoder.json").write_text(json.dumps(own | {"version": 99}))
    with pytest.raises(FormatError, match="version 99"):
        SparseEncoder.load(tmp_path)


def test_damaged_tables_and_tokenizers_are_format_errors(
    make_language_model: MakeModel, weights: torch.Tensor, tmp_path: Path
) -> None:
    model, table = make_language_model(), tmp_path / "model.safetensors"
    table.write_bytes(b"not safetensors")
    with pytest.raises(FormatError, match="cannot be read"):
        read_query_table(model, table)
    save_file({"weight": weights[:7].clone()}, table)
    with pytest.raises(FormatError, match="7 weights for a tokenizer"):
        read_query_table(model, table)
    save_file({"weight": weights * float("nan")}, table)
    with pytest.raises(FormatError, match="finite"):
        read_query_table(model, table)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(FormatError, match="tokenizer"):
        read_query_table(tmp_path, table)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(NotFoundError, match=r"tokenizer\.json is missing"):
        read_query_table(tmp_path, table)


@pytest.mark.parametrize("kind", ["BertTokenizer", "DistilBertTokenizer", "PreTrainedTokenizerFast"])
@pytest.mark.parametrize("configured", [True, False, None])
@pytest.mark.parametrize("written", [True, False])
def test_case_is_folded_as_transformers_does(
    make_language_model: MakeModel, tmp_path: Path, kind: str, configured: bool | None, written: bool
) -> None:
    text = (make_language_model() / "tokenizer.json").read_text()
    lower = '"lowercase": true'
    assert lower in text
    (tmp_path / "tokenizer.json").write_text(text.replace(lower, f'"lowercase": {json.dumps(written)}'))
    config = {"tokenizer_class": kind, "model_max_length": 9, "unk_token": "[UNK]", "pad_token": "[PAD]"}
    if configured is not None:
        config["do_lower_case"] = configured
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    queries = ["Vaccines WORK", "the virus, a cell", "cell " * 20]
    theirs = AutoTokenizer.from_pretrained(tmp_path)(queries, add_special_tokens=False, truncation=True)
    ours = read_tokenizer(tmp_path).encode_batch_fast(queries, add_special_tokens=False)
    assert [encoding.ids for encoding in ours] == theirs["input_ids"]


def test_the_tokenizer_of_bert_cuts_queries_as_transformers_does(shared: Path, tmp_path: Path) -> None:
    source = shared / "models" / "bert-base-uncased.tokenizer.json"
    if not source.is_file():
        pytest.skip("needs the tokenizer of BERT in ../shared/models, which is not there")
    shutil.copy(source, tmp_path / "tokenizer.json")
    config = {"tokenizer_class": "BertTokenizer", "model_max_length": 512, "do_lower_case": True}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    queries = ["What's the weather in NY now?", "naïve 你好 co-operation №5", "word " * 600]
    theirs = AutoTokenizer.from_pretrained(tmp_path)(queries, add_special_tokens=False, truncation=True)
    ours = read_tokenizer(tmp_path).encode_batch_fast(queries, add_special_tokens=False)
    assert [encoding.ids for encoding in ours] == theirs["input_ids"]


def test_pickled_tables_are_refused(router_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(router_folder, tmp_path / "pickled")
    table = next((tmp_path / "pickled").glob("query_0*/model.safetensors"))
    table.rename(table.with_name("pytorch_model.bin"))
    with pytest.raises(FormatError, match="pickled"):
        SparseEncoder.load(tmp_path / "pickled")


def test_vocabularies_of_model_and_table_must_agree(
    make_language_model: MakeModel, weights: torch.Tensor, tmp_path: Path
) -> None:
    save_file({"weight": torch.cat([weights, weights])}, tmp_path / "model.safetensors")
    model = make_language_model()
    encoder = inference_free_from(SpladeRoute(model), TableRoute(model, tmp_path / "model.safetensors"))
    with pytest.raises(FormatError, match="share one vocabulary"):
        encoder.encode_documents(["virus"])

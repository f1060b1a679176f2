"""Encoders that come with the package: found by name, whole, small, and without a network."""

from __future__ import annotations

import json
import shutil
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest

from retrieval import IndexWriter, SparseEncoder, SparseIndex
from retrieval.encoders import catalogue
from retrieval.encoders.fingerprint import ROUNDED_WEIGHTS, tokenizer_files
from retrieval.encoders.sentence_transformers_folder import SpladeRoute, TableRoute
from runtime.errors import FormatError, NotFoundError, UsageError

NAME = "lexpert-mini"
MOST_BYTES = 24_000_000
MOST_TERMS = 200
TEXT = "how do vaccines train the immune system to protect a body against the virus of cells"
DOCUMENTS = [
    {"_id": "vaccines", "title": "Vaccines", "text": "train the immune system"},
    {"_id": "antibiotics", "title": "Antibiotics", "text": "act on bacteria, and not on viruses"},
    {"_id": "python", "title": "json.dumps", "text": "Serialize an object to a string in the JSON format."},
    {
        "_id": "history",
        "title": "The printing press",
        "text": "was brought to Europe in the fifteenth century.",
    },
]


@pytest.fixture
def packaged() -> Path:
    """The folder in the package. Skips while there is none; once it is there, all that follows has to hold."""
    folder = catalogue.PACKAGED[NAME]
    if not folder.exists():
        pytest.skip(f"the weights of {NAME} are not in this checkout yet ({folder})")
    pytest.importorskip("transformers")
    return folder


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a connection was asked for")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def test_the_folder_is_whole_and_small(packaged: Path) -> None:
    files = [path for path in packaged.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= MOST_BYTES
    card = (packaged / "README.md").read_text("utf-8")
    for needed in ("Apache-2.0", "all-MiniLM-L6-v2", "CC BY", "OpenStax", "Wikipedia", "MedQuAD", "ACL"):
        assert needed in card
    assert (packaged / "recipe.yaml").is_file()
    assert json.loads((packaged / "scores.json").read_text("utf-8"))["collections"]


def test_its_vectors_are_those_that_were_measured(packaged: Path) -> None:
    recorded = json.loads((packaged / catalogue.ENCODER_FILE).read_text("utf-8"))["fingerprint"]
    scores = json.loads((packaged / "scores.json").read_text("utf-8"))
    assert SparseEncoder.load(NAME).fingerprint == recorded == scores["encoder_fingerprint"]


def test_it_encodes_without_a_network(packaged: Path, no_network: None) -> None:  # noqa: ARG001
    encoder = SparseEncoder.load(NAME)
    assert encoder.source == NAME
    texts = [f"{document['title']} {document['text']}" for document in DOCUMENTS]
    vectors = encoder.encode_documents([*texts, " ".join(texts * 20), ""])
    sizes = np.diff(vectors.indptr)
    assert sizes.max() <= MOST_TERMS
    assert (sizes[:-1] >= 5).all()
    assert sizes[-1] == 0
    questions = ["how do vaccines work", "turn an object into json", "who invented printing books"]
    scores = np.asarray(encoder.encode_queries(questions).to_dense()) @ np.asarray(vectors.to_dense())[:4].T
    assert scores.argmax(1).tolist() == [0, 2, 3]


def test_damaged_weights_are_told(packaged: Path, tmp_path: Path) -> None:
    shutil.copytree(packaged, tmp_path / "copy")
    [weights] = (tmp_path / "copy").rglob(ROUNDED_WEIGHTS)
    with weights.open("r+b") as file:
        file.seek(-1000, 2)
        byte = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([byte[0] ^ 1]))
    with pytest.raises(FormatError, match="checksum does not fit; get the model again"):
        SparseEncoder.load(tmp_path / "copy").encode_documents(["a text"])
    with weights.open("r+b") as file:
        file.truncate(weights.stat().st_size // 2)
    with pytest.raises(FormatError, match="cannot be read"):
        SparseEncoder.load(tmp_path / "copy").encode_documents(["a text"])


@pytest.fixture
def install(
    make_language_model: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], Path]:
    """Stand-ins for installations of the package, each with a tiny encoder under the name."""
    from safetensors.numpy import save_file

    from retrieval.encoders.inference_free import inference_free_from
    from retrieval.encoders.shrink import shrink

    def install_at(place: str, seed: int = 0) -> Path:
        model, table = make_language_model(seed=seed), tmp_path / "made" / place / "table"
        table.mkdir(parents=True)
        for name, path in tokenizer_files(model).items():
            shutil.copyfile(path, table / name)
        terms = json.loads((model / "config.json").read_text())["vocab_size"]
        save_file({"weight": np.ones(terms, np.float32)}, table / "model.safetensors")
        route = TableRoute(table, table / "model.safetensors")
        inference_free_from(SpladeRoute(model), route).save(table.parent / "whole")
        folder = tmp_path / place / "lexpert_mini"
        shrink(table.parent / "whole", folder)
        monkeypatch.setattr(catalogue, "PACKAGED", MappingProxyType({NAME: folder}))
        return folder

    return install_at


def test_an_index_refers_to_it_by_name(install: Callable[..., Path], tmp_path: Path) -> None:
    here = install("here")
    index = tmp_path / "index"
    with IndexWriter.create(index, encoder=SparseEncoder.load(NAME)) as writer:
        writer.add([{"_id": str(place), "text": word} for place, word in enumerate(TEXT.split())])
    shutil.rmtree(here.parent)  # the index is taken to a machine where the package lies elsewhere
    install("there")
    with SparseIndex.open(index) as opened:
        assert opened.search([TEXT], k=1).ids[0]
    with IndexWriter.open(index) as writer:
        writer.add([{"_id": "more", "text": "the virus"}])
    with SparseIndex.open(index) as opened:
        assert opened.num_documents == len(TEXT.split()) + 1


def test_an_index_goes_on_without_it_until_documents_are_added(
    install: Callable[..., Path], tmp_path: Path
) -> None:
    here = install("here")
    index = tmp_path / "index"
    with IndexWriter.create(index, encoder=SparseEncoder.load(NAME)) as writer:
        writer.add([{"_id": "1", "text": "vaccines train the immune system"}])
    shutil.rmtree(here)
    with SparseIndex.open(index) as opened:
        assert opened.search([TEXT], k=1).ids == [["1"]]
    with pytest.raises(UsageError, match="missing from this installation"), IndexWriter.open(index) as writer:
        writer.add([{"_id": "2", "text": "the virus"}])
    install("newer", seed=1)
    with pytest.raises(UsageError, match="not what it was made from"), IndexWriter.open(index) as writer:
        writer.add([{"_id": "2", "text": "the virus"}])


def test_options_are_taken_as_those_of_a_folder(install: Callable[..., Path]) -> None:
    folder = install("here")
    few, same = (SparseEncoder.load(name, max_active_dims=2) for name in (NAME, folder))
    assert few.fingerprint == same.fingerprint != SparseEncoder.load(NAME).fingerprint
    assert np.diff(few.encode_documents([TEXT]).indptr).tolist() == [2]
    with pytest.raises(UsageError, match="no option 'colour'"):
        SparseEncoder.load(NAME, colour="red")


def test_what_is_missing_is_told_in_one_sentence(
    install: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("here")
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "tokenizers", None)  # as if it were not installed
        with pytest.raises(NotFoundError, match=r"run: pip install 'lexpert\[neural\]'"):
            SparseEncoder.load(NAME)
    monkeypatch.setattr(catalogue, "PACKAGED", MappingProxyType({NAME: tmp_path / "gone"}))
    with pytest.raises(NotFoundError, match=r"missing from this installation .*install lexpert again"):
        SparseEncoder.load(NAME)

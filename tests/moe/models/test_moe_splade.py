"""A SPLADE encoder with experts: loaded, indexed and searched like any other."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from moe.upcycle import upcycle  # noqa: E402
from retrieval import IndexWriter, SparseEncoder, SparseIndex  # noqa: E402
from runtime.errors import FormatError  # noqa: E402
from tests.moe.models.small_encoders import ARCHITECTURES, dense_model, moe_model, save_tokenizer  # noqa: E402

TEXTS = ["w1 w2 w3", "w3 w4", "w5 w6 w7 w8 w9 w10", "w2 w2 w11", "w40 w41 w1"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    """A dense folder and what it is upcycled to, by architecture."""
    made = {}
    for architecture in ARCHITECTURES:
        dense = tmp_path_factory.mktemp(architecture)
        dense_model(architecture).save_pretrained(dense)
        save_tokenizer(dense)
        sparse = dense.with_name(dense.name + "-moe")
        upcycle(dense, sparse, experts=4, top_k=2, layers="every-other", sample=TEXTS)
        made[architecture] = (dense, sparse)
    return made


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_an_upcycled_encoder_gives_the_vectors_of_the_dense_one(
    folders: dict[str, tuple[Path, Path]], architecture: str
) -> None:
    dense, sparse = (SparseEncoder.load(folder) for folder in folders[architecture])
    assert sparse.documents.model.fused  # type: ignore[attr-defined]
    for encode in ("encode_documents", "encode_queries"):
        expected, vectors = getattr(dense, encode)(TEXTS), getattr(sparse, encode)(TEXTS)
        assert expected.nnz > 100
        np.testing.assert_allclose(vectors.to_dense(), expected.to_dense(), atol=2e-5)
    assert sparse.fingerprint != dense.fingerprint


def test_an_index_is_built_and_searched_with_it(
    folders: dict[str, tuple[Path, Path]], tmp_path: Path
) -> None:
    dense, sparse = folders["bert"]
    rankings = []
    for folder in (dense, sparse):
        encoder = SparseEncoder.load(folder)
        with IndexWriter.create(tmp_path / folder.name, encoder=encoder) as writer:
            writer.add({"_id": str(number), "text": text} for number, text in enumerate(TEXTS))
        with SparseIndex.open(tmp_path / folder.name) as index:  # finds the encoder by itself
            hits = index.search(TEXTS, k=3)
            rankings.append(hits)
            vectors = encoder.encode_documents(TEXTS).to_dense()
            expected = encoder.encode_queries(TEXTS).to_dense() @ vectors.T
            for row in range(len(TEXTS)):
                found = [expected[row][int(place)] for place in hits.ids[row]]
                np.testing.assert_allclose(found, np.sort(expected[row])[::-1][:3], rtol=1e-5)
    assert rankings[0].ids == rankings[1].ids
    np.testing.assert_allclose(rankings[0].scores, rankings[1].scores, rtol=1e-4)


def test_a_sparse_mixer_encodes_a_text_alike_in_any_batch(tmp_path: Path) -> None:
    moe_model("sparse_mixer").save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    encoder = SparseEncoder.load(tmp_path)
    together = encoder.encode_documents(TEXTS).to_dense()
    for row, text in enumerate(TEXTS):
        np.testing.assert_allclose(encoder.encode_documents([text]).to_dense()[0], together[row], atol=1e-4)


def test_a_saved_encoder_loads_again(folders: dict[str, tuple[Path, Path]], tmp_path: Path) -> None:
    encoder = SparseEncoder.load(folders["modernbert"][1])
    encoder.save(tmp_path / "saved")
    again = SparseEncoder.load(tmp_path / "saved")
    np.testing.assert_array_equal(
        again.encode_documents(TEXTS).to_dense(), encoder.encode_documents(TEXTS).to_dense()
    )


def test_a_folder_loads_in_a_process_that_knows_nothing_of_experts(
    folders: dict[str, tuple[Path, Path]],
) -> None:
    program = (
        "import sys; from retrieval import SparseEncoder; assert 'moe' not in sys.modules; "
        f"print(SparseEncoder.load({str(folders['bert'][1])!r}).encode_queries(['w1 w2']).nnz)"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) > 0


def test_a_model_type_that_nobody_knows_is_refused(
    folders: dict[str, tuple[Path, Path]], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(folders["bert"][1], tmp_path / "model"))
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(config.replace('"moe_bert"', '"moe_unheard_of"'))
    with pytest.raises(FormatError, match="moe_unheard_of"):
        SparseEncoder.load(folder)

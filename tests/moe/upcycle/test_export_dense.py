"""Experts become a dense checkpoint again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from safetensors import safe_open  # noqa: E402

from moe.upcycle.convert import upcycle  # noqa: E402
from moe.upcycle.export_dense import export_dense  # noqa: E402
from runtime.errors import UsageError  # noqa: E402
from tests.moe.upcycle.conftest import Dense, logits  # noqa: E402


def tensors(folder: Path) -> dict[str, Any]:
    with safe_open(folder / "model.safetensors", "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


@pytest.mark.parametrize(
    ("model_type", "changes", "layers", "comes_back_as"),
    [
        ("llama", {}, "all", "llama"),
        ("llama", {"tie_word_embeddings": True, "head_dim": 16}, "every-other", "llama"),
        ("mistral", {"sliding_window": 8}, "all", "mistral"),
        ("mistral", {"sliding_window": 8}, "last:1", "mistral"),
        ("mistral", {"sliding_window": None}, "all", "llama"),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}, "0", "qwen2"),
        ("qwen3", {"head_dim": 16, "attention_bias": True}, "every-other", "qwen3"),
    ],
)
def test_one_expert_left_is_the_dense_checkpoint(
    model_type: str,
    changes: dict[str, Any],
    layers: str,
    comes_back_as: str,
    dense: Dense,
    tmp_path: Path,
    ids: Any,
) -> None:
    folder = dense(model_type, **changes)
    upcycle(folder, tmp_path / "sparse", experts=1, top_k=1, layers=layers, check=False)
    report = export_dense(tmp_path / "sparse", tmp_path / "back", check=False)
    assert (report.dense_type, report.experts) == (comes_back_as, 1)
    before, after = tensors(folder), tensors(tmp_path / "back")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert torch.equal(logits(folder, ids), logits(tmp_path / "back", ids))


def test_experts_are_averaged(dense: Dense, tmp_path: Path) -> None:
    upcycle(dense("llama"), tmp_path / "sparse", experts=3, method="drop", check=False)
    report = export_dense(tmp_path / "sparse", tmp_path / "mean", average=True)
    assert report.difference is not None
    assert report.difference > 0
    sparse, mean = tensors(tmp_path / "sparse"), tensors(tmp_path / "mean")
    for theirs, ours in (("w1", "gate_proj"), ("w3", "up_proj"), ("w2", "down_proj")):
        experts = [
            sparse[f"model.layers.1.block_sparse_moe.experts.{expert}.{theirs}.weight"] for expert in range(3)
        ]
        torch.testing.assert_close(
            mean[f"model.layers.1.mlp.{ours}.weight"], torch.stack(experts).double().mean(0).float()
        )
    export_dense(tmp_path / "sparse", tmp_path / "second", expert=1, check=False)
    assert torch.equal(
        tensors(tmp_path / "second")["model.layers.0.mlp.up_proj.weight"],
        sparse["model.layers.0.block_sparse_moe.experts.1.w3.weight"],
    )


def test_equal_experts_average_to_themselves(dense: Dense, tmp_path: Path, ids: Any) -> None:
    folder = dense("qwen2", dtype=torch.bfloat16)
    upcycle(folder, tmp_path / "sparse", experts=3, check=False)
    report = export_dense(tmp_path / "sparse", tmp_path / "mean", average=True)
    assert report.difference is not None
    assert report.difference <= 2e-5
    assert torch.equal(logits(folder, ids), logits(tmp_path / "mean", ids))


def test_what_is_no_dense_checkpoint_is_refused(dense: Dense, tmp_path: Path) -> None:
    upcycle(dense("llama"), tmp_path / "sparse", experts=3, layers="every-other", check=False)
    out = tmp_path / "out"
    with pytest.raises(UsageError, match=r"has 3 experts in a layer .* average them \(--average\)"):
        export_dense(tmp_path / "sparse", out)
    with pytest.raises(UsageError, match=r"no expert 3; .* has experts 0 to 2"):
        export_dense(tmp_path / "sparse", out, expert=3)
    with pytest.raises(UsageError, match="give one of the two"):
        export_dense(tmp_path / "sparse", out, expert=0, average=True)
    with pytest.raises(UsageError, match=r"architecture 'llama'; dense checkpoints can be made of mixtral"):
        export_dense(dense("llama"), out)
    upcycle(
        dense("llama"),
        tmp_path / "small",
        method="granular",
        experts=2,
        layers="1",
        check=False,
    )
    with pytest.raises(UsageError, match=r"have 24 neurons and its dense layers 48"):
        export_dense(tmp_path / "small", out, average=True)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "sparse")
    with torch.no_grad():
        model.model.layers[1].mlp.shared_expert.down_proj.weight.fill_(1)
    model.save_pretrained(tmp_path / "shared")
    with pytest.raises(UsageError, match=r"the shared expert of layer 1 .* takes part"):
        export_dense(tmp_path / "shared", out, average=True)
    assert not out.exists()

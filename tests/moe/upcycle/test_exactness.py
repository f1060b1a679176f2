"""What upcycling promises: the sparse model computes what the dense one does, in plain transformers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from safetensors.torch import load_file, save_file  # noqa: E402

from moe.upcycle.convert import upcycle  # noqa: E402
from tests.moe.upcycle.conftest import Dense, logits  # noqa: E402

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}

MEMBERS: dict[str, tuple[str, dict[str, Any], str, str]] = {
    "llama": ("llama", {}, "all", "mixtral"),
    "llama, partly dense": ("llama", {}, "every-other", "qwen2_moe"),
    "llama, tied, wide heads, scaled rope": (
        "llama",
        {"tie_word_embeddings": True, "head_dim": 16, "rope_parameters": LLAMA3_ROPE},
        "all",
        "mixtral",
    ),
    "llama, wide heads, partly dense": ("llama", {"head_dim": 16}, "0,2", "qwen2_moe"),
    "mistral, window": ("mistral", {"sliding_window": 8}, "all", "mixtral"),
    "mistral, window, partly dense": ("mistral", {"sliding_window": 8}, "last:1", "qwen2_moe"),
    "qwen2": ("qwen2", {}, "all", "qwen2_moe"),
    "qwen2, window in some layers": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
        "every-other",
        "qwen2_moe",
    ),
    "qwen3": ("qwen3", {"head_dim": 16}, "all", "qwen3_moe"),
    "qwen3, biases, window, tied": (
        "qwen3",
        {
            "head_dim": 8,
            "attention_bias": True,
            "use_sliding_window": True,
            "sliding_window": 8,
            "max_window_layers": 0,
            "tie_word_embeddings": True,
        },
        "1",
        "qwen3_moe",
    ),
}


@pytest.mark.parametrize("member", MEMBERS)
def test_copy_upcycling_reproduces_dense_logits(member: str, dense: Dense, tmp_path: Path, ids: Any) -> None:
    model_type, changes, layers, sparse_type = MEMBERS[member]
    folder = dense(model_type, **changes)
    report = upcycle(folder, tmp_path / "sparse", experts=4, layers=layers, check=False)
    assert report.sparse_type == sparse_type
    before, after = logits(folder, ids), logits(tmp_path / "sparse", ids)
    assert float((before - after).abs().max()) <= 2e-5
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "sparse", dtype=torch.float32)
    model.save_pretrained(tmp_path / "again")
    assert torch.equal(logits(tmp_path / "again", ids), after)


ATTENTION_MEMBERS: dict[str, tuple[str, dict[str, Any], int, int]] = {
    "a query head for each key": ("llama", {"num_key_value_heads": 4}, 3, 2),
    "two query heads for each key": ("llama", {"head_dim": 16, "tie_word_embeddings": True}, 4, 2),
    "four query heads for one key": ("mistral", {"num_key_value_heads": 1, "sliding_window": None}, 8, 4),
    "six query heads in groups of three": (
        "llama",
        {
            "hidden_size": 48,
            "num_attention_heads": 6,
            "num_key_value_heads": 2,
            "rope_parameters": LLAMA3_ROPE,
        },
        6,
        3,
    ),
}


@pytest.mark.parametrize("member", ATTENTION_MEMBERS)
def test_experts_of_attention_reproduce_dense_logits(
    member: str, dense: Dense, tmp_path: Path, ids: Any
) -> None:
    model_type, changes, experts, top_k = ATTENTION_MEMBERS[member]
    folder = dense(model_type, **changes)
    report = upcycle(folder, tmp_path / "sparse", experts=experts, top_k=top_k, attention=True)
    assert (report.sparse_type, report.exact) == ("jetmoe", True)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "sparse", dtype=torch.float32)
    assert report.sparse_parameters == model.num_parameters()
    model.save_pretrained(tmp_path / "again")
    after = logits(tmp_path / "sparse", ids)
    assert float((logits(folder, ids) - after).abs().max()) <= 2e-5
    assert torch.equal(logits(tmp_path / "again", ids), after)


def test_transformers_writes_the_names_that_we_write(dense: Dense, tmp_path: Path) -> None:
    from safetensors import safe_open

    for model_type in ("llama", "qwen2", "qwen3"):
        upcycle(dense(model_type), tmp_path / model_type, experts=3, check=False)
        model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / model_type)
        model.save_pretrained(tmp_path / f"{model_type} again")
        tensors = []
        for folder in (tmp_path / model_type, tmp_path / f"{model_type} again"):
            with safe_open(folder / "model.safetensors", "pt") as file:
                tensors.append({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
        ours, theirs = tensors
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_without_renormalised_gates_it_is_not_equal(dense: Dense, tmp_path: Path, ids: Any) -> None:
    folder = dense("qwen3")
    upcycle(folder, tmp_path / "sparse", experts=4, check=False)
    config = json.loads((tmp_path / "sparse" / "config.json").read_text())
    assert config["norm_topk_prob"] is True
    (tmp_path / "sparse" / "config.json").write_text(json.dumps(config | {"norm_topk_prob": False}))
    assert float((logits(folder, ids) - logits(tmp_path / "sparse", ids)).abs().max()) > 1e-2


@pytest.mark.parametrize(
    ("options", "exact"),
    [
        ({"method": "noise", "noise": 0.0}, True),
        ({"method": "noise"}, False),
        ({"method": "drop", "drop": 0.0}, True),
        ({"method": "drop"}, False),
        ({"method": "granular", "granularity": 4, "experts": 8, "top_k": 4}, True),
        ({"method": "granular", "granularity": 3, "experts": 9, "top_k": 6}, True),
        ({"method": "granular", "granularity": 4, "experts": 8, "top_k": 2}, False),
        ({"method": "split", "experts": 6, "top_k": 6}, True),
        ({"method": "split", "experts": 6, "top_k": 6, "split_by": "contiguous"}, True),
        ({"method": "split", "experts": 6, "top_k": 3}, False),
    ],
)
def test_methods_are_exact_where_they_say_so(
    options: dict[str, Any], exact: bool, dense: Dense, tmp_path: Path, ids: Any
) -> None:
    folder = dense("llama")
    report = upcycle(folder, tmp_path / "sparse", check=False, **options)
    assert report.exact is exact
    after = logits(tmp_path / "sparse", ids, experts_implementation="eager")
    difference = float((logits(folder, ids) - after).abs().max())
    assert (difference <= 2e-5) is exact


def test_the_check_reports_the_largest_difference(dense: Dense, tmp_path: Path) -> None:
    exact = upcycle(dense("llama"), tmp_path / "copy", experts=2)
    assert exact.exact
    assert exact.difference is not None
    assert exact.difference <= 2e-5
    noisy = upcycle(dense("llama"), tmp_path / "noise", experts=2, method="noise")
    assert noisy.difference is not None
    assert noisy.difference > 1e-3


def test_the_shared_expert_stays_exactly_inert_in_training(dense: Dense, tmp_path: Path, ids: Any) -> None:
    upcycle(dense("llama"), tmp_path / "sparse", layers="every-other", check=False)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "sparse")
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        model(ids, labels=ids).loss.backward()
        optimiser.step()
    shared = {name: values for name, values in model.named_parameters() if "shared_expert" in name}
    assert len(shared) == 4
    assert not any(bool(values.any()) for values in shared.values())


def test_the_seed_alone_decides_what_is_drawn(dense: Dense, tmp_path: Path) -> None:
    names = {"a": 5, "b": 5, "c": 6}
    for name, seed in names.items():
        upcycle(dense("llama"), tmp_path / name, method="drop", experts=3, seed=seed, check=False)
    a, b, c = ((tmp_path / name / "model.safetensors").read_bytes() for name in names)
    assert a == b
    assert a != c


def test_sharded_in_and_out(dense: Dense, tmp_path: Path, ids: Any) -> None:
    folder = dense("llama", shard="20KB", vocab_size=4096)
    assert len(list(folder.glob("model-*.safetensors"))) > 3
    report = upcycle(folder, tmp_path / "sparse", experts=24, shard_bytes=1 << 20, check=False)
    assert len(list((tmp_path / "sparse").glob("model-*.safetensors"))) > 1
    index = json.loads((tmp_path / "sparse" / "model.safetensors.index.json").read_text())
    assert index["metadata"] == {
        "total_parameters": report.sparse_parameters,
        "total_size": 4 * report.sparse_parameters,
    }
    assert float((logits(folder, ids) - logits(tmp_path / "sparse", ids)).abs().max()) <= 2e-5


def test_a_checkpoint_in_bfloat16_stays_in_bfloat16(dense: Dense, tmp_path: Path) -> None:
    folder = dense("llama", dtype=torch.bfloat16)
    report = upcycle(folder, tmp_path / "sparse", method="granular", granularity=4, experts=8, top_k=4)
    assert report.exact
    assert report.difference is not None
    assert report.difference <= 2e-5
    config = json.loads((tmp_path / "sparse" / "config.json").read_text())
    assert config["dtype"] == "bfloat16"
    odd = upcycle(folder, tmp_path / "odd", method="granular", granularity=3, experts=3, top_k=3, check=False)
    assert not odd.exact  # three times a bfloat16 is no bfloat16


@pytest.mark.parametrize(
    ("narrow", "options"),
    [
        ("up_proj", {}),
        ("down_proj", {"method": "granular", "granularity": 3, "experts": 6, "top_k": 3}),
        ("down_proj", {"method": "split", "experts": 6, "top_k": 6}),
        ("v_proj", {"attention": True}),
        ("o_proj", {"attention": True}),
    ],
)
@pytest.mark.parametrize("dtypes", [("float32", "bfloat16"), ("float16", "bfloat16"), ("float64", "float32")])
def test_a_block_of_mixed_dtypes_is_not_rounded(
    narrow: str,
    options: dict[str, Any],
    dtypes: tuple[str, str],
    dense: Dense,
    tmp_path: Path,
) -> None:
    of_most, of_narrow = (getattr(torch, dtype) for dtype in dtypes)
    folder = Path(shutil.copytree(dense("llama"), tmp_path / "dense"))
    file = folder / "model.safetensors"
    weights = {
        name: weight.to(of_narrow if narrow in name else of_most) for name, weight in load_file(file).items()
    }
    save_file(weights, file, {"format": "pt"})
    report = upcycle(folder, tmp_path / "out", **options)
    assert report.exact
    assert report.difference is not None
    assert report.difference <= 2e-5
    if not options:
        made = load_file(tmp_path / "out" / "model.safetensors")
        for part, name in (("gate", "w1"), ("down", "w2"), ("up", "w3")):
            written = made[f"model.layers.1.block_sparse_moe.experts.5.{name}.weight"]
            assert written.dtype == torch.promote_types(of_most, of_narrow)
            assert torch.equal(written, weights[f"model.layers.1.mlp.{part}_proj.weight"].to(written.dtype))


def test_the_package_can_be_called(dense: Dense, tmp_path: Path) -> None:
    import moe

    for name in ("first", "second"):
        report = moe.upcycle(dense("llama"), tmp_path / name, experts=2, top_k=1, check=False)
        assert "top-k of 2 or more" in report.notes[0]
    from moe import upcycle as called

    called(dense("llama"), tmp_path / "third", experts=2, check=False)
    assert (tmp_path / "third" / "config.json").exists()

"""Bad input gets one clear sentence, and leaves nothing behind."""

from __future__ import annotations

import json
import resource
import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from safetensors import safe_open  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

from moe.upcycle.convert import upcycle  # noqa: E402
from runtime.errors import ConflictError, FormatError, LexpertError, NotFoundError, UsageError  # noqa: E402
from tests.moe.upcycle.conftest import Dense  # noqa: E402


@pytest.fixture
def folder(dense: Dense, tmp_path: Path) -> Path:
    """A copy that may be damaged."""
    return Path(shutil.copytree(dense("llama"), tmp_path / "dense"))


def refused(folder: Path, error: type[LexpertError], match: str, **options: Any) -> None:
    out = folder.parent / "out"
    with pytest.raises(error, match=match):
        upcycle(folder, out, **options)
    assert not out.exists()
    assert not out.with_name("out.partial").exists()


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def change_weights(folder: Path, *, remove: str | None = None, **changes: Any) -> None:
    path = folder / "model.safetensors"
    with safe_open(path, "pt") as file:
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    weights.pop(remove, None)
    save_file(weights | changes, path, {"format": "pt"})


def test_an_unknown_architecture_is_told_the_known_ones(folder: Path) -> None:
    change_config(folder, model_type="gpt2")
    refused(folder, UsageError, r"architecture 'gpt2'; known are .*llama, mistral.*qwen2, qwen3")


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"experts": 4, "top_k": 5}, r"cannot be sent to 5 of 4 experts; choose a top-k from 1 to 4"),
        ({"experts": 0}, r"experts must be at least 1"),
        ({"top_k": 0}, r"cannot be sent to 0 of 8"),
        ({"method": "clone"}, r"no method 'clone'; choose one of copy, noise, drop, granular, split"),
        ({"router": "zero"}, r"no router 'zero'; choose one of random"),
        ({"router": "gates"}, r"router gates does not go with method copy"),
        ({"method": "split", "router": "random"}, r"router random does not go with method split"),
        ({"router": "contributions"}, r"router contributions does not go with method copy"),
        ({"method": "split", "experts": 6, "router": "contributions"}, r"has no tokenizer"),
        ({"split_by": "size"}, r"no split_by 'size'"),
        ({"drop": 1.5}, r"drop is a share from 0 to 1"),
        ({"noise": -1.0}, r"noise must be 0 or more"),
        ({"noise": float("nan")}, r"noise must be 0 or more"),
        ({"granularity": 0}, r"granularity must be at least 1"),
        ({"seed": -1}, r"the seed is -1"),
        ({"seed": 2**32}, r"the seed is 4294967296, but must be a whole number from 0 to 4294967295"),
        ({"layers": "some"}, r"layers 'some' is no choice of layers; give all, every-other"),
        ({"layers": "3"}, r"there is no layer 3; the model has layers 0 to 2"),
        ({"layers": "last:4"}, r"the model has 3 layers; give last:1 to last:3"),
        ({"layers": "last:0"}, r"the model has 3 layers; give last:1 to last:3"),
        ({"layers": "1,1"}, r"names a layer twice"),
        ({"method": "granular", "granularity": 5, "experts": 10}, r"48 neurons .* choose a granularity"),
        ({"method": "granular", "granularity": 3}, r"8 experts do not divide into groups of 3"),
        ({"method": "split", "experts": 7}, r"48 neurons .* choose a number of experts"),
        ({"sample": [""]}, r"a sample text is empty"),
        ({"router": "clusters"}, r"has no tokenizer, which a router that starts from text needs"),
        ({"shard_bytes": 10}, r"a shard must take 1 MiB"),
    ],
)
def test_a_plan_that_cannot_be_is_refused(folder: Path, options: dict[str, Any], match: str) -> None:
    refused(folder, UsageError, match, **options)


def test_a_folder_that_is_no_checkpoint(tmp_path: Path, folder: Path) -> None:
    refused(tmp_path / "nothing", NotFoundError, r"nothing is no folder")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", NotFoundError, r"config\.json is missing")
    (folder / "config.json").write_text("{")
    refused(folder, FormatError, r"config\.json is no valid JSON")
    (folder / "config.json").write_text("{}")
    refused(folder, FormatError, r"has no model_type")


def test_a_folder_without_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    refused(
        folder, NotFoundError, r"has no weights: neither model\.safetensors nor model\.safetensors\.index"
    )
    (folder / "pytorch_model.bin").touch()
    refused(
        folder, FormatError, r"has pytorch_model\.bin .* convert it to safetensors, because opening a pickled"
    )


def test_a_truncated_shard(folder: Path) -> None:
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    for length in (len(whole) - 100, 100, 4, 0):
        path.write_bytes(whole[:length])
        refused(folder, FormatError, r"model\.safetensors is truncated or damaged")


def test_a_missing_shard(dense: Dense, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(dense("llama", shard="20KB", vocab_size=4096), tmp_path / "dense"))
    shard = sorted(folder.glob("model-*.safetensors"))[1]
    shard.unlink()
    refused(folder, NotFoundError, rf"lacks the shard {shard.name}")


def test_a_parameter_without_a_rule_is_named(folder: Path) -> None:
    change_weights(folder, **{"model.layers.0.self_attn.extra.weight": torch.ones(2)})
    refused(
        folder, UsageError, r"no rule says where model\.layers\.0\.self_attn\.extra\.weight goes in mixtral"
    )


def test_a_parameter_that_is_missing_is_named(folder: Path) -> None:
    change_weights(folder, remove="model.layers.1.mlp.up_proj.weight")
    refused(folder, FormatError, r"lacks model\.layers\.1\.mlp\.up_proj\.weight")


def test_a_parameter_of_another_shape_is_named(folder: Path) -> None:
    change_weights(folder, **{"model.layers.1.mlp.up_proj.weight": torch.ones(32, 48)})
    refused(
        folder, FormatError, r"up_proj\.weight has shape \[32, 48\] where the configuration .* \[48, 32\]"
    )


def test_buffers_of_old_checkpoints_are_left_out(folder: Path) -> None:
    change_weights(folder, **{"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)})
    report = upcycle(folder, folder.parent / "out", experts=2)
    assert report.difference is not None
    assert report.difference <= 2e-5


def test_an_activation_that_transformers_does_not_know_is_named(folder: Path) -> None:
    change_config(folder, hidden_act="nope")
    for check in (True, False):
        refused(folder, FormatError, r"config\.json has hidden_act 'nope', which transformers", check=check)


def test_quantised_weights(folder: Path) -> None:
    change_weights(folder, **{"model.norm.weight": torch.ones(32, dtype=torch.int8)})
    refused(folder, FormatError, r"model\.norm\.weight is stored as I8, not in floating point")
    change_config(folder, quantization_config={"quant_method": "gptq"})
    refused(folder, UsageError, r"holds quantised weights")


def test_biases_that_no_architecture_holds_are_refused_unless_zero(dense: Dense, tmp_path: Path) -> None:
    for changes, name in (
        ({"attention_bias": True}, r"self_attn\.o_proj\.bias"),
        ({"mlp_bias": True}, r"mlp\.(gate|up|down)_proj\.bias"),
    ):
        biased = dense("llama", **changes)
        (tmp_path / name[:4]).mkdir()
        folder = Path(shutil.copytree(biased, tmp_path / name[:4] / "dense"))
        refused(folder, UsageError, rf"{name} is not zero and cannot be kept, because")
        with safe_open(folder / "model.safetensors", "pt") as file:
            zeros = {
                each: torch.zeros_like(file.get_tensor(each))
                for each in file.keys()  # noqa: SIM118
                if "o_proj.bias" in each or ("mlp" in each and "bias" in each)
            }
        change_weights(folder, **zeros)
        report = upcycle(folder, folder.parent / "out", experts=2)
        assert report.difference is not None
        assert report.difference <= 2e-5


def test_what_no_architecture_holds_is_refused_with_the_reason(dense: Dense, tmp_path: Path) -> None:
    windows = dense("qwen3", use_sliding_window=True, sliding_window=8, max_window_layers=1)
    with pytest.raises(UsageError, match=r"qwen3_moe has the same attention window in every layer"):
        upcycle(windows, tmp_path / "out")
    with pytest.raises(UsageError, match=r"exactly: qwen2_moe has dense attention"):
        upcycle(dense("qwen2"), tmp_path / "out", attention=True)
    for changes, options, reason in (
        ({}, {"top_k": 1}, r"the 2 query heads of each key here take 2 experts; .* multiples of 2"),
        ({"rms_norm_eps": 1e-5}, {}, r"rms_norm_eps 1e-06 and the checkpoint with 1e-05"),
        ({}, {"layers": "every-other"}, r"jetmoe has experts in every layer"),
    ):
        with pytest.raises(UsageError, match=reason):
            upcycle(dense("llama", **changes), tmp_path / "out", attention=True, **options)  # type: ignore[arg-type]


def test_an_output_folder_that_exists_is_kept(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    with pytest.raises(ConflictError, match="exists already"):
        upcycle(folder, out)
    assert (out / "mine.txt").read_text() == "mine"
    (tmp_path / "other.partial").mkdir()
    (tmp_path / "other.partial" / "mine.txt").touch()
    with pytest.raises(ConflictError, match=r"other\.partial is in the way"):
        upcycle(folder, tmp_path / "other")
    assert (tmp_path / "other.partial" / "mine.txt").exists()


def test_a_file_that_cannot_be_written_is_named_with_the_reason(folder: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 15, hard))
    try:
        refused(
            folder,
            LexpertError,
            r"out\.partial/model\.safetensors could not be written: File too large; allow larger files",
        )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_folder_that_cannot_be_made(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(LexpertError, match=r"file/out\.partial could not be written: Not a directory; check"):
        upcycle(folder, tmp_path / "file" / "out")


def test_a_disk_that_is_too_small(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10, 10, 1000))
    refused(folder, LexpertError, r"needs 0\.00 GB and .* has 0\.00 GB free; free some space")


def test_weights_that_are_not_finite_do_not_pass_the_check(folder: Path) -> None:
    change_weights(folder, **{"model.norm.weight": torch.full((32,), float("nan"))})
    refused(folder, FormatError, r"dense gives outputs that are NaN or infinite on the sample text")


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        (
            {"num_hidden_layers": 2},
            r"has model\.layers\.2\.mlp.* but its configuration has 2 layers only, 0 to 1",
        ),
        ({"num_hidden_layers": 4}, r"lacks model\.layers\.3\."),
        ({"num_attention_heads": 0}, r"config\.json has num_attention_heads 0, which must be 1 or more"),
        (
            {"hidden_size": "x"},
            r"config\.json cannot be understood: .*hidden_size.*: .*expected int, got str",
        ),
    ],
)
def test_a_configuration_that_does_not_fit_is_told_why(
    folder: Path, changes: dict[str, Any], match: str
) -> None:
    change_config(folder, **changes)
    refused(folder, FormatError, match)


def test_more_experts_than_any_disk_holds_are_refused_at_once(folder: Path) -> None:
    refused(folder, LexpertError, r"needs [\d,]+\.\d\d GB and .* free; free some space", experts=10**9)

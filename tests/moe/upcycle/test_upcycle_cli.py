"""``lexpert moe``: what is printed, and exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from typer.testing import CliRunner

import lexpert
from runtime.errors import InputError, NotFoundError, UsageError
from tests.moe.upcycle.conftest import Dense


def run(*arguments: object) -> str:
    result = CliRunner().invoke(lexpert.app, ["moe", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_upcycle_and_back(dense: Dense, tmp_path: Path) -> None:
    sparse, back = tmp_path / "sparse", tmp_path / "back"
    told = run("upcycle", dense("llama"), sparse, "--experts", 4, "--layers", "every-other", "--top-k", 1)
    assert "qwen2_moe with 4 experts of 48 neurons in 1 layers, 1 for each token" in told
    assert "largest difference between dense and sparse outputs" in told
    assert "method copy is exact" in told
    assert "note: the gate of a token's only expert is 1" in told
    report = json.loads(run("export-dense", sparse, back, "--average", "--json"))
    assert report["dense_type"] == "llama"
    assert report["difference"] <= 2e-5


def test_json_and_samples(dense: Dense, tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).write_text("Some words.", "utf-8")
    report = json.loads(
        run(
            "upcycle",
            dense("llama"),
            tmp_path / "out",
            *("--method", "granular", "--granularity", 3, "--experts", 6, "--top-k", 3),
            *("--sample", tmp_path / "a", "--sample", tmp_path / "b", "--json"),
        )
    )
    assert report["exact"] is True
    assert report["difference"] <= 2e-5
    assert report["expert_width"] == 16
    # all but 3 of 6 experts of 3 layers are unused by a token
    assert report["sparse_parameters"] - report["active_parameters"] == 3 * 3 * 3 * 32 * 16
    plan = json.loads((tmp_path / "out" / "upcycling.json").read_text())
    assert plan["granularity"] == 3


def test_errors_are_ours(dense: Dense, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="choose a top-k"):
        run("upcycle", dense("llama"), tmp_path / "out", "--top-k", 9)
    with pytest.raises(NotFoundError, match="text is missing"):
        run("upcycle", dense("llama"), tmp_path / "out", "--sample", tmp_path / "text")
    (tmp_path / "text").write_bytes(b"\xff")
    with pytest.raises(InputError, match="is not UTF-8"):
        run("upcycle", dense("llama"), tmp_path / "out", "--sample", tmp_path / "text")
    (tmp_path / "text").write_bytes(b" \n")
    with pytest.raises(InputError, match="is empty"):
        run("upcycle", dense("llama"), tmp_path / "out", "--sample", tmp_path / "text")


def test_import_llama2c(shared: Path, tmp_path: Path) -> None:
    files = (shared / "models" / "stories260K.bin", shared / "models" / "tok512.bin")
    assert "llama with 5 layers of width 64, 512 tokens" in run("import-llama2c", *files, tmp_path / "out")
    assert (tmp_path / "out" / "tokenizer.json").exists()

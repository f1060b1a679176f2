from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

pytest.importorskip("transformers")

from moe.generation.cli import generate_command
from moe.generation.decoder_folder import DecoderFolder
from runtime.errors import FormatError, NotFoundError, UsageError

app = typer.Typer()
app.command()(generate_command)


def test_experts_of_a_folder_run_on_ours(folder: Path) -> None:
    import torch

    loaded = DecoderFolder.load(folder, dtype="bfloat16", device="cpu")
    assert loaded.model.config._experts_implementation == "lexpert"
    assert loaded.model.dtype == torch.bfloat16


def copied(folder: Path, to: Path, without: str) -> Path:
    return Path(shutil.copytree(folder, to, ignore=shutil.ignore_patterns(without)))


def test_what_is_missing_or_damaged_is_said(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no config"):
        DecoderFolder.load(tmp_path)
    with pytest.raises(NotFoundError, match="no weights"):
        DecoderFolder.load(copied(folder, tmp_path / "1", "*.safetensors"))
    with pytest.raises(NotFoundError, match="no tokenizer"):
        DecoderFolder.load(copied(folder, tmp_path / "2", "tokenizer*"), device="cpu")
    truncated = copied(folder, tmp_path / "3", "nothing") / "model.safetensors"
    truncated.write_bytes(truncated.read_bytes()[:1000])
    with pytest.raises(FormatError, match="cannot be loaded as a decoder"):
        DecoderFolder.load(truncated.parent)
    with pytest.raises(UsageError, match="no dtype 'int3'"):
        DecoderFolder.load(folder, dtype="int3")
    with pytest.raises(UsageError, match="cannot be put on 'abacus'"):
        DecoderFolder.load(folder, device="abacus")


def test_the_command_shows_the_text_and_how_fast_it_came(folder: Path) -> None:
    arguments = [str(folder), "a b", "--max-tokens", "6", "--device", "cpu"]
    shown = CliRunner().invoke(app, arguments, catch_exceptions=False)
    report = json.loads(CliRunner().invoke(app, [*arguments, "--json"], catch_exceptions=False).stdout)
    assert shown.stdout == report["text"] + "\n"
    assert f"{report['tokens']} tokens, " in shown.stderr
    assert set(report) == {
        "text",
        "finish",
        "tokens",
        "prompt_tokens",
        "tokens_per_second",
        "first_token_seconds",
    }


def test_the_command_reads_the_prompt_from_standard_input_and_rounds_experts(folder: Path) -> None:
    arguments = [str(folder), "-", "--max-tokens", "2", "--device", "cpu", "--json", "--bits", "8"]
    result = CliRunner().invoke(app, arguments, input="a b", catch_exceptions=False)
    assert json.loads(result.stdout)["prompt_tokens"] == 3

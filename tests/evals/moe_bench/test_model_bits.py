"""Perplexity by bits is that which `lexpert eval lm` finds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

pytest.importorskip("transformers")
pytest.importorskip("numba")

from evals.moe_bench.model_bits import ModelBits, measure_bits
from lexpert import app
from moe.token_stream import stream_tokens
from runtime.errors import FormatError, NotFoundError, UsageError
from tests.moe.training.conftest import MakeFolder, folder_of, text

__all__ = ["folder_of", "text"]

TINY = [
    *("bench", "moe", "--tokens", "1", "--experts", "4/2", "--dtypes", "bfloat16", "--rounds", "1"),
    *("--width", "32", "--inner", "32", "--threads", "1"),
]


@pytest.fixture(scope="module")
def model(folder_of: MakeFolder) -> Path:
    return folder_of("mixtral", initializer_range=0.5)


def test_perplexity_by_bits_is_that_of_eval_lm(model: Path, text: Path) -> None:
    options = ["--model", str(model), "--text", str(text)]
    found = json.loads(CliRunner().invoke(app, [*TINY, *options, "--json"], catch_exceptions=False).stdout)
    bits = found["perplexity"]
    for name, few in (("float32", []), ("int8", ["--bits", "8"]), ("int4-128", ["--bits", "4"])):
        lm = CliRunner().invoke(app, ["eval", "lm", str(model), str(text), *few, "--json"])
        expected = json.loads(lm.stdout)
        assert bits["perplexity"][name] == pytest.approx(expected["perplexity"], rel=1e-6)
        assert bits["tokens"] == expected["tokens"]
    assert bits["losses"]["float32"] == 0
    # the rows are shorter than either group, so that both round alike
    assert bits["perplexity"]["int4-32"] == bits["perplexity"]["int4-128"] != bits["perplexity"]["int8"]
    shown = CliRunner().invoke(app, [*TINY, *options], catch_exceptions=False).stdout
    assert f"int4-128 {bits['perplexity']['int4-128']:,.3f} ({bits['losses']['int4-128']:+.2%})" in shown
    assert shown.index("geometric mean") < shown.index("perplexity of")


def test_a_long_text_is_read_once_and_up_to_a_number_of_tokens(
    model: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = []

    def counted(paths: Any, tokenizer: Any) -> Any:
        reads.append(paths)
        return stream_tokens(paths, tokenizer)

    monkeypatch.setattr("moe.token_stream.stream_tokens", counted)
    assert measure_bits(model, text, 200).tokens == 199
    assert len(reads) == 1
    refused = CliRunner().invoke(
        app, [*TINY, "--model", str(model), "--text", str(text), "--max-tokens", "1"]
    )
    assert isinstance(refused.exception, UsageError)
    assert "--max-tokens must be at least 2, got 1" in str(refused.exception)


def test_without_a_model_there_is_no_perplexity() -> None:
    assert json.loads(CliRunner().invoke(app, [*TINY, "--json"]).stdout)["perplexity"] is None


def test_a_loss_is_a_share_above_the_model_as_it_is() -> None:
    found = ModelBits("m", "t", "bfloat16", 1, 1, {"bfloat16": 10.0, "int8": 10.5, "int4": 9.0})
    assert found.loss("int8") == pytest.approx(0.05)
    assert found.loss("int4") == pytest.approx(-0.1)


def test_models_without_experts_or_texts_are_refused(
    folder_of: MakeFolder,
    model: Path,
    text: Path,
) -> None:
    with pytest.raises(UsageError, match="has no experts whose weights could be rounded"):
        measure_bits(folder_of("llama"), text)
    with pytest.raises(FormatError, match="is an encoder"):
        measure_bits(folder_of("moe_bert"), text)
    with pytest.raises(NotFoundError, match="missing or no file"):
        measure_bits(model, text.parent / "none.txt")

"""Perplexity: each token once, from what stands in its window."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from evals.language_model import measure_perplexity
from runtime.errors import InputError, UsageError
from tests.moe.training.conftest import VOCABULARY, MakeFolder, folder_of, text, tiny_decoder

__all__ = ["folder_of", "text"]

MODEL = tiny_decoder("mixtral", initializer_range=0.5)


def slow_nats(model: Any, ids: list[int], context: int, stride: int) -> float:
    """Token by token: the window of the first, and those that end `stride` further each time."""
    ends = [min(context, len(ids))]
    while ends[-1] < len(ids):
        ends.append(min(ends[-1] + stride, len(ids)))
    total = 0.0
    for place in range(1, len(ids)):
        end = next(end for end in ends if place < end)
        window = ids[max(0, end - context) : place]
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([window])).logits[0, -1]
        total -= float(logits.log_softmax(0)[ids[place]])
    return total


@settings(max_examples=15)
@given(st.integers(2, 40), st.integers(2, 12), st.data())
def test_windows_predict_each_token_once(length: int, context: int, data: st.DataObject) -> None:
    stride = data.draw(st.integers(1, context - 1))
    ids = np.random.default_rng(length).integers(0, VOCABULARY, length).astype(np.int32)
    found = measure_perplexity(MODEL, ids, 100, context=context, stride=stride, batch_size=3)
    assert found.tokens == length - 1
    assert found.nats == pytest.approx(slow_nats(MODEL, ids.tolist(), context, stride), rel=1e-5)
    assert found.per_token == pytest.approx(math.exp(found.nats / (length - 1)))
    assert found.per_byte == pytest.approx(2**found.bits_per_byte)


def test_one_window_is_what_transformers_computes() -> None:
    ids = torch.arange(20) % 7
    found = measure_perplexity(MODEL, ids.to(torch.int32).numpy(), 1)
    with torch.no_grad():
        loss = MODEL(input_ids=ids[None], labels=ids[None], output_router_logits=False).loss
    assert found.per_token == pytest.approx(math.exp(float(loss)), rel=1e-5)
    assert found.context == 20


def test_what_cannot_be_measured_is_refused() -> None:
    ids = np.arange(10, dtype=np.int32)
    for options, message in (
        ({"context": 33}, "the context is 33, but must be 2 to 32"), ({"context": 1}, "the context is 1"),
        ({"context": 8, "stride": 8}, "the stride is 8, but must be 1 to 7"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=message):
            measure_perplexity(MODEL, ids, 1, **options)
    with pytest.raises(InputError, match="the text has 1 tokens"):
        measure_perplexity(MODEL, ids[:1], 1)
    with pytest.raises(InputError, match="gives id 64, but the model knows 64"):
        measure_perplexity(MODEL, np.array([1, 64], np.int32), 1)


def test_the_command_says_context_and_both_measures(folder_of: MakeFolder, text: Path) -> None:
    import lexpert

    arguments = ["eval", "lm", str(folder_of("mixtral")), str(text), "--context", "16", "--stride", "8"]
    shown = CliRunner().invoke(lexpert.app, arguments)
    assert shown.exit_code == 0, shown.output
    assert "windows of 16 tokens, each token with 8 or more before it" in shown.stdout
    values = json.loads(CliRunner().invoke(lexpert.app, [*arguments, "--json"]).stdout)
    documents = text.read_text().strip().split("\n\n")
    assert values["bytes"] == sum(map(len, documents))
    assert values["tokens"] == sum(len(document.split()) + 1 for document in documents) - 1
    assert values["bits_per_byte"] == pytest.approx(
        math.log2(values["perplexity"]) * values["tokens"] / values["bytes"]
    )
    encoder = CliRunner().invoke(lexpert.app, ["eval", "lm", str(folder_of("moe_bert")), str(text)])
    assert "is an encoder, which predicts no next token" in str(encoder.exception)

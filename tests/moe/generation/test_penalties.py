from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("torch")

import torch

from moe.generation.penalties import Penalties
from runtime.errors import UsageError

ids = st.integers(0, 7)


@given(
    logits=st.lists(st.integers(-8, 8), min_size=8, max_size=8),
    prompt=st.lists(ids, max_size=5),
    generated=st.dictionaries(ids, st.integers(1, 4), max_size=5),
    repetition=st.sampled_from([1.0, 0.5, 2.0]),
    presence=st.sampled_from([0.0, 1.5, -2.0]),
    frequency=st.sampled_from([0.0, 0.5, -1.0]),
    bias=st.dictionaries(ids, st.sampled_from([-100.0, 3.0]), max_size=3),
)
def test_logits_change_as_the_formulas_say(
    logits: list[int],
    prompt: list[int],
    generated: dict[int, int],
    repetition: float,
    presence: float,
    frequency: float,
    bias: dict[int, float],
) -> None:
    penalties = Penalties(repetition, presence, frequency, bias)
    given = torch.tensor(logits, dtype=torch.float32)
    found = penalties.apply(given, prompt, generated)
    for token, logit in enumerate(logits):
        expected = float(logit)
        if token in prompt or token in generated:
            expected = expected / repetition if expected > 0 else expected * repetition
        count = generated.get(token, 0)
        expected -= count * frequency + (count > 0) * presence
        assert found[token].item() == pytest.approx(expected + bias.get(token, 0.0))
    assert given.tolist() == logits
    if penalties.are_none:
        assert torch.equal(found, given)


def test_what_is_no_penalty_is_refused() -> None:
    for wrong in ({"repetition": 0.0}, {"presence": float("nan")}, {"bias": {1: float("inf")}}):
        with pytest.raises(UsageError):
            Penalties(**wrong)  # type: ignore[arg-type]

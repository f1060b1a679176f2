from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from moe.generation.sampling import Sampling
from runtime.errors import InputError, UsageError

transformers = pytest.importorskip("transformers")

logit_lists = st.lists(st.integers(-12, 12), min_size=2, max_size=12).map(
    lambda numbers: torch.tensor(numbers) / 4
)


@given(
    logits=logit_lists,
    temperature=st.sampled_from([0.5, 1.0, 2.0]),
    top_k=st.none() | st.integers(1, 14),
    top_p=st.sampled_from([0.05, 0.3, 0.9, 1.0]),
    min_p=st.sampled_from([0.0, 0.1, 0.6, 1.0]),
)
def test_probabilities_are_those_of_transformers(
    logits: torch.Tensor, temperature: float, top_k: int | None, top_p: float, min_p: float
) -> None:
    # Of equal logits transformers' nucleus keeps any; ours the first. Made distinct, they must agree.
    logits = logits - torch.arange(len(logits)) * 1e-3
    expected = logits[None]
    expected = transformers.TemperatureLogitsWarper(temperature)(None, expected)
    if top_k is not None:
        expected = transformers.TopKLogitsWarper(top_k)(None, expected)
    if top_p < 1:
        expected = transformers.TopPLogitsWarper(top_p)(None, expected)
    if min_p > 0:
        expected = transformers.MinPLogitsWarper(min_p)(None, expected)
    ours = Sampling(temperature, top_k, top_p, min_p).probabilities(logits)
    torch.testing.assert_close(ours, expected[0].softmax(0))


@given(logits=logit_lists)
def test_temperature_0_takes_the_first_of_the_highest(logits: torch.Tensor) -> None:
    sampling = Sampling()
    chosen = sampling.choose(logits, torch.Generator())
    assert chosen == logits.tolist().index(max(logits.tolist()))
    assert sampling.probabilities(logits)[chosen] == 1


def test_a_token_comes_as_often_as_its_probability_says() -> None:
    logits = torch.tensor([0.0, 1.0, 2.0, -5.0])
    random = torch.Generator().manual_seed(0)
    sampling = Sampling(temperature=1.0, top_k=3)
    counts = torch.bincount(torch.tensor([sampling.choose(logits, random) for _ in range(3000)]), minlength=4)
    torch.testing.assert_close(counts / 3000, sampling.probabilities(logits), atol=0.03, rtol=0)
    assert counts[3] == 0


@pytest.mark.parametrize("temperature", [5e-324, 1e-310, 1e-300, 1e-40, 1e-6])
def test_next_to_no_temperature_takes_the_highest(temperature: float) -> None:
    logits = torch.tensor([-math.inf, 0.0, 80.0, 79.0])
    sampling = Sampling(temperature, top_k=3, top_p=0.9)
    assert sampling.probabilities(logits).tolist() == [0, 0, 1, 0]
    assert sampling.choose(logits, torch.Generator()) == 2


def test_a_huge_temperature_levels_all_that_can_be_chosen() -> None:
    for temperature in (1e45, 1e308):
        probabilities = Sampling(temperature).probabilities(torch.tensor([-math.inf, 1.0, 3e38]))
        torch.testing.assert_close(probabilities, torch.tensor([0, 0.5, 0.5]))


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(1.0), Sampling(1e-40)])
@pytest.mark.parametrize("logits", [[0.0, math.inf], [-math.inf, -math.inf]])
def test_infinite_logits_are_refused(sampling: Sampling, logits: list[float]) -> None:
    with pytest.raises(InputError, match="gave infinite logits"):
        sampling.choose(torch.tensor(logits), torch.Generator())


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(1.0)])
def test_nan_is_refused(sampling: Sampling) -> None:
    with pytest.raises(InputError, match="NaN"):
        sampling.choose(torch.tensor([0.0, math.nan]), torch.Generator())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"temperature": -1.0}, "temperature is -1"),
        ({"temperature": math.nan}, "temperature is nan"),
        ({"top_k": 0}, "top-k is 0"),
        ({"top_p": 0.0}, "top-p is 0"),
        ({"top_p": 1.5}, "top-p is 1.5"),
    ],
)
def test_impossible_sampling_is_refused(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Sampling(**arguments)  # type: ignore[arg-type]

from __future__ import annotations

import pytest

pytest.importorskip("transformers")

from moe.generation.sampling import Sampling
from moe.generation.tokens import generate_tokens
from runtime.errors import UsageError
from tests.moe.generation.conftest import tiny_model

PROMPT = [5, 9, 33, 2]


@pytest.mark.parametrize("model_type", ["llama", "qwen3", "mixtral", "qwen3_moe", "olmoe"])
def test_greedy_tokens_are_those_of_transformers(model_type: str) -> None:
    import torch

    model = tiny_model(model_type)
    expected = model.generate(torch.tensor([PROMPT]), do_sample=False, max_new_tokens=12, pad_token_id=0)
    if model_type in ("mixtral", "qwen3_moe", "olmoe"):
        model.set_experts_implementation("lexpert")
    ours = list(generate_tokens(model, PROMPT, max_tokens=12, end_tokens={0}))
    assert ours == expected[0, len(PROMPT) :].tolist()


def test_a_seed_gives_the_same_tokens_and_another_seed_others() -> None:
    model = tiny_model("mixtral")

    def tokens(seed: int) -> list[int]:
        return list(generate_tokens(model, PROMPT, max_tokens=10, sampling=Sampling(2.0), seed=seed))

    assert tokens(1) == tokens(1)
    assert tokens(1) != tokens(2)


def test_an_end_token_is_the_last() -> None:
    model = tiny_model("llama")
    free = list(generate_tokens(model, PROMPT, max_tokens=10))
    assert len(free) == 10
    assert (
        list(generate_tokens(model, PROMPT, max_tokens=10, end_tokens={free[3]}))
        == free[: free.index(free[3]) + 1]
    )


def test_the_context_of_the_model_ends_it() -> None:
    model = tiny_model("llama")
    assert len(list(generate_tokens(model, [1] * 45, max_tokens=100))) == 3
    with pytest.raises(UsageError, match="48 tokens and fills the model's context of 48"):
        generate_tokens(model, [1] * 48, max_tokens=1)
    with pytest.raises(UsageError, match="no tokens"):
        generate_tokens(model, [], max_tokens=1)

"""What comes out of the engine is what transformers' own `generate` gives, whatever else is computed."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("transformers")

from moe.generation.engine.batched_model import BatchedModel
from moe.generation.engine.core import EngineCore
from moe.generation.engine.request import Request
from moe.generation.engine.sequence import Sequence
from moe.generation.engine.settings import EngineSettings
from moe.generation.engine.submitted import Submitted
from moe.generation.penalties import Penalties
from moe.generation.sampling import Sampling
from moe.generation.tokens import generate_tokens
from tests.moe.generation.conftest import VOCABULARY, tiny_model

ARCHITECTURES = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "mixtral", "qwen2_moe", "qwen3_moe", "olmoe")
MOE = ("mixtral", "qwen2_moe", "qwen3_moe", "olmoe")


class Letters:
    """A tokenizer whose ids are letters."""

    def decode(self, ids: list[int], **_: Any) -> str:
        return "".join(chr(0x100 + token) for token in ids)


@cache
def theirs(model_type: str) -> Any:
    return tiny_model(model_type)


@cache
def ours(model_type: str) -> BatchedModel:
    """Of the same weights."""
    model = tiny_model(model_type)
    if model_type in MOE:
        model.set_experts_implementation("lexpert")
    return BatchedModel(model)


def core(model_type: str, *, blocks: int = 64, **options: Any) -> EngineCore:
    """With so many blocks of 4 tokens."""
    model = ours(model_type)
    size = model.cache_bytes_per_token * 4 * blocks
    return EngineCore(model, Letters(), EngineSettings(size, 4, **options))


@cache
def expected(model_type: str, prompt: tuple[int, ...], count: int) -> list[int]:
    import torch

    model = theirs(model_type)
    ids = torch.tensor([prompt])
    most = min(count, 48 - len(prompt))
    done = model.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=most, pad_token_id=0
    )
    tokens: list[int] = done[0, len(prompt) :].tolist()
    return tokens


def nothing(_: list[Sequence]) -> None:
    """For requests that are not cancelled."""


def add(engine: EngineCore, request: Request) -> tuple[list[Sequence], Submitted]:
    made = engine.prepare(request, nothing)
    engine.scheduler.add(made[0])
    return made


def run(engine: EngineCore) -> None:
    for _ in range(2000):
        if engine.step() is None:
            return
    raise AssertionError("the engine does not come to an end")


def tokens(submitted: Submitted) -> list[int]:
    return [event.token for event in submitted if event.token is not None]


PROMPTS = [
    tuple((7 * place + 3 * number) % (VOCABULARY - 1) + 1 for place in range(40)) for number in range(3)
]

arrivals = st.lists(
    st.tuples(
        st.integers(0, 2),  # which text
        st.integers(1, 40),  # so much of it
        st.integers(1, 12),  # tokens to generate
        st.integers(0, 4),  # steps before the next arrives
    ),
    min_size=1,
    max_size=6,
)


@pytest.mark.parametrize("model_type", ARCHITECTURES)
@settings(max_examples=8)
@given(
    arrivals=arrivals,
    blocks=st.sampled_from([12, 16, 64]),
    chunk=st.sampled_from([1, 3, 8, 100]),
    running=st.sampled_from([2, 8]),
    prefix_cache=st.booleans(),
)
def test_greedy_tokens_are_those_of_transformers(
    model_type: str,
    arrivals: list[tuple[int, int, int, int]],
    blocks: int,
    chunk: int,
    running: int,
    prefix_cache: bool,
) -> None:
    engine = core(
        model_type,
        blocks=blocks,
        prompt_tokens=chunk,
        lone_prompt_tokens=2 * chunk,
        max_running=running,
        prefix_cache=prefix_cache,
    )
    asked = []
    for text, length, count, steps in arrivals:
        prompt = PROMPTS[text][:length]
        _, submitted = add(engine, Request(list(prompt), count))
        asked.append((prompt, count, submitted))
        for _ in range(steps):
            engine.step()
    run(engine)
    for prompt, count, submitted in asked:
        assert tokens(submitted) == expected(model_type, prompt, count)
    assert engine.pool.available == engine.pool.num_blocks


def test_sequences_that_do_not_all_fit_take_turns() -> None:
    engine = core("mixtral", blocks=12, prompt_tokens=4)
    asked = [(prompt[:14], add(engine, Request(list(prompt[:14]), 30))[1]) for prompt in PROMPTS]
    run(engine)
    assert engine.scheduler.preempted
    for prompt, submitted in asked:
        assert tokens(submitted) == expected("mixtral", prompt, 30)


def test_what_prompts_share_is_computed_once() -> None:
    engine = core("mixtral")
    prompt = list(PROMPTS[0][:22])
    _, first = add(engine, Request(prompt, 3))
    run(engine)
    _, again = add(engine, Request([*prompt[:18], 9, 9], 3))
    run(engine)
    found = [list(each) for each in (first, again)]
    usages = [each[-1].usage for each in found]
    assert [usage.cached_tokens for usage in usages if usage] == [0, 16]
    assert [event.token for event in found[1]] == expected("mixtral", (*prompt[:18], 9, 9), 3)


def test_choices_of_one_prompt_compute_it_once_and_take_seeds_of_their_own() -> None:
    engine = core("mixtral")
    prompt = list(PROMPTS[1][:13])
    hot = Sampling(2.0)
    _, several = add(engine, Request(prompt, 8, hot, seed=5, choices=3))
    run(engine)
    found = list(several)
    for choice in range(3):
        alone = list(
            generate_tokens(
                theirs("mixtral"), prompt, max_tokens=8, sampling=hot, seed=5 + choice, end_tokens={0}
            )
        )
        assert [event.token for event in found if event.choice == choice] == alone
    cached = [event.usage.cached_tokens for event in found if event.usage is not None]
    assert sorted(cached) == [0, 12, 12]


@settings(max_examples=10)
@given(others=arrivals, place=st.integers(0, 6), seed=st.integers(0, 2**32 - 1))
def test_a_seed_gives_the_same_tokens_whatever_else_is_computed(
    others: list[tuple[int, int, int, int]], place: int, seed: int
) -> None:
    engine = core("olmoe", prompt_tokens=5, blocks=24)
    sampling = Sampling(1.5, top_k=20, top_p=0.9, min_p=0.01)
    prompt = list(PROMPTS[2][:9])
    asked = None
    for number, (text, length, count, steps) in enumerate(others):
        if number == min(place, len(others) - 1):
            _, asked = add(engine, Request(prompt, 10, sampling, seed=seed))
        add(engine, Request(list(PROMPTS[text][:length]), count, Sampling(3.0)))
        for _ in range(steps):
            engine.step()
    run(engine)
    assert asked is not None
    alone = generate_tokens(
        theirs("olmoe"), prompt, max_tokens=10, sampling=sampling, seed=seed, end_tokens={0}
    )
    assert tokens(asked) == list(alone)


def test_penalties_are_those_of_transformers() -> None:
    import torch

    engine = core("llama")
    prompt = list(PROMPTS[0][:10])
    _, submitted = add(engine, Request(prompt, 12, penalties=Penalties(repetition=1.7)))
    run(engine)
    ids = torch.tensor([prompt])
    done = theirs("llama").generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=12,
        pad_token_id=0,
        repetition_penalty=1.7,
    )
    assert tokens(submitted) == done[0, 10:].tolist()

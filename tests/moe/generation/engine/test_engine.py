"""The engine as its users see it: threads, texts, ends and errors."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers")

from moe.generation.decoder_folder import DecoderFolder
from moe.generation.engine import Engine, EngineSettings, Event, QueueFullError, Request, Submitted
from moe.generation.penalties import Penalties
from moe.generation.text import generate_text
from runtime.errors import InputError, LexpertError, UsageError
from tests.moe.generation.conftest import tiny_model

PROMPT = "the quick"
LONG = 38  # tokens that fit behind it


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[Engine]:
    with Engine.open(folder, EngineSettings(1 << 20, 4), device="cpu") as opened:
        yield opened


@pytest.fixture(scope="module")
def loaded(folder: Path) -> DecoderFolder:
    return DecoderFolder.load(folder, device="cpu")


def ids(engine: Engine, text: str = PROMPT) -> list[int]:
    return list(engine.tokenizer(text)["input_ids"])


def ask(engine: Engine, **options: Any) -> list[Event]:
    options = {"max_tokens": 12, "ignore_end": True, **options}
    return list(engine.submit(Request(ids(engine), **options)))


def text_of(events: list[Event]) -> str:
    return "".join(event.text for event in events)


def test_a_text_is_that_of_one_generation_alone(engine: Engine, loaded: DecoderFolder) -> None:
    found = list(engine.submit(Request(ids(engine), 30)))
    alone = generate_text(loaded.model, loaded.tokenizer, PROMPT, max_tokens=30)
    assert text_of(found) == alone.text
    assert [event.token for event in found] == alone.tokens
    assert found[-1].finish == alone.finish
    usage = found[-1].usage
    assert usage is not None
    assert (usage.prompt_tokens, usage.completion_tokens) == (len(ids(engine)), len(alone.tokens))


def test_a_stop_string_ends_a_text_before_it(engine: Engine) -> None:
    free = text_of(ask(engine, max_tokens=20))
    stop = free[7:10]
    found = ask(engine, max_tokens=20, stop=(stop, "not in it"))
    assert found[-1].finish == "stop"
    assert text_of(found) == free[: free.index(stop)]


def test_a_stop_token_is_the_last_and_not_in_the_text(engine: Engine) -> None:
    free = ask(engine)
    tokens = [event.token for event in free]
    found = ask(engine, stop_tokens=frozenset({tokens[5]}))
    assert [event.token for event in found] == tokens[: tokens.index(tokens[5]) + 1]
    assert found[-1].finish == "stop"
    assert text_of(free).startswith(text_of(found))


def test_log_probabilities_are_those_of_the_model(engine: Engine, loaded: DecoderFolder) -> None:
    import torch

    found = ask(engine, max_tokens=5, logprobs=3, penalties=Penalties(bias={7: 1.0}))
    tokens = ids(engine) + [event.token for event in found]
    with torch.inference_mode():
        logits = loaded.model(torch.tensor([tokens])).logits[0]
    for place, event in enumerate(found):
        expected = logits[len(tokens) - len(found) - 1 + place].log_softmax(-1)
        assert event.logprobs is not None
        assert event.logprobs.chosen == pytest.approx(float(expected[event.token]), abs=1e-4)
        assert [token for token, _ in event.logprobs.top] == expected.topk(3).indices.tolist()


def test_a_bias_decides(engine: Engine) -> None:
    assert {event.token for event in ask(engine, penalties=Penalties(bias={9: 100.0}))} == {9}


def test_routing_is_what_the_routers_chose(engine: Engine, loaded: DecoderFolder) -> None:
    import torch

    from moe.stats import RoutingRecorder

    found = ask(engine, max_tokens=6, return_routing=True)
    tokens = ids(engine) + [event.token for event in found]
    with torch.inference_mode(), RoutingRecorder(loaded.model) as recorder:
        loaded.model(torch.tensor([tokens]))
        layers = [units.tolist() for units, _ in recorder.take_experts().values()]
    for place, event in enumerate(found):
        row = len(tokens) - len(found) - 1 + place
        assert event.experts is not None
        assert [set(each) for each in event.experts] == [set(layer[row]) for layer in layers]
    meters = engine.routing.meters(60)
    assert list(meters) == engine.router_layers
    for meter in meters.values():
        assert meter.load.sum() == 2 * meter.num_rows
        assert meter.num_rows >= len(found)


def test_many_threads_get_each_its_own(engine: Engine) -> None:
    alone = {length: ask(engine, max_tokens=length) for length in range(1, 9)}
    found: dict[int, list[Event]] = {}

    def work(length: int) -> None:
        found[length] = ask(engine, max_tokens=length)

    threads = [threading.Thread(target=work, args=(length,)) for length in alone]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for length, events in alone.items():
        assert [event.token for event in found[length]] == [event.token for event in events]


def test_tasks_read_events_as_threads_do(engine: Engine) -> None:
    async def read(length: int) -> list[Event]:
        request = Request(ids(engine), length, ignore_end=True)
        return [event async for event in engine.submit(request)]

    async def both() -> list[list[Event]]:
        return list(await asyncio.gather(read(4), read(9)))

    for found in asyncio.run(both()):
        expected = ask(engine, max_tokens=len(found))
        assert [event.token for event in found] == [event.token for event in expected]


def test_what_is_cancelled_ends_and_gives_its_memory_back(engine: Engine) -> None:
    submitted = engine.submit(Request(ids(engine), LONG, ignore_end=True, choices=3))
    submitted.cancel()
    ends = [event.finish for event in submitted if event.finish is not None]
    assert len(ends) == 3
    assert "cancelled" in ends
    submitted.cancel()
    assert len(ask(engine)) == 12
    assert engine.state().held_blocks == 0


def test_times_come_in_their_order(engine: Engine) -> None:
    submitted = engine.submit(Request(ids(engine), 3, ignore_end=True))
    found = list(submitted)
    times = submitted.timings
    assert times.submitted <= times.started <= times.first_token <= times.finished == found[-1].at
    state = engine.state()
    assert state.running == state.waiting == 0
    assert 0 < state.step_seconds.sum < 600
    for histogram in (state.step_seconds, state.step_sequences, state.step_prompt_tokens):
        assert sum(histogram.counts) == state.steps
    assert state.step_sequences.sum >= state.generated_tokens - state.steps


def test_what_cannot_be_honoured_is_refused(engine: Engine) -> None:
    for request, message in (
        (Request([1] * 48), "the prompt has 48 tokens, but with what follows at most 48 fit"),
        (Request([64]), "the prompt has the id 64, but ids are 0 to 63"),
        (Request([1], penalties=Penalties(bias={-1: 1.0})), "the logit bias has the id -1"),
    ):
        with pytest.raises(UsageError, match=message):
            engine.submit(request)
    with pytest.raises(UsageError, match="no tokens"):
        Request([])
    with pytest.raises(UsageError, match="stop string is empty"):
        Request([1], stop=("",))


def test_a_full_queue_refuses_and_a_closed_engine_ends_all(folder: Path) -> None:
    engine = Engine.open(folder, EngineSettings(1 << 20, 4, max_running=1, max_waiting=4), device="cpu")
    request = Request(ids(engine), LONG, ignore_end=True)
    submitted: list[Submitted] = []

    def fill() -> None:
        for _ in range(1000):
            submitted.append(engine.submit(request))  # noqa: PERF401 - what came before the error counts

    with pytest.raises(QueueFullError, match="at most 4 may"):
        fill()
    engine.close()
    errors = []
    for each in submitted:
        try:
            assert list(each)[-1].finish == "length"
        except LexpertError as error:
            errors.append(str(error))
    assert set(errors) == {"the engine is closed; open another one"}
    with pytest.raises(LexpertError, match="closed"):
        engine.submit(request)


def test_damaged_weights_end_a_request_with_an_error(loaded: DecoderFolder) -> None:
    model = tiny_model("llama")
    with Engine(model, loaded.tokenizer, EngineSettings(1 << 20, 4)) as engine:
        model.model.embed_tokens.weight.data[5] = float("nan")
        healthy = engine.submit(Request([7, 8, 9], 10, ignore_end=True))
        with pytest.raises(InputError, match="NaN for the next token"):
            list(engine.submit(Request([7, 5, 9], 10, ignore_end=True)))
        assert len(list(healthy)) == 10


def test_a_model_that_cannot_be_batched_is_refused() -> None:
    import transformers

    config = transformers.MambaConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=2, state_size=4, bos_token_id=0, eos_token_id=0
    )
    with pytest.raises(UsageError, match=r"Mamba.* one by one"):
        Engine(transformers.AutoModelForCausalLM.from_config(config).eval(), None)

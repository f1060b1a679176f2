"""Generation over HTTP, as OpenAI's own client sees it."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

pytest.importorskip("transformers")
pytest.importorskip("openai")

import openai

from moe.generation.decoder_folder import DecoderFolder
from moe.generation.text import generate_text
from serving.api import Api
from serving.configuration import Limits
from tests.moe.generation.conftest import save_tiny_decoder
from tests.serving.generating_server import TEMPLATE, serve

PROMPT = "the quick"
FREE: dict[str, Any] = {"extra_body": {"ignore_eos": True}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("decoder")
    save_tiny_decoder(path, chat_template=TEMPLATE)
    return path


@pytest.fixture(scope="module")
def served(folder: Path) -> Iterator[tuple[Api, str]]:
    with serve(folder, Limits(max_choices=4)) as running:
        yield running


@pytest.fixture(scope="module")
def client(served: tuple[Api, str]) -> Iterator[Any]:
    with openai.OpenAI(base_url=f"{served[1]}/v1", api_key="none", max_retries=0) as made:
        yield made


@pytest.fixture(scope="module")
def loaded(folder: Path) -> DecoderFolder:
    return DecoderFolder.load(folder, device="cpu")


def test_a_completion_is_the_text_of_the_library(client: Any, loaded: DecoderFolder) -> None:
    found = client.completions.create(model="tiny", prompt=PROMPT, max_tokens=20, temperature=0)
    alone = generate_text(loaded.model, loaded.tokenizer, PROMPT, max_tokens=20)
    assert found.choices[0].text == alone.text
    assert found.choices[0].finish_reason == ("length" if alone.finish == "length" else "stop")
    assert found.usage.prompt_tokens == alone.prompt_tokens
    assert found.usage.completion_tokens == len(alone.tokens)
    assert found.object == "text_completion"


def test_a_stream_makes_up_the_same_text(client: Any) -> None:
    options = {"model": "tiny", "prompt": PROMPT, "max_tokens": 20, "temperature": 0, **FREE}
    whole = client.completions.create(**options)
    chunks = list(client.completions.create(**options, stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].text for chunk in chunks[:-1]) == whole.choices[0].text
    assert chunks[-2].choices[0].finish_reason == "length"
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == 20
    assert len({chunk.id for chunk in chunks}) == 1


def test_a_conversation_goes_through_the_template(client: Any, loaded: DecoderFolder) -> None:
    messages = [{"role": "user", "content": "hello"}]
    found = client.chat.completions.create(model="tiny", messages=messages, max_tokens=9, temperature=0)
    alone = generate_text(loaded.model, loaded.tokenizer, "u hello. a ", max_tokens=9)
    assert found.choices[0].message.content == alone.text
    stream = client.chat.completions.create(
        model="tiny", messages=messages, max_tokens=9, temperature=0, stream=True
    )
    deltas = [chunk.choices[0].delta for chunk in stream]
    assert deltas[0].role == "assistant"
    assert "".join(delta.content or "" for delta in deltas) == alone.text


def test_a_seed_and_several_texts(client: Any) -> None:
    options = {"model": "tiny", "max_tokens": 8, "temperature": 1.9, "seed": -3, "n": 2, **FREE}
    first = client.completions.create(prompt=[PROMPT, "fox"], **options)
    again = client.completions.create(prompt=[PROMPT, "fox"], **options)
    texts = [choice.text for choice in first.choices]
    assert [choice.index for choice in first.choices] == [0, 1, 2, 3]
    assert texts == [choice.text for choice in again.choices]
    assert texts[0] != texts[1]
    assert first.usage.completion_tokens == 32
    chunks = client.completions.create(prompt=[PROMPT, "fox"], stream=True, **options)
    streamed = ["", "", "", ""]
    for chunk in chunks:
        for choice in chunk.choices:
            streamed[choice.index] += choice.text
    assert streamed == texts


def test_stop_strings_and_log_probabilities(client: Any) -> None:
    options = {"model": "tiny", "prompt": PROMPT, "max_tokens": 12, "temperature": 0, **FREE}
    free = client.completions.create(**options, logprobs=3)
    text, logprobs = free.choices[0].text, free.choices[0].logprobs
    assert len(logprobs.tokens) == len(logprobs.token_logprobs) == len(logprobs.text_offset) == 12
    assert all(max(top.values()) >= chosen for top, chosen in zip(
        logprobs.top_logprobs, logprobs.token_logprobs, strict=True))  # fmt: skip
    stopped = client.completions.create(**options, stop=[text[4:6], "never"])
    assert stopped.choices[0].text == text[: text.index(text[4:6])]
    assert stopped.choices[0].finish_reason == "stop"
    chat = client.chat.completions.create(
        model="tiny",
        messages=[{"role": "user", "content": "a"}],
        max_tokens=3,
        logprobs=True,
        top_logprobs=2,
        **FREE,
    )
    content = chat.choices[0].logprobs.content
    assert [len(token.top_logprobs) for token in content] == [2, 2, 2]


def test_experts_of_each_token_and_of_the_last_seconds(client: Any, served: tuple[Api, str]) -> None:
    found = client.completions.create(
        model="tiny", prompt=PROMPT, max_tokens=5, extra_body={"ignore_eos": True, "return_routing": True}
    )
    routing = found.choices[0].routing
    assert len(routing["tokens"]) == len(routing["experts"]) == 5
    assert all(len(token) == 2 and all(len(layer) == 2 for layer in token) for token in routing["experts"])
    answer = httpx.get(f"{served[1]}/v1/models/tiny/routing?window_s=30").json()
    assert [sum(layer["load"]) for layer in answer["layers"]] == [
        2 * layer["tokens"] for layer in answer["layers"]
    ]
    assert all(0 <= layer["evenness"] <= 1 for layer in answer["layers"])
    assert httpx.get(f"{served[1]}/v1/models/tiny/routing?window_s=0").status_code == 422


def test_models_are_listed(client: Any) -> None:
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").context == 48


@pytest.mark.parametrize(
    ("path", "body", "status", "param"),
    [
        ("completions", {"prompt": "a"}, 422, "model"),
        ("completions", {"model": "tiny", "prompt": {}}, 422, "prompt"),
        ("completions", {"model": "tiny", "prompt": [64]}, 422, "prompt"),
        ("completions", {"model": "tiny", "prompt": ""}, 422, "prompt"),
        ("completions", {"model": "tiny", "prompt": "a" * 60}, 422, "prompt"),
        ("completions", {"model": "tiny", "prompt": "a", "temperature": 3}, 422, "temperature"),
        ("completions", {"model": "tiny", "prompt": "a", "n": 5}, 422, "n"),
        ("completions", {"model": "tiny", "prompt": "a", "max_tokens": 5000}, 422, "max_tokens"),
        ("completions", {"model": "tiny", "prompt": "a", "best_of": 2}, 422, "best_of"),
        ("completions", {"model": "tiny", "prompt": "a", "stop": ""}, 422, "stop.0"),
        ("completions", {"model": "tiny", "prompt": "a", "logit_bias": {"x": 1}}, 422, "logit_bias"),
        ("completions", {"model": "none", "prompt": "a"}, 404, "model"),
        ("chat/completions", {"model": "tiny", "messages": []}, 422, "messages"),
        ("chat/completions", {"model": "tiny", "messages": [{"role": "user"}]}, 422, None),
    ],
)
def test_what_cannot_be_honoured_is_refused(
    served: tuple[Api, str], path: str, body: dict[str, Any], status: int, param: str | None
) -> None:
    for stream in (False, True):
        response = httpx.post(f"{served[1]}/v1/{path}", json={**body, "stream": stream})
        assert response.status_code == status, response.text
        error = response.json()["error"]
        assert param is None or error["param"] == param


def test_a_client_that_goes_ends_its_generation(served: tuple[Api, str]) -> None:
    api, url = served
    engine = api.state.generators["tiny"].engine  # type: ignore[attr-defined]
    port = int(url.rsplit(":", 1)[1])
    for stream in (True, False):
        body = json.dumps(
            {"model": "tiny", "prompt": "a", "max_tokens": 46, "ignore_eos": True, "stream": stream, "n": 4}
        ).encode()
        before = engine.state()
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(
                b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
                b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
            )
            while engine.state().generated_tokens == before.generated_tokens:
                time.sleep(0.001)
        while (state := engine.state()).running or state.waiting:
            time.sleep(0.001)
        assert state.held_blocks == 0


def test_metrics_say_what_the_engine_does(served: tuple[Api, str], client: Any) -> None:
    pytest.importorskip("prometheus_client")
    from prometheus_client.parser import text_string_to_metric_families

    client.completions.create(model="tiny", prompt=PROMPT, max_tokens=3, **FREE)
    families = text_string_to_metric_families(httpx.get(f"{served[1]}/metrics").text)
    found = {
        sample.name.removeprefix("lexpert_generation_"): sample.value
        for family in families
        for sample in family.samples
        if sample.labels.get("model") == "tiny"
    }
    state = served[0].state.generators["tiny"].engine.state()  # type: ignore[attr-defined]
    assert found["up"] == 1
    assert found["running"] == found["waiting"] == 0
    assert found["generated_tokens_total"] == state.generated_tokens >= 3
    assert found["prompt_tokens_total"] == state.prompt_tokens >= found["cached_tokens_total"]
    assert found["steps_total"] == state.steps >= 1
    assert found["step_seconds_count"] == found["step_sequences_count"] == state.steps
    assert 0 < found["step_seconds_sum"] < 600
    assert found["step_sequences_sum"] + found["step_prompt_tokens_sum"] >= state.generated_tokens


def test_answers_are_as_described(served: tuple[Api, str]) -> None:
    from serving.answer_models import ChatCompletionBody, CompletionBody, ModelBody, ModelList, RoutingBody

    url = f"{served[1]}/v1"
    body = {"model": "tiny", "max_tokens": 3, "ignore_eos": True, "return_routing": True}
    texts = httpx.post(f"{url}/completions", json={**body, "prompt": PROMPT, "logprobs": 2, "n": 2})
    assert len(CompletionBody.model_validate_json(texts.content).choices) == 2
    messages = [{"role": "user", "content": PROMPT}]
    chat = httpx.post(f"{url}/chat/completions", json={**body, "messages": messages, "logprobs": True})
    assert ChatCompletionBody.model_validate_json(chat.content).usage.completion_tokens == 3
    assert ModelList.model_validate_json(httpx.get(f"{url}/models").content).data[0].id == "tiny"
    assert ModelBody.model_validate_json(httpx.get(f"{url}/models/tiny").content).id == "tiny"
    assert RoutingBody.model_validate_json(httpx.get(f"{url}/models/tiny/routing").content).model == "tiny"

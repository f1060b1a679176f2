"""Answers with citations over a real socket."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

pytest.importorskip("transformers")

from moe.generation.decoder_folder import DecoderFolder
from moe.generation.engine import QueueFullError
from moe.generation.text import generate_text
from retrieval import SparseIndex
from serving.answer_models import CitedAnswerBody
from serving.citation_filter import CitationFilter
from serving.configuration import Limits, ServerConfiguration
from serving.generators import Generators
from serving.grounded_prompt import Passage, entry, prompt_text
from tests.moe.generation.conftest import save_tiny_decoder
from tests.serving.generating_server import TEMPLATE
from tests.serving.scripted_generator import ScriptedGenerator
from tests.serving.socket_server import serve

QUERY = "json file"


@contextmanager
def serving(index: Path, model: Path, scripted: ScriptedGenerator | None) -> Iterator[httpx.Client]:
    configuration = ServerConfiguration(
        indexes={"docs": index}, models={"tiny": model}, port=0, limits=Limits(max_new_tokens=600)
    )
    generators = None if scripted is None else Generators({"tiny": model}, lambda *_: scripted)
    with serve(configuration, generators) as client:
        client.timeout = 60
        yield client


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("decoder")
    save_tiny_decoder(path, chat_template=TEMPLATE, context=1024)
    return path


@pytest.fixture(scope="module")
def generator() -> ScriptedGenerator:
    return ScriptedGenerator()


@pytest.fixture(scope="module")
def running(index_folder: Path, folder: Path, generator: ScriptedGenerator) -> Iterator[httpx.Client]:
    with serving(index_folder, folder, generator) as client:
        yield client


@pytest.fixture
def client(running: httpx.Client, generator: ScriptedGenerator) -> httpx.Client:
    generator.pieces, generator.context, generator.refusal = ("fine",), 4096, None
    generator.asked.clear()
    generator.streams.clear()
    return running


def ask(client: httpx.Client, **body: Any) -> httpx.Response:
    return client.post("/v1/answers", json={"index": "docs", "model": "tiny", "query": QUERY, **body})


def events(response: httpx.Response) -> list[tuple[str, Any]]:
    """Name and value of each event."""
    found = []
    for block in response.text.strip().split("\n\n"):
        lines = dict(line.split(": ", 1) for line in block.split("\n"))
        found.append((lines.get("event", "message"), json.loads(lines["data"])))
    return found


def test_sources_are_the_hits_of_a_search(
    client: httpx.Client, index: SparseIndex, generator: ScriptedGenerator
) -> None:
    generator.pieces = ("It says so [", "1", "]", " and more [", "2, 7] [99]", ".")
    answer = ask(client, k=3)
    assert answer.status_code == 200
    body = CitedAnswerBody.model_validate_json(answer.content)
    hits = index.search([QUERY], k=3)
    assert [source.id for source in body.sources] == hits.ids[0]
    assert [source.number for source in body.sources] == [1, 2, 3]
    assert [source.score for source in body.sources] == pytest.approx(hits.scores[0].tolist())
    assert body.answer == "It says so [1] and more [2]."
    assert body.citations == [1, 2]
    assert (body.finish_reason, body.usage.completion_tokens) == ("stop", 6)
    assert body.usage.prompt_tokens == len(generator.prompts[0])


def test_the_prompt_has_the_passages_by_number(
    client: httpx.Client, index: SparseIndex, generator: ScriptedGenerator
) -> None:
    generator.context = 1 << 20
    body = ask(client, k=3, max_prompt_tokens=1 << 19).json()
    assert not any(source["cut"] for source in body["sources"])
    passages = [
        Passage(found["title"], found["text"])
        for found in (index.document(source["id"]) for source in body["sources"])
        if found is not None
    ]
    entries = [entry(number, passage) for number, passage in enumerate(passages, 1)]
    assert generator.prompts == [prompt_text(QUERY, entries) + "\nAnswer:"]


def test_the_prompt_keeps_its_budget(client: httpx.Client, generator: ScriptedGenerator) -> None:
    for options, most in (
        ({}, 4096 - 512),
        ({"max_tokens": 600}, 4096 - 600),
        ({"max_prompt_tokens": 500}, 500),
    ):
        generator.asked.clear()
        body = ask(client, k=50, **options).json()
        assert len(generator.prompts[0]) <= most
        assert len(body["sources"]) >= 1
        assert any(source["cut"] for source in body["sources"])
        assert generator.asked[0].max_tokens == options.get("max_tokens", 512)


def test_a_stream_makes_up_the_same_answer(client: httpx.Client, generator: ScriptedGenerator) -> None:
    generator.pieces = ("So [", "1", "]", " but not ", "[", "8", "]. A", "nd", " [2", "")
    whole = ask(client, k=2).json()
    response = ask(client, k=2, stream=True)
    assert response.headers["content-type"].startswith("text/event-stream")
    found = events(response)
    names = [name for name, _ in found]
    assert names == ["sources", *["token"] * (len(names) - 2), "done"]
    assert found[0][1]["sources"] == whole["sources"]
    assert "".join(value["text"] for name, value in found if name == "token") == whole["answer"]
    assert whole["answer"] == "So [1] but not. And [2"
    assert all(value["text"] for name, value in found if name == "token")
    assert found[-1][1] == {key: whole[key] for key in ("citations", "finish_reason", "usage")}


def test_nothing_is_generated_where_nothing_is_found(
    client: httpx.Client, generator: ScriptedGenerator
) -> None:
    body = CitedAnswerBody.model_validate_json(ask(client, query="zzzznothing").content)
    assert (body.answer, body.sources, body.finish_reason) == ("", [], "no_sources")
    assert [name for name, _ in events(ask(client, query="zzzznothing", stream=True))] == ["sources", "done"]
    assert generator.asked == []


def test_filters_hold(client: httpx.Client) -> None:
    body = ask(client, filter={"field": "module", "eq": "textwrap"}, query="text", k=4).json()
    assert {source["document"]["module"] for source in body["sources"]} == {"textwrap"}


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({"index": "none"}, 404, "index"),
        ({"model": "none"}, 404, "model"),
        ({"k": 0}, 422, "k"),
        ({"k": 101}, 422, "k"),
        ({"max_tokens": 601}, 422, "max_tokens"),
        ({"max_prompt_tokens": 20}, 422, "query"),
        ({"query": "json " * 2000}, 422, "query"),
        ({"filter": {"field": "none", "eq": 1}}, 422, "filter"),
        ({"fuse": {"with": "docs"}}, 422, "fuse.with"),
        ({"temperature": 3.0}, 422, "temperature"),
        ({"n": 2}, 422, "n"),
        ({"min_version": 9}, 409, "min_version"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_errors_name_the_field(
    client: httpx.Client,
    generator: ScriptedGenerator,
    body: dict[str, Any],
    status: int,
    param: str,
    stream: bool,
) -> None:
    answer = ask(client, **body, stream=stream)
    assert (answer.status_code, answer.json()["error"]["param"]) == (status, param), answer.text
    assert answer.headers["content-type"] == "application/json"
    assert generator.asked == []


def test_an_answer_must_leave_room_for_its_prompt(client: httpx.Client, generator: ScriptedGenerator) -> None:
    generator.context = 300
    answer = ask(client, max_tokens=300)
    assert (answer.status_code, answer.json()["error"]["param"]) == (422, "max_tokens")


def test_a_full_queue_is_said(client: httpx.Client, generator: ScriptedGenerator) -> None:
    generator.refusal = QueueFullError("too many wait")
    answer = ask(client)
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "1")


def test_what_fails_in_a_stream_is_an_event(client: httpx.Client, generator: ScriptedGenerator) -> None:
    generator.pieces = ("begun", RuntimeError("secret"))
    response = ask(client, stream=True)
    found = events(response)
    assert [name for name, _ in found] == ["sources", "token", "message"]
    assert found[-1][1]["error"]["code"] == "internal_error"
    assert "secret" not in response.text
    assert generator.streams[-1].is_cancelled
    assert ask(client).status_code == 500


def test_the_text_ends_when_the_client_goes(client: httpx.Client, generator: ScriptedGenerator) -> None:
    generator.pieces = ("begun", "…", "never said")
    body = {"index": "docs", "model": "tiny", "query": QUERY, "stream": True}
    with client.stream("POST", "/v1/answers", json=body) as response:
        seen = ""
        for text in response.iter_text():
            seen += text
            if "begun" in seen:
                break
    ends = time.monotonic() + 10
    while not generator.streams[-1].is_cancelled and time.monotonic() < ends:
        time.sleep(0.01)
    assert generator.streams[-1].is_cancelled


def test_a_real_model_answers(index_folder: Path, folder: Path) -> None:
    with serving(index_folder, folder, None) as client:
        whole = ask(client, max_tokens=24, k=2)
        body = CitedAnswerBody.model_validate_json(whole.content)
        streamed = events(ask(client, max_tokens=24, k=2, stream=True))
        assert "".join(value["text"] for name, value in streamed if name == "token") == body.answer
        assert body.usage.prompt_tokens <= 1000
        # The whole of a short passage is in the prompt, so the text can be generated without the server.
        short = ask(client, max_tokens=24, query="ёлка", k=1).json()
    loaded = DecoderFolder.load(folder, device="cpu")
    text = prompt_text("ёлка", [entry(1, Passage("Ёлка", "зимняя ёлка 🎄 naïve café"))])
    alone = generate_text(loaded.model, loaded.tokenizer, f"u {text}. a ", max_tokens=24)
    checked = CitationFilter(1)
    assert short["answer"] == checked.feed(alone.text) + checked.end()
    assert short["usage"]["prompt_tokens"] == alone.prompt_tokens

"""Generation behind Ray Serve and its proxy: the model in a process of its own."""

from __future__ import annotations

import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx
import pytest

pytest.importorskip("transformers")

from moe.generation.decoder_folder import DecoderFolder
from moe.generation.text import generate_text
from runtime.errors import NotFoundError
from serving.application import running
from serving.configuration import ServerConfiguration
from tests.moe.generation.conftest import save_tiny_decoder

# Not importorskip: Ray must be imported by the server, after its settings are made.
pytestmark = pytest.mark.skipif(find_spec("ray") is None, reason="needs the serving extra")

ASKED: dict[str, Any] = {"model": "tiny", "prompt": "the quick", "max_tokens": 12, "temperature": 0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("decoder")
    save_tiny_decoder(path)
    return path


@pytest.fixture(scope="module")
def client(folder: Path) -> Iterator[httpx.Client]:
    with (
        running(ServerConfiguration(models={"tiny": folder}, port=0)) as server,
        httpx.Client(base_url=server.url, timeout=60) as opened,
    ):
        yield opened


def test_texts_are_those_of_the_library(client: httpx.Client, folder: Path) -> None:
    loaded = DecoderFolder.load(folder, device="cpu")
    alone = generate_text(loaded.model, loaded.tokenizer, "the quick", max_tokens=12)
    found = client.post("/v1/completions", json=ASKED).json()
    assert found["choices"][0]["text"] == alone.text
    streamed = client.post("/v1/completions", json={**ASKED, "stream": True})
    assert streamed.headers["content-type"].startswith("text/event-stream")
    assert streamed.text.endswith("data: [DONE]\n\n")
    assert client.get("/v1/models").json()["data"][0]["context"] == 48


def test_what_the_model_refuses_is_an_answer(client: httpx.Client) -> None:
    for stream in (False, True):
        response = client.post("/v1/completions", json={**ASKED, "prompt": [64], "stream": stream})
        assert response.status_code == 422
        assert response.json()["error"]["param"] == "prompt"
    assert client.post("/v1/chat/completions", json={"model": "tiny", "messages": []}).status_code == 422


def test_metrics_have_the_state_of_the_other_process(client: httpx.Client) -> None:
    client.post("/v1/completions", json=ASKED)
    lines = client.get("/metrics").text.splitlines()
    values = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    assert float(values['lexpert_generation_up{model="tiny"}']) == 1
    assert float(values['lexpert_generation_steps_total{model="tiny"}']) >= 1
    assert float(values['lexpert_generation_step_seconds_sum{model="tiny"}']) > 0
    assert client.get("/docs").status_code == client.get("/openapi.json").status_code == 200


def test_a_client_that_goes_ends_its_generation(client: httpx.Client) -> None:
    def tokens() -> int:
        layers = client.get("/v1/models/tiny/routing?window_s=600").json()["layers"]
        return int(layers[0]["tokens"])

    before = tokens()
    body = {**ASKED, "prompt": "a", "max_tokens": 46, "n": 16, "ignore_eos": True, "stream": True}
    with client.stream("POST", "/v1/completions", json=body) as response:
        next(response.iter_lines())
    counts = [-1, tokens()]
    while counts[-1] != counts[-2]:  # until nothing is computed any more
        time.sleep(0.2)
        counts.append(tokens())
    assert counts[-1] - before < 16 * 46
    assert client.post("/v1/completions", json=ASKED).status_code == 200


def test_a_folder_without_a_model_is_found_before_anything_starts(tmp_path: Path) -> None:
    configuration = ServerConfiguration(models={"tiny": tmp_path}, port=0)
    with pytest.raises(NotFoundError, match=r"no config\.json"), running(configuration):
        pass

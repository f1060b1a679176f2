"""A real encoder, asked by several requests at once."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("transformers")

from retrieval import IndexWriter, SparseEncoder, SparseIndex
from serving.api import Api
from serving.configuration import ServerConfiguration
from serving.encoding import ServedEncoder
from serving.text_batcher import TextBatcher
from tests.retrieval.conftest import TEXTS, make_language_model  # noqa: F401 - a fixture
from tests.serving.socket_server import serve_api

DIFFERENCE = 1e-4
"""What else is in a batch changes the last digits; the small model's weights go up to about 10."""


@pytest.fixture(scope="module")
def folder(make_language_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    """An index of five texts with a SPLADE encoder."""
    folder = tmp_path_factory.mktemp("together") / "index"
    encoder = SparseEncoder.load(make_language_model())
    with IndexWriter.create(folder, encoder=encoder) as writer:
        writer.add({"_id": str(place), "text": text} for place, text in enumerate(TEXTS))
    return folder


@pytest.fixture(scope="module")
def encoder(folder: Path) -> Iterator[SparseEncoder]:
    with SparseIndex.open(folder) as index:
        yield index.encoder


@pytest.fixture
def server(folder: Path) -> Iterator[tuple[Api, httpx.Client]]:
    configuration = ServerConfiguration(indexes={"docs": folder}, port=0, threads=2)
    api = Api(configuration)
    with serve_api(api) as client:
        yield api, client


def hold(batcher: TextBatcher[object]) -> threading.Event:
    """Keep the encoder busy until what is returned is set."""
    go_on = threading.Event()
    batcher._thread.submit(go_on.wait, 60)
    return go_on


def wait_for(batcher: TextBatcher[object], waiting: int) -> None:
    ends = time.monotonic() + 30
    while batcher.waiting != waiting:
        assert time.monotonic() < ends
        time.sleep(0.001)


requests = st.lists(
    st.tuples(
        st.lists(st.sampled_from([*TEXTS, "", " ", "cell virus"]), min_size=1, max_size=6),
        st.sampled_from(["query", "document"]),
    ),
    max_size=6,
)


@settings(deadline=None, max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(requests)
def test_vectors_are_those_of_each_text_alone(
    encoder: SparseEncoder, requests: list[tuple[list[str], str]]
) -> None:
    batcher = ServedEncoder(encoder).batcher
    go_on = hold(batcher)
    answers = [batcher.submit(texts, role) for texts, role in requests]
    go_on.set()
    for (texts, role), answer in zip(requests, answers, strict=True):
        encode = encoder.encode_queries if role == "query" else encoder.encode_documents
        alone = np.concatenate([encode([text]).to_dense() for text in texts])
        encoded = answer.result(60)
        np.testing.assert_allclose(encoded.rows.to_dense(), alone, rtol=0, atol=DIFFERENCE)
        assert encoded.tokens == encoder.count_tokens(texts)


def test_requests_at_once_are_encoded_together(
    server: tuple[Api, httpx.Client], encoder: SparseEncoder
) -> None:
    api, client = server
    batcher = api.state.catalogue.indexes["docs"].encoder.batcher
    before = list(batcher.batch_texts.counts)
    go_on = hold(batcher)
    with ThreadPoolExecutor(8) as threads:
        asked = [
            threads.submit(client.post, "/v1/encode", json={"model": "docs", "input": TEXTS[place % 5]})
            for place in range(8)
        ]
        wait_for(batcher, 8)
        assert client.get("/health").status_code == 200
        by_vector = client.post("/v1/indexes/docs/search", json={"vector": {"virus": 1.0}})
        assert by_vector.status_code == 200  # needs no encoder
        go_on.set()
        answers = [each.result(60) for each in asked]
    assert sum(batcher.batch_texts.counts) == sum(before) + 1
    for place, answer in enumerate(answers):
        ((units, weights),) = list(encoder.encode_documents([TEXTS[place % 5]]))
        expected = dict(zip(units.tolist(), weights.tolist(), strict=True))
        (found,) = answer.json()["data"]
        weights_of = dict(zip(found["indices"], found["values"], strict=True))
        for unit in expected.keys() | weights_of.keys():
            assert weights_of.get(unit, 0.0) == pytest.approx(expected.get(unit, 0.0), abs=DIFFERENCE)
        assert answer.json()["usage"]["prompt_tokens"] == encoder.count_tokens([TEXTS[place % 5]])


def test_a_client_that_goes_takes_its_texts_out_of_the_queue(server: tuple[Api, httpx.Client]) -> None:
    api, client = server
    batcher = api.state.catalogue.indexes["docs"].encoder.batcher
    go_on = hold(batcher)
    try:
        with pytest.raises(httpx.ReadTimeout):
            client.post(
                "/v1/encode", json={"model": "docs", "input": ["a cell"]}, timeout=httpx.Timeout(30, read=0.5)
            )
        wait_for(batcher, 0)
    finally:
        go_on.set()
    assert client.post("/v1/indexes/docs/search", json={"query": "a cell"}).status_code == 200

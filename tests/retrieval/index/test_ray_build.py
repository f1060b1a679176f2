"""Building on Ray equals building without it, also when workers are killed and when the build itself is."""

from __future__ import annotations

import os
import random
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib.util import find_spec
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import orjson
import pytest

import retrieval.index.merge
from retrieval import SparseIndex
from retrieval.corpus import JsonlCorpus
from retrieval.encoders.bm25 import Bm25Encoder
from retrieval.encoders.encoder import SparseEncoder
from retrieval.index.build import build_index
from retrieval.index.manifest import read_manifest
from retrieval.index.ray_build import build_index_on_ray
from retrieval.index.ray_cluster import ray_cluster
from runtime.errors import ConflictError, InputError, NotFoundError, UsageError

psutil = pytest.importorskip("psutil")
if any(find_spec(name) is None for name in ("ray", "pyarrow", "pandas")):
    pytest.skip("needs lexpert[cluster]", allow_module_level=True)

QUERIES = [f"w{number} w{number * 3}" for number in range(1, 60)]
FIELDS = {"number": "int"}


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    with ray_cluster(None, 2):
        yield


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> JsonlCorpus:
    """Documents of few words, so that scores tie; every 50th id comes twice; blank lines between."""
    generator = random.Random(4)
    path = tmp_path_factory.mktemp("corpus") / "corpus.jsonl"
    with path.open("wb") as file:
        file.write(b"\xef\xbb\xbf")
        for number in range(3000):
            words = " ".join(f"w{int(generator.paretovariate(0.7)) % 900}" for _ in range(number % 9))
            identifier = str(number if number % 50 else number // 2)
            file.write(
                orjson.dumps({"_id": identifier, "title": f"t{number}", "text": words, "number": number})
            )
            file.write(b"\n\n" if number % 70 == 0 else b"\n")
    return JsonlCorpus(path)


@pytest.fixture(scope="module")
def local(corpus: JsonlCorpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("local") / "index"
    build_index(path, Bm25Encoder(), corpus, fields=FIELDS, workers=1)
    return path


def check_equal(one: Path, other: Path, queries: Any = None) -> None:
    with SparseIndex.open(one) as first, SparseIndex.open(other) as second:
        first.verify()
        assert first.num_documents == second.num_documents
        for name in ("fingerprint", "units", "complete", "fields", "store"):
            assert first.stats()[name] == second.stats()[name]
        found, expected = (index.search(queries or QUERIES, k=5000) for index in (first, second))
        assert found.ids == expected.ids
        for mine, theirs in zip(found.scores, expected.scores, strict=True):
            assert mine.tolist() == theirs.tolist()
        for number in range(3000):
            assert first.document(str(number)) == second.document(str(number))
    assert not [path for path in one.iterdir() if path.name.startswith("parts-")]


def test_an_address_without_a_cluster_is_named() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        with (
            pytest.raises(NotFoundError, match=f"there is no Ray cluster at {address}"),
            ray_cluster(address, None),
        ):
            pass


def test_ray_listens_on_loopback_only(cluster: None) -> None:  # noqa: ARG001
    for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
        with suppress(psutil.Error):
            for connection in process.net_connections(kind="inet"):
                if connection.status == psutil.CONN_LISTEN:
                    address = ip_address(connection.laddr.ip)
                    assert (getattr(address, "ipv4_mapped", None) or address).is_loopback


def workers() -> list[Any]:
    """The processes of Ray that do this build's work."""
    found = []
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):  # gone meanwhile
            if "Part" in " ".join(child.cmdline()):
                found.append(child)
    return found


@pytest.mark.usefixtures("cluster")
def test_a_build_on_ray_equals_the_local_one_also_when_its_workers_are_killed(
    corpus: JsonlCorpus, local: Path, tmp_path: Path
) -> None:
    killed: list[int] = []

    def kill(_: int) -> None:
        if len(killed) < 2:
            alive = workers()
            assert alive
            os.kill(alive[-1].pid, signal.SIGKILL)
            killed.append(alive[-1].pid)

    out = tmp_path / "index"
    report = build_index_on_ray(
        out, Bm25Encoder(), corpus, fields=FIELDS, part_bytes=20_000, workers=2, advance=kill
    )
    assert len(killed) == 2
    check_equal(out, local)
    expected = build_index(tmp_path / "again", Bm25Encoder(), corpus, fields=FIELDS, workers=1)
    for name in ("action", "documents", "added", "replaced", "empty"):
        assert getattr(report, name) == getattr(expected, name)
    assert build_index_on_ray(out, Bm25Encoder(), corpus, fields=FIELDS).action == "reused"
    assert build_index(out, Bm25Encoder(), corpus, fields=FIELDS).action == "reused"


@pytest.mark.usefixtures("cluster")
def test_a_build_cut_short_goes_on_with_the_parts_that_are_left(
    corpus: JsonlCorpus, local: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    out = tmp_path / "index"
    with pytest.raises(KeyboardInterrupt):
        build_index_on_ray(
            out, Bm25Encoder(), corpus, fields=FIELDS, part_bytes=20_000, workers=1, advance=interrupt
        )
    with pytest.raises(NotFoundError, match="no committed index"):
        SparseIndex.open(out)
    done = len(list(out.glob("parts-*/counting-*.json")))
    assert done
    # A part whose segment is damaged is done again.
    segment = next(out.glob("parts-*/segments/counting-*"))
    (segment / "posting.rows").write_bytes(b"")
    build_index_on_ray(out, Bm25Encoder(), corpus, fields=FIELDS, part_bytes=20_000, workers=2)
    if done > 1:
        assert "parts were done by an earlier run" in capsys.readouterr().err
    check_equal(out, local)


def test_merges_and_the_calibration_that_are_left_are_done_by_the_next_build(
    corpus: JsonlCorpus, local: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retrieval.index.merge, "TIERED_DOCUMENTS", 1000)
    out = tmp_path / "index"

    def build(**settings: Any) -> str:
        report = build_index_on_ray(out, Bm25Encoder(), corpus, fields=FIELDS, **settings)
        assert (report.documents, report.added) == (read_manifest(local).num_documents, 0)
        return report.action

    build_index(out, Bm25Encoder(), corpus, fields=FIELDS, merge_policy=None)
    assert build(merge_policy=None) == "reused"
    assert [segment.layout for segment in read_manifest(out).segments] == ["windows"]
    assert build(calibrate_queries=QUERIES) == "continued"
    finished = read_manifest(out)
    assert [segment.layout for segment in finished.segments] == ["tiers"]
    assert finished.calibration is not None
    assert finished.calibration.held_back
    assert build() == "reused"
    check_equal(out, local)


@pytest.mark.usefixtures("cluster")
def test_a_fitted_encoder_keeps_its_statistics(corpus: JsonlCorpus, tmp_path: Path) -> None:
    texts = [f"w{number}" for number in range(0, 900, 2)]
    build_index(tmp_path / "local", Bm25Encoder().fit(texts), corpus)
    build_index_on_ray(tmp_path / "index", Bm25Encoder().fit(texts), corpus, part_bytes=50_000)
    check_equal(tmp_path / "index", tmp_path / "local")


@pytest.mark.usefixtures("cluster")
def test_what_is_wrong_with_a_corpus_is_said_as_without_ray(tmp_path: Path) -> None:
    path = tmp_path / "corpus.jsonl"
    path.write_bytes(b'{"_id": "a", "text": "wind"}\n\n{"_id": "b", "text": "wind"}\n{"text": "x"}\n')
    with pytest.raises(InputError, match=r'corpus\.jsonl, line 4: the document has no "_id"'):
        build_index_on_ray(tmp_path / "index", Bm25Encoder(), JsonlCorpus(path), part_bytes=30)
    path.rename(tmp_path / "corpus.jsonl.gz")
    with pytest.raises(UsageError, match="unpack it first"):
        build_index_on_ray(tmp_path / "index", Bm25Encoder(), JsonlCorpus(tmp_path / "corpus.jsonl.gz"))
    with pytest.raises(NotFoundError, match="no committed index"):
        SparseIndex.open(tmp_path / "index")


@pytest.mark.usefixtures("cluster")
def test_a_build_of_something_else_is_refused(corpus: JsonlCorpus, tmp_path: Path) -> None:
    path = tmp_path / "corpus.jsonl"
    path.write_bytes(b'{"_id": "a", "text": "wind"}\n')
    build_index(tmp_path / "index", Bm25Encoder(), JsonlCorpus(path))
    with pytest.raises(ConflictError, match="another corpus"):
        build_index_on_ray(tmp_path / "index", Bm25Encoder(), corpus)


@pytest.mark.usefixtures("cluster")
def test_a_model_encodes_the_same_batches(tmp_path: Path, make_language_model: Callable[..., Path]) -> None:
    torch = pytest.importorskip("torch")
    generator = random.Random(4)
    words = ["the", "virus", "how", "do", "vaccines", "work", "cells", "body", "learns"]
    path = tmp_path / "corpus.jsonl"
    with path.open("wb") as file:
        for number in range(700):
            text = " ".join(generator.choice(words) for _ in range(1 + number % 13))
            file.write(orjson.dumps({"_id": str(number), "text": text}) + b"\n")
    model = make_language_model()
    # A worker has one core, and the sums of a matrix product come in another order on two.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    build_index(tmp_path / "local", SparseEncoder.load(model), JsonlCorpus(path))
    torch.set_num_threads(threads)
    build_index_on_ray(tmp_path / "index", SparseEncoder.load(model), JsonlCorpus(path), part_bytes=9_000)
    check_equal(tmp_path / "index", tmp_path / "local", ["how do vaccines work", "the virus"])

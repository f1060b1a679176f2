"""What the demo prepares and shows before it serves: both encoders in one table, or bm25 and why it is alone."""

from __future__ import annotations

import io
import json
from pathlib import Path
from types import MappingProxyType

import pytest
from rich.console import Console

from evals.collections.python_docs import PythonDocs
from retrieval.encoders import catalogue
from retrieval.encoders.bm25 import Bm25Encoder
from retrieval.index.manifest import MANIFEST_FILE, VERSION
from retrieval.index.sparse_index import SparseIndex
from serving import demo

pytest.importorskip("ir_measures")

MODULE = "calendar.py"
"""A name that the standard library has: files of others in its folder are passed over."""

THINGS = ("apple", "river", "engine", "planet", "letter", "window")
SOURCE = "\n".join(
    f'def {thing}(value):\n    """Return the {thing} that belongs to a value. Every {thing} is made of others."""\n'
    for thing in THINGS
)


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A standard library with one module in Python beside the compiled ones, compared on as a whole."""
    (tmp_path / "library").mkdir()
    (tmp_path / "library" / MODULE).write_text(SOURCE)
    monkeypatch.setattr(demo, "PythonDocs", lambda: PythonDocs(tmp_path / "library"))
    monkeypatch.setattr(demo, "SAMPLE", 1)
    return tmp_path


def shown(prepared: demo.PreparedDemo) -> str:
    console = Console(file=io.StringIO(), width=110)
    demo.show_preparation(prepared, console)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_both_encoders_stand_in_one_table(library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Bm25Encoder().fit(THINGS).save(library / "learned")  # small, and needs no torch
    monkeypatch.setattr(catalogue, "PACKAGED", MappingProxyType({demo.LEARNED: library / "learned"}))
    prepared = demo.prepare(library / "demo")
    systems = ["bm25", demo.LEARNED, f"bm25+{demo.LEARNED}"]
    assert [report.encoder for report in prepared.reports] == systems
    assert prepared.left_out is None
    lines = shown(prepared).splitlines()
    rows = [line.split() for line in lines if line.strip().startswith(("bm25", demo.LEARNED))]
    assert [row[0] for row in rows] == systems
    assert [float(value) for value in rows[0][1:4]] == [
        round(prepared.reports[0].metrics[name], 3) for name in ("nDCG@10", "MRR@10", "R@100")
    ]
    assert "Known-item search in all of them: for" in " ".join(" ".join(lines).split())
    again = demo.prepare(library / "demo")
    assert [report.index.get("action") for report in again.reports] == ["reused", "reused", None]


def test_without_the_learned_encoder_bm25_stands_alone(
    library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalogue, "PACKAGED", MappingProxyType({demo.LEARNED: library / "missing"}))
    prepared = demo.prepare(library / "demo")
    assert [report.encoder for report in prepared.reports] == ["bm25"]
    assert demo.LEARNED not in shown(prepared)
    assert "Known-item search in all of them: for" in " ".join(shown(prepared).split())


def test_a_learned_encoder_that_cannot_be_loaded_is_left_out_with_a_reason(
    library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (library / "broken").mkdir()
    monkeypatch.setattr(catalogue, "PACKAGED", MappingProxyType({demo.LEARNED: library / "broken"}))
    prepared = demo.prepare(library / "demo")
    assert [report.encoder for report in prepared.reports] == ["bm25"]
    text = " ".join(shown(prepared).split())
    assert f"{demo.LEARNED}, a learned encoder, is left out: " in text
    assert "install lexpert again" in text


def test_an_index_of_another_format_or_another_python_is_built_anew(
    library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalogue, "PACKAGED", MappingProxyType({demo.LEARNED: library / "missing"}))
    first = demo.prepare(library / "demo")
    manifest = first.index / MANIFEST_FILE
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "version": VERSION - 1}))
    assert demo.prepare(library / "demo").build.action == "built"
    (library / "library" / MODULE).write_text(SOURCE.replace("apple", "quince"))
    again = demo.prepare(library / "demo")
    assert again.build.action == "built"
    with SparseIndex.open(again.index) as index:
        assert index.search(["quince"], k=1).ids == [["calendar.quince"]]
        assert index.search(["apple"], k=1).ids == [[]]
    assert demo.prepare(library / "demo").build.action == "reused"


def test_a_sample_is_called_one(library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Bm25Encoder().fit(THINGS).save(library / "learned")
    monkeypatch.setattr(catalogue, "PACKAGED", MappingProxyType({demo.LEARNED: library / "learned"}))
    monkeypatch.setattr(demo, "SAMPLE", 2)
    prepared = demo.prepare(library / "demo")
    number = (prepared.build.documents + 1) // 2
    assert f"Known-item search in a sample of {number} of them: for" in shown(prepared)

"""`lexpert index export` and `import`: results, JSON, exit codes, and one sentence for whatever is wrong."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import lexpert

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command line in a folder of its own, which holds an index of two documents."""
    monkeypatch.chdir(tmp_path)

    def command(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["lexpert", *arguments])
        code = 0
        try:
            lexpert.main()
        except SystemExit as ended:
            code = int(ended.code or 0)
        shown = capsys.readouterr()
        assert "Traceback" not in shown.err
        return code, shown.out, shown.err

    Path("corpus.jsonl").write_text('{"_id": "a", "text": "solar wind"}\n{"_id": "b", "text": "wind"}\n')
    assert command("index", "build", "--corpus", "corpus.jsonl", "--out", "idx")[0] == 0
    return command


@pytest.mark.parametrize(
    ("format_", "name"), [("anserini", "v.jsonl.gz"), ("ciff", "v.ciff.gz"), ("bigann", "v.csr")]
)
def test_there_and_back(run: Run, format_: str, name: str) -> None:
    code, out, _ = run("index", "export", "idx", name, "--format", format_)
    assert code == 0
    assert out.startswith(f"wrote {name}: 2 documents, 3 impacts")
    code, out, _ = run("index", "import", name, "--out", "back")
    assert code == 0
    assert f"made back from {format_}: 2 documents" in out
    assert run("index", "verify", "back")[0] == 0
    code, out, _ = run("index", "export", "back", f"again-{name}", "--format", format_, "--json")
    scale = None if format_ == "bigann" else 1.0
    assert {"documents": 2, "postings": 3, "dropped": 0, "empty": 0, "scale": scale}.items() <= json.loads(
        out
    ).items()
    code, out, _ = run("index", "import", name, "--out", "texts", "--encoder", "idx/encoder-000001", "--json")
    assert {"documents": 2, "replaced": 0, "empty": 0, "units": 2}.items() <= json.loads(out).items()
    code, out, _ = run("search", "--index", "texts", "solar", "--json")
    assert [hit["id"] for hit in json.loads(out)["hits"]] == ["a"]


def test_impacts_are_stored_as_asked(run: Run) -> None:
    assert run("index", "export", "idx", "v.csr", "--format", "bigann")[0] == 0
    for options, impacts in (((), "float32"), (("--impacts", "uint8"), "uint8")):
        assert run("index", "import", "v.csr", "--out", impacts, *options)[0] == 0
        assert json.loads(run("index", "stats", impacts, "--json")[1])["impacts"] == impacts
    shown = [line.split(maxsplit=1) for line in run("index", "stats", "uint8")[1].splitlines()]
    assert ["impacts", "uint8"] in shown
    assert ["segments", "1 (1 in windows)"] in shown


def test_impacts_that_round_to_nothing_are_counted(run: Run) -> None:
    code, out, err = run("index", "export", "idx", "v.ciff", "--format", "ciff", "--scale", "0.001")
    assert code == 0
    assert "3 impacts round to 0" in err
    assert "0 impacts, times 0.001 and rounded" in out


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["export", "idx", "v", "--format", "xml"], 2, "the format is xml"),
        (["export", "idx", "corpus.jsonl", "--format", "ciff"], 1, "corpus.jsonl exists"),
        (["export", "nowhere", "v", "--format", "ciff"], 1, "there is no index nowhere"),
        (["export", "idx", "v", "--format", "bigann", "--scale", "2"], 2, "--scale does not go with bigann"),
        (["export", "idx", "v", "--format", "ciff", "--memory", "512"], 2, "--memory does not go with ciff"),
        (["export", "idx", "v", "--format", "lucene", "--memory", "255"], 2, "give --memory 256"),
        (["import", "v.csr", "--out", "back", "--impacts", "int4"], 2, "not as 'int4'"),
        (["export", "idx", "/proc/x/v", "--format", "ciff"], 1, "check the path"),
        (["import", "corpus.jsonl", "--out", "back"], 1, 'corpus.jsonl, line 1: the vector has no "id"'),
        (["import", "idx/manifest.json", "--out", "back", "--format", "ciff"], 1, "is not a CIFF file"),
        (["import", "half.csr", "--out", "back"], 1, "is not a binary CSR file, or is cut short"),
        (["import", "unknown", "--out", "back"], 2, "give --format anserini, ciff, bigann"),
        (["import", "gone", "--out", "back"], 1, "gone is missing"),
        (["import", "corpus.jsonl", "--out", "idx"], 1, "holds an index already"),
        (
            ["import", "corpus.jsonl", "--out", "back", "--encoder", "bm25"],
            2,
            "untrained bm25 has no vocabulary",
        ),
        (
            ["import", "corpus.jsonl", "--out", "back", "--ids", "corpus.jsonl"],
            2,
            "--ids does not go with anserini",
        ),
        (["import", "corpus.jsonl", "--out", "back", "--scale", "0"], 2, "the scale is 0.0"),
    ],
)
def test_bad_input_is_one_sentence(run: Run, arguments: list[str], code: int, sentence: str) -> None:
    Path("v.csr").write_bytes(np.array([1, 1, 1, 0, 1, 0x3F800000 << 32], np.int64).tobytes())
    Path("half.csr").write_bytes(b"\2\0\0\0\0\0\0\0" * 4)
    Path("unknown").write_bytes(b"?")
    found, out, err = run("index", *arguments)
    assert (found, out) == (code, "")
    last = err.strip().splitlines()[-1]
    assert last.startswith("lexpert: ")
    assert sentence in last
    assert not Path("v").exists()
    assert not Path("back/manifest.json").exists()

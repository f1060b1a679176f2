"""`lexpert index`, `search` and `encode`: results, JSON, exit codes, and one sentence for whatever is wrong."""

from __future__ import annotations

import gzip
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

import lexpert
from retrieval.interop.vectors import SparseVectors


class Outcome(NamedTuple):
    code: int
    out: str
    err: str


Run = Callable[..., Outcome]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command line in a folder of its own."""
    monkeypatch.chdir(tmp_path)

    def command(*arguments: str) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["lexpert", *arguments])
        code = 0
        try:
            lexpert.main()
        except SystemExit as ended:
            code = int(ended.code or 0)
        shown = capsys.readouterr()
        assert "Traceback" not in shown.err
        return Outcome(code, shown.out, shown.err)

    return command


@pytest.fixture
def idx(run: Run) -> Run:
    """The same, with an index of four lines."""
    lines = [
        {"_id": "a", "title": "Wind", "text": "solar wind near the earth", "year": 1999},
        {"_id": "b", "text": "wind tunnels", "year": 2005},
        {"_id": "c"},
        {"_id": "b", "text": "wind and rain", "year": 2006},
    ]
    Path("corpus.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    built = run("index", "build", "--corpus", "corpus.jsonl", "--out", "idx", "--field", "year:int")
    assert built.code == 0
    assert "3 documents (1 replaced by a later one of the same id, 1 empty)" in built.out
    return run


def test_every_result_is_there_as_json_alone(idx: Run) -> None:
    Path("more.jsonl").write_text('{"_id": "d", "text": "gale"}\n')
    Path("queries.jsonl").write_text('{"_id": "q1", "text": "wind"}\n{"_id": "q2", "text": "quark"}\n')
    expected = {
        ("index", "build", "--corpus", "corpus.jsonl", "--out", "idx", "--field", "year:int"): {
            "action": "reused"
        },
        ("index", "add", "idx", "--corpus", "more.jsonl"): {"added": 1, "replaced": 0},
        ("index", "delete", "idx", "d", "zzz"): {"deleted": 1, "missing": 1},
        ("index", "merge", "idx"): {"segments": 1},
        ("index", "verify", "idx"): {"ok": True},
        ("index", "stats", "idx"): {"documents": 3, "encoder": "bm25"},
        ("search", "--index", "idx", "wind quark", "--explain"): {"unknown_terms": ["quark"]},
        ("search", "--index", "idx", "--queries", "queries.jsonl", "--run", "out.trec"): {
            "without_results": 1
        },
        ("encode", "--corpus", "corpus.jsonl", "--out", "vectors"): {"rows": 4, "format": "binary"},
        ("encode", "--corpus", "corpus.jsonl", "--out", "v.jsonl", "--format", "anserini"): {"rows": 4},
    }
    for arguments, part in expected.items():
        outcome = idx(*arguments, "--json")
        assert outcome.code == 0, outcome.err
        assert part.items() <= json.loads(outcome.out).items(), arguments
    assert Path("out.trec").read_text().split()[:3] == ["q1", "Q0", "a"]
    assert len(SparseVectors(Path("vectors"))) == 4
    assert json.loads(Path("v.jsonl").read_text().splitlines()[0])["vector"]["wind"] > 0


def test_results_for_people(idx: Run) -> None:
    found = idx(
        "search", "--index", "idx", "wind quark", "--explain", "--filter", '{"field": "year", "lt": 2000}'
    )
    assert found.code == 0
    assert "  1. " in found.out
    assert "Wind" in found.out
    assert "  2. " not in found.out
    assert "not in the index: quark" in found.err
    assert "year (int)" in idx("index", "stats", "idx").out
    assert "no document shares a term" in idx("search", "--index", "idx", "quark").err


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["search", "--index", "idx", "wind", "-k", "0"], 2, "k is 0"),
        (["search", "--index", "idx"], 2, "give either one question"),
        (["search", "--index", "idx", "--queries", "corpus.jsonl"], 2, "go together"),
        (
            ["search", "--index", "idx", "--queries", "corpus.jsonl", "--run", "x", "--explain"],
            2,
            "--explain",
        ),
        (["search", "--index", "idx", "--queries", "corpus.jsonl", "--run", "x"], 1, "query id 'b' twice"),
        (["search", "--index", "idx", "w", "--filter", "{"], 2, "not valid JSON"),
        (["search", "--index", "idx", "w", "--filter", '{"field": ["a"], "eq": 1}'], 2, "no field"),
        (["search", "--index", "idx", "w", "--filter", '{"not": ' * 90 + "{}" + "}" * 90], 2, "nested"),
        (["search", "--index", "nowhere", "wind"], 1, "there is no index nowhere"),
        (["search", "--index", "x" * 300, "wind"], 1, "check the path"),
        (["index", "build", "--corpus", "nope.jsonl", "--out", "q"], 1, "nope.jsonl is missing"),
        (["index", "build", "--corpus", ".", "--out", "q"], 1, ". is not a regular file"),
        (
            [
                "index",
                "build",
                "--corpus",
                "corpus.jsonl",
                "--out",
                "q",
                "--field",
                "a:int",
                "--field",
                "a:float",
            ],
            2,
            "twice",
        ),
        (["index", "stats", "corpus.jsonl"], 1, "is a file"),
        (["search", "--index", "idx", "--queries", "corpus.jsonl", "--run", "."], 2, "is a folder"),
        (["index", "build", "--corpus", "corpus.jsonl", "--out", "q", "--field", "year"], 2, "NAME:int"),
        (["index", "build", "--corpus", "corpus.jsonl", "--out", "q", "--store", "body"], 2, "cannot store"),
        (["index", "build", "--corpus", "corpus.jsonl", "--out", "q", "--memory", "1"], 2, "memory is 1 MiB"),
        (["index", "build", "--corpus", "corpus.jsonl", "--out", "q", "--encoder", "nope"], 1, "nope"),
        (["index", "build", "--corpus", "corpus.jsonl", "--out", "q", "--k1", "-1"], 2, "k1 is -1"),
        (["index", "build", "--corpus", "corpus.jsonl", "--out", "/proc/x/q"], 1, "check the path"),
        (["index", "build", "--corpus", "empty.jsonl", "--out", "q"], 1, "none of the documents has a term"),
        (["index", "build", "--corpus", "broken.jsonl.gz", "--out", "q"], 1, "not a whole gzip file"),
        (["index", "build", "--corpus", "half.jsonl.gz", "--out", "q"], 1, "not a whole gzip file"),
        (["index", "add", "idx", "--corpus", "bad.jsonl"], 1, "bad.jsonl, line 2"),
        (["index", "delete", "idx", "--ids-from", "latin.txt"], 1, "latin.txt, line 2: byte 4 is not UTF-8"),
        (["index", "delete", "idx"], 2, "no ids given"),
        (["encode", "--corpus", "corpus.jsonl", "--out", "idx"], 1, "idx"),
        (["encode", "--corpus", "corpus.jsonl", "--out", "corpus.jsonl/v"], 1, "check the path"),
        (["encode", "--corpus", "corpus.jsonl", "--out", "v", "--format", "xml"], 2, "--format is xml"),
        (["encode", "--corpus", "corpus.jsonl", "--out", "v", "--role", "query"], 2, "fitted encoder"),
    ],
)
def test_bad_input_is_one_sentence(idx: Run, arguments: list[str], code: int, sentence: str) -> None:
    Path("bad.jsonl").write_text('{"_id": "d", "text": "gale"}\n{"_id": \n')
    Path("empty.jsonl").write_text('{"_id": "d"}\n')
    Path("latin.txt").write_bytes("d\ncafé\n".encode("latin-1"))
    Path("broken.jsonl.gz").write_bytes(b"not gzip at all")
    Path("half.jsonl.gz").write_bytes(gzip.compress(b'{"_id": "d", "text": "gale"}\n' * 99)[:-20])
    outcome = idx(*arguments)
    assert outcome.code == code, outcome
    last = outcome.err.strip().splitlines()[-1]
    assert last.startswith("lexpert: ")
    assert sentence in last
    assert outcome.out == ""
    assert idx("index", "verify", "idx").code == 0
    assert json.loads(idx("index", "stats", "idx", "--json").out)["documents"] == 3


def test_a_damaged_index_can_be_replaced(idx: Run) -> None:
    with Path("idx/manifest.json").open("a") as file:
        file.write("x")
    refused = idx("index", "build", "--corpus", "corpus.jsonl", "--out", "idx")
    assert refused.code == 1
    assert "--overwrite replaces it" in refused.err
    assert idx("index", "build", "--corpus", "corpus.jsonl", "--out", "idx", "--overwrite").code == 0
    assert idx("index", "verify", "idx").code == 0


def test_a_question_that_is_not_utf_8_is_searched_and_shown(idx: Run) -> None:
    outcome = idx("search", "--index", "idx", "wind \udcff", "--json")
    assert outcome.code == 0
    assert json.loads(outcome.out)["query"] == "wind \ufffd"


def test_shards_are_made_searched_and_looked_at(idx: Run) -> None:
    made = idx("index", "shard", "idx", "--shards", "2", "--out", "two")
    assert (made.code, made.out.split(":")[0]) == (0, "split idx into two")
    for command in (
        ["wind", "--json"],
        ["wind rain", "--explain", "--json", "--filter", '{"field":"year","gte":2000}'],
    ):
        found, wanted = idx("search", "--index", "two", *command), idx("search", "--index", "idx", *command)
        assert json.loads(found.out) == json.loads(wanted.out)
    stats = json.loads(idx("index", "stats", "two", "--json").out)
    assert (stats["documents"], stats["shards"]) == (3, 2)
    assert "shards               2" in idx("index", "stats", "two").out
    assert "two is intact" in idx("index", "verify", "two").out
    refused = idx("index", "add", "two", "--corpus", "corpus.jsonl")
    assert refused.code == 1
    assert "two is a sharded index" in refused.err
    assert idx("index", "shard", "idx", "--shards", "0", "--out", "none").code == 2

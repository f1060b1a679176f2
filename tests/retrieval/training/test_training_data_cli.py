"""`lexpert train mine` and `lexpert train teach`: what they write and print, and one sentence for whatever is wrong."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

pytest.importorskip("transformers")

import lexpert
from retrieval.training.combine import ensemble_lists, rescale_like
from retrieval.training.teach import score_candidates
from retrieval.training.training_set import TrainingSet
from tests.retrieval.conftest import WORDS
from tests.retrieval.training.test_teachers import write_cross_encoder


class Outcome(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        assert self.code == 0, self.err
        return json.loads(self.out)

    def is_refused(self, said: str) -> bool:
        return self.code > 0 and self.err.count("lexpert: ") == 1 and said in self.err.splitlines()[-1]


Run = Callable[..., Outcome]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command line in a folder of its own that has a file of pairs."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    lines = []
    for number in range(30):
        words = rng.choice(WORDS, size=8)
        pair = {"query": " ".join(words[:3]), "positive": " ".join(words), "id": number}
        lines.append(json.dumps(pair) + "\n")
    Path("pairs.jsonl").write_text("".join(lines))

    def command(*arguments: str) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["lexpert", "train", *arguments])
        code = 0
        try:
            lexpert.main()
        except SystemExit as ended:
            code = int(ended.code or 0)
        shown = capsys.readouterr()
        assert "Traceback" not in shown.err
        return Outcome(code, shown.out, shown.err)

    return command


WINDOWS = ("--window", "1-5:2", "--window", "6-20:1")


def test_mining_with_bm25_prints_what_it_kept(run: Run) -> None:
    shown = run("mine", "pairs.jsonl", "--out", "mined", *WINDOWS)
    assert shown.code == 0, shown.err
    for part in (
        "kept from ranks 1-5:2",
        "left out: answers the query as well",
        "positive at rank 1",
        "wrote mined",
    ):
        assert part in shown.out
    mined = TrainingSet.load(Path("mined"))
    assert len(mined) == 30
    assert {len(row) for row in mined.negatives} <= {0, 1, 2, 3}
    for query, negatives in enumerate(mined.negatives):
        assert mined.positives[query] not in negatives


def test_mining_with_several_models_and_a_judge_is_repeatable(
    run: Run, make_language_model: Callable[..., Path]
) -> None:
    model = make_language_model("bert")
    asked = ("mine", "pairs.jsonl", *WINDOWS, "--miner", "bm25", "--miner", f"dense={model}")
    asked += ("--miner", f"sparse={model}", "--judge", f"sparse={model}", "--margin", "0.01", "--json")
    first = run(*asked, "--out", "one").json
    again = run(*asked, "--out", "two").json
    other = run(*asked, "--out", "three", "--seed", "1").json
    assert first["digest"] == again["digest"] != other["digest"]
    assert first["miners"] == again["miners"]
    assert set(first["miners"]) == {"bm25", f"dense={model}", f"sparse={model}"}
    kept = sum(sum(miner["kept"].values()) for miner in first["miners"].values())
    mined = TrainingSet.load(Path("one"))
    assert kept == sum(map(len, mined.negatives))
    assert first["models"][f"dense={model}"]["made"] > 0
    assert all(use["made"] == 0 for use in again["models"].values())
    assert first["miners"]["bm25"]["dropped"]["too close to the positive for the judge"] > 0
    assert first["files"] == [
        {"name": f"{Path.cwd().name}/pairs.jsonl", "pairs": 30, "drawn": 30, "repeated": 0}
    ]


def test_teachers_leave_vectors_combined_scores_and_topics(
    run: Run, make_language_model: Callable[..., Path], tmp_path: Path
) -> None:
    dense, cross = make_language_model("bert"), write_cross_encoder(tmp_path / "cross", 1)
    run("mine", "pairs.jsonl", "--out", "set", *WINDOWS)
    before = TrainingSet.load(Path("set"))
    asked = (
        "teach",
        "set",
        "--teacher",
        f"cross={cross}",
        "--teacher",
        f"dense={dense}",
        "--teacher",
        "bm25",
    )
    said = run(*asked, "--topics", "3", "--json").json
    taught = TrainingSet.load(Path("set"))
    assert said["digest"] == taught.digest != before.digest
    assert [row.tolist() for row in taught.negatives] == [row.tolist() for row in before.negatives]
    assert [teacher.kind for teacher in taught.teachers] == ["dense", "sparse"]
    assert taught.groups is not None
    assert sorted(set(taught.groups.tolist())) == [0, 1, 2]
    assert taught.scores is not None
    assert all(row.min() >= 0 and row.max() <= 1 for row in taught.scores)
    assert [opinion["name"] for opinion in said["teachers"]] == [
        f"cross={cross}", f"dense={dense}", "bm25", "combined",
    ]  # fmt: skip
    # Two of the three teachers can be asked again, by their vectors.
    for teacher in taught.teachers:
        for query, row in enumerate(score_candidates(taught, teacher)):  # type: ignore[arg-type]
            candidates = np.concatenate([taught.positives[query : query + 1], taught.negatives[query]])
            np.testing.assert_allclose(
                row, teacher.scores(np.array([query]), candidates)[0], rtol=1e-4, atol=1e-5
            )

    again = run(*asked, "--topics", "3", "--json", "--out", "copy").json
    assert again["digest"] == said["digest"]
    assert all(use["made"] == 0 for use in again["models"].values())

    shown = run("teach", "set", "--teacher", f"dense={dense}", "--rescale")
    assert shown.code == 0
    assert "positive first" in shown.out
    alone = TrainingSet.load(Path("set"))
    lists = score_candidates(alone, alone.teachers[0])  # type: ignore[arg-type]
    assert alone.scores is not None
    for row, expected in zip(alone.scores, rescale_like(ensemble_lists([lists]), lists), strict=True):
        np.testing.assert_allclose(row, expected, rtol=1e-5)
    assert len(alone.teachers) == 1


def test_a_damaged_cache_is_made_anew_and_named(run: Run, make_language_model: Callable[..., Path]) -> None:
    asked = ("mine", "pairs.jsonl", *WINDOWS, "--miner", f"dense={make_language_model('bert')}")
    first = run(*asked, "--out", "one", "--cache", "kept", "--json").json
    for path in Path("kept").glob("*/*.npz"):
        path.write_bytes(path.read_bytes()[:100])
    again = run(*asked, "--out", "two", "--cache", "kept")
    assert "2 damaged files of the cache were made anew" in again.out
    assert TrainingSet.load(Path("two")).digest == first["digest"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("mine", "none.jsonl", "--out", "s"), "none.jsonl is missing"),
        (("mine", "pairs.jsonl", "--out", "s", "--miner", "dense"), "must be bm25 or dense=FOLDER, sparse=FOLDER"),
        (("mine", "pairs.jsonl", "--out", "s", "--miner", "cross=x"), "must be bm25 or dense=FOLDER"),
        (("mine", "pairs.jsonl", "--out", "s", "--miner", "dense=x"), "there is no folder x"),
        (("mine", "pairs.jsonl", "--out", "s", "--miner", "bm25", "--miner", "bm25"), "names a model twice"),
        (("mine", "pairs.jsonl", "--out", "s", "--window", "5"), "must be FIRST-LAST:COUNT"),
        (("mine", "pairs.jsonl", "--out", "s", "--margin", "1"), "name one with --judge"),
        (("mine", "pairs.jsonl", "--out", "s", "--max-pairs", "0"), "--max-pairs must be at least 1"),
        (("mine", "pairs.jsonl", "--out", "s", "--overlap", "0"), "--overlap must be above 0"),
        (("mine", "pairs.jsonl", "--out", "."), "holds other files than a training set"),
        (("mine", "bad.jsonl", "--out", "s"), 'bad.jsonl, line 2: the pair has no "positive"'),
        (("mine", "empty.jsonl", "--out", "s"), "holds no pairs"),
        (("mine", "one.jsonl", "--out", "s"), "a single passage"),
        (("teach", "s", "--teacher", "bm25"), "s is no training set"),
        (("teach", "s", "--teacher", "x=y"), "must be bm25 or dense=FOLDER, sparse=FOLDER, cross=FOLDER"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_one_sentence(run: Run, arguments: tuple[str, ...], said: str) -> None:
    Path("empty.jsonl").touch()
    Path("one.jsonl").write_text('{"query": "a", "positive": "b"}\n')
    Path("bad.jsonl").write_text('{"query": "a", "positive": "b"}\n{"query": "c"}\n')
    shown = run(*arguments)
    assert shown.is_refused(said), shown.err
    assert not Path("s").exists()


def test_teachers_that_do_not_fit_the_set_are_refused(run: Run, tmp_path: Path) -> None:
    run("mine", "pairs.jsonl", "--out", "set", *WINDOWS)
    assert run("teach", "set", "--teacher", "bm25", "--topics", "3").is_refused("a dense teacher")
    assert run("teach", "set", "--teacher", "bm25", "--teacher", "bm25").is_refused("names a model twice")
    bare = TrainingSet.load(Path("set"))
    no_negatives = [np.zeros(0, np.int32) for _ in bare.queries]
    TrainingSet(bare.queries, bare.passages, bare.positives, no_negatives).save(Path("bare"))
    cross = write_cross_encoder(tmp_path / "cross", 1)
    assert run("teach", "bare", "--teacher", f"cross={cross}").is_refused("has no negatives")
    assert run("teach", "bare", "--teacher", "bm25", "--json").json["teachers"] == []

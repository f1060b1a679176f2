from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from retrieval.encoders.bm25 import Bm25Encoder
from retrieval.training.mining.dense import rank_dense
from retrieval.training.mining.draw import ANSWER, COPY, DRAWN, FALSE_NEGATIVE, Rules
from retrieval.training.mining.mine import Miner, mine
from retrieval.training.mining.rank_window import RankWindow, parse_windows
from retrieval.training.mining.sparse import rank_sparse
from retrieval.training.mining.word_overlap import WordOverlap
from retrieval.training.pairs import read_training_set
from retrieval.training.teachers.vectors import DenseTeacher, SparseTeacher
from retrieval.training.training_set import TrainingSet
from runtime.errors import InputError, UsageError


def as_set(queries: list[str], passages: list[str], positives: list[int]) -> TrainingSet:
    return TrainingSet(
        queries, passages, np.array(positives, np.int32), [np.zeros(0, np.int32) for _ in queries]
    )


def random_teacher(queries: int, passages: int, seed: int, levels: int = 4) -> DenseTeacher:
    """Vectors of few small whole numbers, so that scores are exact and ties are many."""
    rng = np.random.default_rng(seed)
    sides = [rng.integers(0, levels, size=(count, 3)).astype(np.float16) for count in (queries, passages)]
    return DenseTeacher("dense", "0", *sides)


def slow_ranking(scores: NDArray[np.float32], depth: int) -> list[list[int]]:
    return [
        sorted(range(len(row)), key=lambda place: (-row[place], place))[:depth] for row in scores.tolist()
    ]


# Ranking


@given(
    queries=st.integers(1, 7), passages=st.integers(1, 30), depth=st.integers(1, 40), seed=st.integers(0, 99),
    block=st.integers(1, 100),
)  # fmt: skip
def test_dense_ranking_sorts_all_scores(
    queries: int, passages: int, depth: int, seed: int, block: int
) -> None:
    teacher = random_teacher(queries, passages, seed)
    scores = teacher.scores(np.arange(queries), np.arange(passages))
    found = [ranking.tolist() for ranking in rank_dense(teacher, depth, block)]
    assert found == slow_ranking(scores, depth)


WORDS = ["cat", "dog", "bird", "fish", "horse", "tree", "river", "stone", "cloud", "sand"]


def random_texts(count: int, seed: int) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, size=rng.integers(1, 7))) + f" n{number}" for number in range(count)]


def test_sparse_ranking_sorts_all_scores_above_0() -> None:
    queries, passages = random_texts(40, 0), random_texts(300, 1)
    encoder = Bm25Encoder().fit(passages)
    teacher = SparseTeacher("bm25", "0", encoder.encode_queries(queries), encoder.encode_documents(passages))
    scores = teacher.scores(np.arange(40), np.arange(300))
    for depth in (1, 7, 500):
        found = list(rank_sparse(teacher, encoder, depth, threads=1))
        assert len(found) == 40
        for query, ranking in enumerate(found):
            assert len(set(ranking.tolist())) == len(ranking) == min(depth, int((scores[query] > 0).sum()))
            best = np.sort(scores[query])[::-1][: len(ranking)]
            np.testing.assert_allclose(scores[query][ranking], best, rtol=1e-5)


# Windows


def test_windows_are_read_in_the_order_of_ranks() -> None:
    assert parse_windows(["51-1000:4", "1-50:4"]) == (RankWindow(1, 50, 4), RankWindow(51, 1000, 4))
    assert str(RankWindow(1, 50, 4)) == "1-50:4"


@pytest.mark.parametrize(
    ("written", "said"),
    [
        (["1-50"], "must be FIRST-LAST:COUNT"),
        (["0-5:1"], "must begin at 1"),
        (["9-5:1"], "not end before it begins"),
        (["1-5:6"], "no more than it has ranks"),
        (["1-5:0"], "at least 1"),
        (["1-50:4", "50-60:1"], "overlap"),
        ([], "no window"),
    ],
)
def test_a_bad_window_is_refused(written: list[str], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        parse_windows(written)


# Copies


@given(texts=st.lists(st.text("ab c", max_size=8), min_size=1, max_size=6))
def test_overlap_is_that_of_word_sets(texts: list[str]) -> None:
    overlap = WordOverlap(texts)
    left, right = map(np.ravel, np.indices((len(texts), len(texts))))
    expected = []
    for one, other in zip(left, right, strict=True):
        words, others = set(re.findall(r"\w+", texts[one])), set(re.findall(r"\w+", texts[other]))
        expected.append(len(words & others) / len(words | others) if words | others else 1.0)
    np.testing.assert_allclose(overlap.jaccard(left, right), expected)


# Drawing


class SlowMiner:
    """The rules one candidate at a time, for one miner: which passages may be drawn at all."""

    def __init__(self, training_set: TrainingSet, rules: Rules) -> None:
        self.set, self.rules = training_set, rules

    def may_be_drawn(self, query: int, passage: int) -> bool:
        same = [n for n, text in enumerate(self.set.queries) if text == self.set.queries[query]]
        if passage in {int(self.set.positives[n]) for n in same}:
            return False
        positive = int(self.set.positives[query])
        words, others = (set(re.findall(r"\w+", self.set.passages[n])) for n in (passage, positive))
        if len(words & others) / len(words | others) >= self.rules.overlap:
            return False
        if self.rules.judge is None:
            return True
        scores = self.rules.judge.pair_scores(np.array([query, query]), np.array([passage, positive]))
        return bool(scores[0] <= scores[1] - self.rules.margin)


@given(seed=st.integers(0, 500), judged=st.booleans(), data=st.data())
def test_negatives_are_drawn_from_their_windows_by_the_rules(
    seed: int, judged: bool, data: st.DataObject
) -> None:
    rng = np.random.default_rng(seed)
    queries = [f"q{rng.integers(4)}" for _ in range(6)]
    passages = [" ".join(rng.choice(["a", "b", "c", "d"], size=3)) for _ in range(20)]
    training_set = as_set(queries, passages, rng.integers(0, 20, size=6).tolist())
    windows = (
        RankWindow(1, 4, data.draw(st.integers(1, 4))),
        RankWindow(6, 15, data.draw(st.integers(1, 6))),
    )
    judge = random_teacher(6, 20, seed + 1) if judged else None
    rules = Rules(windows, overlap=0.9, judge=judge, margin=2.0, seed=seed)
    ranker = random_teacher(6, 20, seed + 2)
    mined, report = mine(training_set, [Miner("dense", lambda depth: rank_dense(ranker, depth))], rules)
    rankings = list(rank_dense(ranker, 15))
    slow = SlowMiner(training_set, rules)
    kept: Counter[str] = Counter()
    short = 0
    for query, negatives in enumerate(mined.negatives):
        wanted = 0
        for window in windows:
            inside = rankings[query][window.first - 1 : window.last].tolist()
            allowed = {passage for passage in inside if slow.may_be_drawn(query, passage)}
            got = {passage for passage in negatives.tolist() if passage in inside}
            assert got <= allowed
            assert len(got) == min(window.count, len(allowed))
            kept[str(window)] += len(got)
            wanted += window.count
        assert len(set(negatives.tolist())) == len(negatives) <= wanted
        short += len(negatives) < wanted
        if judge is not None and len(negatives):
            scores = judge.pair_scores(np.full(len(negatives), query), negatives)
            assert np.all(np.diff(scores) <= 0)
    tally = report.tallies["dense"]
    assert tally.kept == kept
    assert tally.short == short
    assert tally.examined == sum(kept.values()) + sum(tally.dropped.values())


def test_reasons_are_counted() -> None:
    passages = ["the answer", "answer, the!", "also right", "good one", "bad one", "other"]
    training_set = as_set(["q", "Q "], passages, [0, 2])
    ranking = np.arange(6, dtype=np.int32)
    judge = DenseTeacher(
        "judge", "0", np.ones((2, 1), np.float16), np.array([[5], [0], [5], [4.5], [1], [2]], np.float16)
    )
    rules = Rules((RankWindow(1, 6, 6),), overlap=0.9, judge=judge, margin=1.0)
    miners = [Miner(name, lambda _: iter([ranking, ranking])) for name in ("one", "two")]
    mined, report = mine(training_set, miners, rules)
    assert [negatives.tolist() for negatives in mined.negatives] == [[5, 4], [5, 4, 1]]
    one, two = report.tallies["one"], report.tallies["two"]
    assert one.dropped == {ANSWER: 4, COPY: 1, FALSE_NEGATIVE: 2}
    assert two.dropped == {ANSWER: 4, COPY: 1, FALSE_NEGATIVE: 2, DRAWN: 5}
    assert (one.positive_ranks["at 1"], one.positive_ranks["within 10"]) == (1, 2)
    assert report.as_dict()["miners"]["one"]["kept"] == {"1-6:6": 5}
    assert report.without == 0


def test_the_same_seed_draws_the_same_negatives_of_more_queries_too() -> None:
    passages = random_texts(80, 3)
    ranker = random_teacher(30, 80, 4)
    miner = Miner("dense", lambda depth: rank_dense(ranker, depth))
    draws = {}
    for seed, count in ((1, 30), (1, 20), (2, 30)):
        training_set = as_set([f"q{n}" for n in range(count)], passages, list(range(count)))
        few = DenseTeacher("d", "0", ranker.queries[:count], ranker.passages)
        here = Miner("dense", lambda depth, few=few: rank_dense(few, depth))
        mined, _ = mine(training_set, [here], Rules((RankWindow(1, 40, 3),), seed=seed))
        draws[seed, count] = [negatives.tolist() for negatives in mined.negatives]
    again, _ = mine(
        as_set([f"q{n}" for n in range(30)], passages, list(range(30))),
        [miner],
        Rules((RankWindow(1, 40, 3),), seed=1),
    )
    assert draws[1, 30] == [negatives.tolist() for negatives in again.negatives] != draws[2, 30]
    assert draws[1, 20] == draws[1, 30][:20]


def test_real_pairs_are_mined(shared: Path) -> None:
    training_set = read_training_set([shared / "data" / "pairs-medquad" / "pairs.jsonl.gz"], max_pairs=200)
    encoder = Bm25Encoder().fit(training_set.passages)
    teacher = SparseTeacher(
        "bm25",
        encoder.fingerprint,
        encoder.encode_queries(training_set.queries),
        encoder.encode_documents(training_set.passages),
    )
    miner = Miner("bm25", lambda depth: rank_sparse(teacher, encoder, depth, threads=1))
    rules = Rules((RankWindow(1, 10, 2), RankWindow(11, 100, 2)), judge=teacher, margin=1.0)
    mined, report = mine(training_set, [miner], rules)
    tally = report.tallies["bm25"]
    assert tally.positive_ranks["at 1"] > 0.7 * len(mined)
    assert tally.kept["1-10:2"] > len(mined)
    for query, negatives in enumerate(mined.negatives):
        candidates = np.concatenate([mined.positives[query : query + 1], negatives])
        scores = teacher.scores(np.array([query]), candidates)[0]
        assert np.all(scores[1:] <= scores[0] - 0.999)


def test_a_single_passage_is_too_few() -> None:
    with pytest.raises(InputError, match="single passage"):
        mine(as_set(["q"], ["p"], [0]), [], Rules((RankWindow(1, 2, 1),)))

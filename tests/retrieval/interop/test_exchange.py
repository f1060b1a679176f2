"""Indexes out to other formats and in again: nothing is lost, nothing is made up, damage is said."""

from __future__ import annotations

import gzip
import shutil
import struct
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval.encoders.bm25 import Bm25Encoder
from retrieval.encoders.precomputed import PrecomputedEncoder
from retrieval.index.sparse_index import SparseIndex
from retrieval.index.writer import IndexWriter
from retrieval.interop import bigann, ciff, external_transpose
from retrieval.interop.exchange import export_index, guess_format, import_index
from retrieval.interop.live_rows import live_rows
from runtime.activations import SparseActivations
from runtime.errors import ConflictError, FormatError, InputError, LexpertError, NotFoundError, UsageError

TERMS = ["the", "##s", "é", "日本", "", "a b", "\U0001f600", '"', "ÿ"]
FORMATS = ("anserini", "ciff", "bigann")
Row = dict[int, float]
Segments = list[tuple[list[tuple[str, Row]], set[int]]]

IDS = st.text(st.characters(exclude_categories=("Cs", "Cc", "Z")), min_size=1, max_size=6)
WHOLE = st.integers(1, 300).map(float)
ANY = st.floats(2**-10, 300.0, width=32)


def rows(weights: st.SearchStrategy[float]) -> st.SearchStrategy[Row]:
    return st.dictionaries(st.integers(0, len(TERMS) - 1), weights, max_size=5)


def collections(weights: st.SearchStrategy[float]) -> st.SearchStrategy[Segments]:
    """Several segments: documents of each, some of them empty, and the places of those that are deleted later."""
    segment = st.tuples(
        st.lists(st.tuples(IDS, rows(weights)), max_size=9), st.sets(st.integers(0, 9), max_size=4)
    )
    return st.lists(segment, min_size=1, max_size=3)


def activations(found: list[Row]) -> SparseActivations:
    pairs = [sorted(row.items()) for row in found]
    return SparseActivations.from_rows(
        [([unit for unit, _ in row], [weight for _, weight in row]) for row in pairs], len(TERMS)
    )


def build(path: Path, segments: Segments) -> dict[str, Row]:
    """An index of several segments, and the documents that it should hold, in its order."""
    expected: dict[str, Row] = {}
    with IndexWriter.create(path, encoder=PrecomputedEncoder(TERMS)):
        pass
    for documents, deleted in segments:
        with IndexWriter.open(path) as writer:
            writer.add_vectors([name for name, _ in documents], activations([row for _, row in documents]))
            for name, row in documents:
                expected.pop(name, None)
                expected[name] = row
        with IndexWriter.open(path) as writer:
            gone = [name for place, (name, _) in enumerate(documents) if place in deleted]
            writer.delete(gone)
            for name in gone:
                expected.pop(name, None)
    return expected


def content(index: SparseIndex) -> dict[str, dict[str, float]]:
    """Documents in the order of the index, by terms."""
    vocabulary = index.encoder.vocabulary
    return {
        name: {
            vocabulary.term(unit): weight
            for unit, weight in zip(units.tolist(), weights.tolist(), strict=True)
        }
        for batch in live_rows(index)
        for name, (units, weights) in zip(batch.ids, batch.vectors, strict=True)
    }


def scores(index: SparseIndex, query: dict[str, int]) -> list[tuple[str, float]]:
    """All results for a query given by terms; those that the vocabulary lacks can match nothing."""
    vocabulary = index.encoder.vocabulary
    units = {unit: float(query[term]) for term in query if (unit := vocabulary.find([term])[0]) >= 0}
    vector = SparseActivations.from_rows(
        [(sorted(units), [units[unit] for unit in sorted(units)])], max(len(vocabulary), 1)
    )
    hits = index.search(vector, k=max(index.num_documents, 1))
    return list(zip(hits.ids[0], hits.scores[0].tolist(), strict=True))


@contextmanager
def small_pieces(size: int) -> Iterator[Path]:
    """A folder, and formats that work in pieces so small that a few documents are several."""
    with tempfile.TemporaryDirectory() as scratch, pytest.MonkeyPatch.context() as patched:
        patched.setattr(external_transpose, "BUFFERED", size)
        patched.setattr(ciff, "FILE_ENTRIES", size)
        patched.setattr(ciff, "PIECE_POSTINGS", size)
        patched.setattr(ciff, "BATCH_ROWS", size)
        patched.setattr(bigann, "BATCH_ROWS", size)
        patched.setattr(bigann, "BATCH_ENTRIES", size)
        yield Path(scratch)


@pytest.mark.parametrize("format_", FORMATS)
@settings(max_examples=12)
@given(segments=collections(WHOLE), size=st.integers(1, 9), compressed=st.booleans(), query=rows(WHOLE))
def test_whole_impacts_come_back_with_the_same_scores(
    format_: str, segments: Segments, size: int, compressed: bool, query: Row
) -> None:
    with small_pieces(size) as folder:
        expected = build(folder / "idx", segments)
        first, again = folder / "v", folder / "again"
        with SparseIndex.open(folder / "idx") as index:
            assert content(index) == {
                name: {TERMS[unit]: weight for unit, weight in row.items()} for name, row in expected.items()
            }
            exported = export_index(index, first, format_)
            assert (exported.documents, exported.dropped) == (len(expected), 0)
            assert exported.empty == sum(not row for row in expected.values())
            assert exported.scale == (None if format_ == "bigann" else 1.0)
            asked = {TERMS[unit]: int(weight) for unit, weight in query.items()}
            wanted, documents = scores(index, asked), content(index)
        source = first
        if compressed:
            source = folder / "v.gz"
            source.write_bytes(gzip.compress(first.read_bytes()))
            if format_ == "bigann":
                shutil.copyfile(folder / "v.ids", folder / "v.gz.ids")
        # bigann knows no terms: the encoder brings them
        encoder = PrecomputedEncoder(TERMS) if format_ == "bigann" else None
        imported = import_index(source, folder / "back", format_, encoder=encoder)
        assert (imported.documents, imported.replaced) == (len(expected), 0)
        assert imported.empty == exported.empty
        with SparseIndex.open(folder / "back") as index:
            assert list(content(index).items()) == list(documents.items())
            assert scores(index, asked) == wanted
            assert index.verify() > 0
            export_index(index, again, format_)
        if (
            format_ == "bigann"
        ):  # the others' terms are numbered as they come, and CIFF says what it came from
            assert again.read_bytes() == first.read_bytes()
        assert not [path for path in folder.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("format_", ["anserini", "ciff"])
@settings(max_examples=12)
@given(segments=collections(ANY), scale=st.sampled_from([1.0, 7.5, 100.0]))
def test_other_impacts_come_back_as_the_whole_numbers_that_they_round_to(
    format_: str, segments: Segments, scale: float
) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        build(folder / "idx", segments)
        with SparseIndex.open(folder / "idx") as index:
            exported = export_index(index, folder / "v", format_, scale=scale)
            documents = content(index)
        rounded = {
            name: {term: float(number) for term, weight in row.items() if (number := round(scale * weight))}
            for name, row in documents.items()
        }
        kept = sum(map(len, rounded.values()))
        assert (exported.postings, exported.dropped) == (kept, sum(map(len, documents.values())) - kept)
        import_index(folder / "v", folder / "whole", format_)
        import_index(folder / "v", folder / "divided", format_, scale=scale)
        with SparseIndex.open(folder / "whole") as index:
            assert list(content(index).items()) == list(rounded.items())
        with SparseIndex.open(folder / "divided") as index:
            assert list(content(index).items()) == [
                (name, {term: float(np.float32(number / scale)) for term, number in row.items()})
                for name, row in rounded.items()
            ]


SMALL: Segments = [([("a", {0: 2.0, 3: 1.0}), ("b", {3: 7.0}), ("c", {}), ("d", {1: 130.0})], set())]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small index, and its files in every format."""
    folder = tmp_path_factory.mktemp("exchange")
    build(folder / "idx", SMALL)
    with SparseIndex.open(folder / "idx") as index:
        for format_ in FORMATS:
            export_index(index, folder / f"v.{format_}", format_)
    return folder


@pytest.mark.parametrize("format_", ["ciff", "bigann"])
@pytest.mark.parametrize("compressed", [False, True])
def test_a_file_cut_short_anywhere_is_refused(
    files: Path, tmp_path: Path, format_: str, compressed: bool
) -> None:
    whole = (files / f"v.{format_}").read_bytes()
    whole = gzip.compress(whole) if compressed else whole
    for length in range(0, len(whole), 1 if len(whole) < 80 else 3):
        (tmp_path / "cut").write_bytes(whole[:length])
        with pytest.raises(FormatError, match="cut"):
            import_index(tmp_path / "cut", tmp_path / "out", format_)
    with pytest.raises(NotFoundError):
        SparseIndex.open(tmp_path / "out")
    if not compressed:
        (tmp_path / "cut").write_bytes(whole + b"\0")
        with pytest.raises(FormatError, match=r"goes on after|is not a binary CSR file"):
            import_index(tmp_path / "cut", tmp_path / "out", format_)


@pytest.mark.parametrize("format_", ["ciff", "bigann"])
def test_a_changed_byte_is_read_or_refused_in_one_sentence(files: Path, format_: str) -> None:
    whole = (files / f"v.{format_}").read_bytes()

    @settings(max_examples=30)
    @given(st.integers(0, len(whole) - 1), st.integers(0, 255))
    def changed(place: int, byte: int) -> None:
        with tempfile.TemporaryDirectory() as scratch:
            source = Path(scratch) / "v"
            source.write_bytes(whole[:place] + bytes([byte]) + whole[place + 1 :])
            with suppress(LexpertError):
                import_index(source, Path(scratch) / "out", format_)

    changed()


def message(**fields: int | str | list[bytes]) -> bytes:
    """A protobuf message by hand, its length in front: fields by number, in the order given."""
    encoded = b""
    for name, value in fields.items():
        number = int(name.removeprefix("f"))
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, int):
                encoded += varint(number << 3) + varint(item)
            else:
                data = item.encode() if isinstance(item, str) else item
                encoded += varint(number << 3 | 2) + varint(len(data)) + data
    return varint(len(encoded)) + encoded


def varint(number: int) -> bytes:
    return varint_step(number & 127, number >> 7)


def varint_step(low: int, rest: int) -> bytes:
    return bytes([low | 128]) + varint(rest) if rest else bytes([low])


def posting(gap: int, tf: int) -> bytes:
    return message(f1=gap, f2=tf)[1:]


def test_the_bytes_are_those_of_the_published_format(files: Path) -> None:
    written = (files / "v.ciff").read_bytes()
    head = b"\x08\x01\x10\x03\x18\x04\x20\x03\x28\x04\x30\x8c\x01\x39" + struct.pack("<d", 35.0)
    assert written[1:].startswith(head)
    lists = [
        message(f1="##s", f2=1, f3=130, f4=[posting(3, 130)]),
        message(f1="the", f2=1, f3=2, f4=[b"\x10\x02"]),
        message(f1="日本", f2=2, f3=8, f4=[b"\x10\x01", posting(1, 7)]),
    ]
    documents = [message(f2="a", f3=3), message(f1=1, f2="b", f3=7), message(f1=2, f2="c")]
    documents += [message(f1=3, f2="d", f3=130)]
    assert written.endswith(b"".join([*lists, *documents]))


@pytest.mark.parametrize(
    ("lists", "documents", "said"),
    [
        ([message(f1="a", f2=2, f4=[posting(0, 1)])], 2, "has 1 postings, but says 2"),
        ([message(f1="a", f2=1, f4=[posting(2, 1)])], 2, "do not ascend below 2"),
        ([message(f1="a", f2=2, f4=[posting(1, 1), posting(0, 1)])], 2, "do not ascend below 2"),
        ([message(f1="a", f2=1, f4=[posting(0, 2**64 - 1)])], 2, "an impact below 0"),
        ([message(f1="a"), message(f1="a")], 2, "two lists of 'a'"),
        ([message(f1="a"), b"\x02\xff\xff"], 2, "list 2 of 2 is not what protobuf writes"),
        ([message(f1="a"), b"\xff\xff\xff\xff\xff\x01"], 2, "list 2 of 2 has no length that can be"),
        ([message(f1="a")], 1, "it ends before document 2 of 2"),
        ([message(f1="a")], 3, "goes on after its last document"),
    ],
)
def test_contradictions_in_a_ciff_file_are_named(
    tmp_path: Path, lists: list[bytes], documents: int, said: str
) -> None:
    header = message(f1=1, f2=len(lists), f3=2)
    records = [message(f1=number, f2=f"d{number}") for number in range(documents)]
    (tmp_path / "v.ciff").write_bytes(b"".join([header, *lists, *records]))
    with pytest.raises(FormatError, match=r"v\.ciff is damaged: ") as raised:
        import_index(tmp_path / "v.ciff", tmp_path / "out", "ciff")
    assert said in str(raised.value)
    assert not (tmp_path / "out" / "manifest.json").exists()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize(
    ("records", "said"),
    [
        ([message(f1=1, f2="b"), message(f2="a")], "numbers must ascend from 0"),
        ([message(f1=0), message(f1=1, f2="b")], "ids be given"),
    ],
)
def test_documents_out_of_order_are_refused(tmp_path: Path, records: list[bytes], said: str) -> None:
    (tmp_path / "v.ciff").write_bytes(message(f1=1, f3=2) + b"".join(records))
    with pytest.raises(FormatError, match=said):
        import_index(tmp_path / "v.ciff", tmp_path / "out", "ciff")


@pytest.mark.parametrize(
    "start", [b"", b"{\n", b'{"id": "a", "vector": {}}\n' * 9, message(f1=2), b"\xff" * 99]
)
def test_a_foreign_file_is_no_ciff(tmp_path: Path, start: bytes) -> None:
    (tmp_path / "v").write_bytes(start)
    with pytest.raises(FormatError, match="is not a CIFF file"):
        import_index(tmp_path / "v", tmp_path / "out", "ciff")


def csr(sizes: list[int], indptr: list[int], indices: list[int], values: list[float]) -> bytes:
    parts = [np.array(sizes, "<i8"), np.array(indptr, "<i8"), np.array(indices, "<i4")]
    return b"".join(part.tobytes() for part in [*parts, np.array(values, "<f4")])


def test_the_bytes_of_a_csr_file(files: Path) -> None:
    expected = csr([4, len(TERMS), 4], [0, 2, 3, 3, 4], [0, 3, 3, 1], [2, 1, 7, 130])
    assert (files / "v.bigann").read_bytes() == expected
    assert (files / "v.bigann.ids").read_text() == "a\nb\nc\nd\n"


@pytest.mark.parametrize(
    ("content_", "ids", "error", "said"),
    [
        (csr([2, 3, 1], [0, 1, 1], [0], [1]), "a\n", InputError, "has 1 ids for 2 rows"),
        (csr([1, 3, 1], [0, 1], [0], [1]), "a\nb\n", InputError, "more ids than the 1 rows"),
        (csr([2, 3, 2], [0, 1, 2], [0, 3], [1, 2]), None, InputError, "row 1: column 3 with weight 2"),
        (csr([1, 3, 1], [0, 1], [-1], [1]), None, InputError, "row 0: column -1"),
        (csr([1, 3, 1], [0, 1], [0], [-1]), None, InputError, "with weight -1"),
        (csr([1, 3, 1], [0, 1], [0], [np.nan]), None, InputError, "with weight nan"),
        (csr([2, 3, 1], [0, 2, 1], [0], [1]), None, FormatError, "do not ascend from 0 to its 1"),
        (csr([1, 3, 1], [1, 1], [0], [1]), None, FormatError, "do not ascend from 0 to its 1"),
        (csr([-1, 3, 2], [], [0, 1], [1, 1]), None, FormatError, "is not a binary CSR file"),
        (csr([2**60, 3, 2], [], [0, 1], [1, 1]), None, FormatError, "is not a binary CSR file"),
        (
            gzip.compress(csr([2**60, 3, 2], [], [], []), mtime=0),
            None,
            FormatError,
            "is not a binary CSR file",
        ),
    ],
)
def test_what_is_wrong_with_a_csr_file_is_said(
    tmp_path: Path, content_: bytes, ids: str | None, error: type[Exception], said: str
) -> None:
    (tmp_path / "v.csr").write_bytes(content_)
    if ids is not None:
        (tmp_path / "v.csr.ids").write_text(ids)
    with pytest.raises(error, match=said):
        import_index(tmp_path / "v.csr", tmp_path / "out", "bigann")
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_rows_without_ids_are_called_by_their_numbers(files: Path, tmp_path: Path) -> None:
    shutil.copyfile(files / "v.bigann", tmp_path / "v.csr")
    imported = import_index(tmp_path / "v.csr", tmp_path / "numbers", "bigann")
    assert (imported.documents, imported.units) == (4, len(TERMS))
    with SparseIndex.open(tmp_path / "numbers") as index:
        assert content(index) == {"0": {"0": 2.0, "3": 1.0}, "1": {"3": 7.0}, "2": {}, "3": {"1": 130.0}}
    (tmp_path / "names").write_text("p\nq\np\nr\n")
    imported = import_index(tmp_path / "v.csr", tmp_path / "named", "bigann", ids=tmp_path / "names")
    assert (imported.documents, imported.replaced, imported.empty) == (3, 1, 1)
    with SparseIndex.open(tmp_path / "named") as index:
        assert list(content(index)) == ["q", "p", "r"]


def test_texts_travel_with_anserini_and_an_encoder_takes_texts_again(tmp_path: Path) -> None:
    encoder = Bm25Encoder()
    with IndexWriter.create(tmp_path / "idx", encoder=encoder) as writer:
        writer.add([{"_id": "a", "title": "Wind", "text": "solar wind"}, {"_id": "b", "text": "rain"}])
    with SparseIndex.open(tmp_path / "idx") as index:
        for format_ in FORMATS:
            export_index(index, tmp_path / f"v.{format_}", format_)
        expected = index.search(["wind rain"])
        for format_ in FORMATS:
            source = tmp_path / f"v.{format_}"
            scale = 1.0 if format_ == "bigann" else 100.0
            import_index(source, tmp_path / format_, format_, encoder=index.encoder, scale=scale)
            with SparseIndex.open(tmp_path / format_) as back:
                hits = back.search(["wind rain"])
                assert hits.ids == expected.ids
                assert hits.scores[0] == pytest.approx(expected.scores[0], abs=0.02)
                if format_ == "anserini":
                    assert back.document("a") == {"_id": "a", "text": "Wind solar wind"}
        other = PrecomputedEncoder(["wind"])
        for format_, said in (("anserini", "not in the vocabulary"), ("ciff", "not in the vocabulary"),
                              ("bigann", "3 columns, but the encoder 1 terms")):  # fmt: skip
            with pytest.raises(InputError, match=said):
                import_index(tmp_path / f"v.{format_}", tmp_path / "other", format_, encoder=other)


def test_formats_are_guessed_where_they_can_be(files: Path, tmp_path: Path) -> None:
    for name, format_ in (("v.jsonl.gz", "anserini"), ("v.ciff", "ciff"), ("v.csr.gz", "bigann")):
        (tmp_path / name).touch()
        assert guess_format(tmp_path / name) == format_
    assert guess_format(tmp_path) == "anserini"
    assert guess_format(files / "v.anserini") == "anserini"
    assert guess_format(files / "v.bigann") == "bigann"
    (tmp_path / "x").write_bytes(b"something")
    with pytest.raises(UsageError, match="give --format"):
        guess_format(tmp_path / "x")
    with pytest.raises(NotFoundError, match="is missing"):
        guess_format(tmp_path / "nothing")


def test_what_a_format_cannot_hold_is_said_and_leaves_nothing(tmp_path: Path) -> None:
    with IndexWriter.create(tmp_path / "idx", encoder=PrecomputedEncoder(["half \ud800", "b"])) as writer:
        writer.add_vectors(["two\nlines", "b", "c"], SparseActivations.from_rows([([0], [1.0]), ([1], [2.0]),
                                                                        ([1], [3e7])], 2))  # fmt: skip
    with SparseIndex.open(tmp_path / "idx") as index:
        for format_, options, error, said in (
            ("bigann", {}, InputError, "has a line break"),
            ("bigann", {"scale": 2.0}, UsageError, "--scale does not go with bigann"),
            ("ciff", {}, InputError, "half of a surrogate pair"),
            ("ciff", {"scale": 100.0}, InputError, "does not fit 32 bits; give a smaller scale"),
            ("anserini", {}, InputError, "half of a surrogate pair"),
            ("anserini", {"scale": 0.0}, UsageError, "the scale is 0.0"),
            ("xml", {}, UsageError, "must be one of anserini, ciff, bigann, lucene"),
        ):
            with pytest.raises(error, match=said):
                export_index(index, tmp_path / "v", format_, **options)
        (tmp_path / "v").touch()
        for format_ in FORMATS:
            with pytest.raises(ConflictError, match="exists"):
                export_index(index, tmp_path / "v", format_)
        with pytest.raises(UsageError, match="then run gzip"):
            export_index(index, tmp_path / "v.csr.gz", "bigann")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["idx", "v"]


def test_imports_that_cannot_be_are_refused_before_anything_is_read(files: Path, tmp_path: Path) -> None:
    source = files / "v.ciff"
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    for arguments, options, error, said in (
        ((source, tmp_path / "out", "lucene"), {}, UsageError, "must be one of anserini, ciff, bigann"),
        ((source, tmp_path / "out", "ciff"), {"ids": source}, UsageError, "--ids does not go with ciff"),
        ((source, tmp_path / "out", "bigann"), {"scale": 2.0}, UsageError, "--scale does not go with bigann"),
        ((source, tmp_path / "out", "ciff"), {"encoder": Bm25Encoder()}, UsageError, "has no vocabulary"),
        ((source, tmp_path / "out", "ciff"), {"scale": -1.0}, UsageError, "the scale is -1"),
        ((source, tmp_path / "full", "ciff"), {}, ConflictError, "is not empty"),
        ((tmp_path / "no", tmp_path / "out", "ciff"), {}, NotFoundError, "give a CIFF file"),
        ((tmp_path / "no", tmp_path / "out", "bigann"), {}, NotFoundError, "give a binary CSR file"),
    ):
        with pytest.raises(error, match=said):
            import_index(*arguments, **options)
    import_index(source, tmp_path / "out", "ciff")
    with pytest.raises(ConflictError, match="holds an index already"):
        import_index(source, tmp_path / "out", "ciff")
    import_index(source, tmp_path / "out", "ciff", overwrite=True)

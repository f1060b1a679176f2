"""docs/index-format.md says enough to read an index: a reader made from its tables alone gets the vectors back."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import retrieval.index.merge
from retrieval import IndexWriter, SparseIndex
from retrieval.encoders.bm25 import Bm25Encoder
from retrieval.encoders.precomputed import PrecomputedEncoder
from runtime.activations import SparseActivations
from runtime.errors import FormatError

DOCUMENT = (Path(__file__).resolve().parents[2] / "docs" / "index-format.md").read_text("utf-8")

Row = tuple[list[int], list[float]]


# The reader: json, NumPy, and what the document says.


def files_below(heading: str) -> dict[str, tuple[str, str]]:
    """Type and length of each file, from the table in a section of the document."""
    section = re.split(r"^#+ ", DOCUMENT.split(heading, 1)[1], maxsplit=1, flags=re.MULTILINE)[0]
    rows = re.findall(r"^\| `([^`]+)` \| ([^|]+) \|([^|]*)\|", section, re.MULTILINE)
    return {name: (kind.strip(), length.strip()) for name, kind, length in rows}


class DocumentedSegment:
    """Maps a segment's arrays by the types of the document, and checks the lengths that it gives."""

    def __init__(self, index: Path, entry: dict[str, Any]) -> None:
        self.entry = entry
        self.folder = index / "segments" / entry["name"]
        self.table = files_below(f"### The layout `{entry['layout']}`")
        self.terms = (self.folder / "term.units").stat().st_size // 4
        self.arrays = {name: self.read(name, self.dtype(kind)) for name, (kind, _) in self.table.items()}
        self.documents = self.arrays["window.documents"].tolist()
        self.deleted = np.zeros(entry["documents"], bool)
        if entry["deletes"]:
            bits = np.fromfile(index / "deletes" / entry["deletes"]["name"], np.uint8)
            assert len(bits) == math.ceil(entry["documents"] / 8)
            self.deleted = np.array(
                [bool(bits[row // 8] & 128 >> row % 8) for row in range(len(self.deleted))], bool
            )
            assert self.deleted.sum() == entry["deletes"]["documents"]

    def read(self, name: str, dtype: Any) -> NDArray[Any]:
        data = (self.folder / name).read_bytes()
        said = self.entry["files"][name]
        assert len(data) == said["bytes"]
        assert hashlib.sha256(data).hexdigest() == said["sha256"]
        return np.frombuffer(data, np.dtype(dtype).newbyteorder("<"))

    def dtype(self, kind: str) -> str:
        if kind == "float32 or uint8":
            return str(self.entry["impacts"])
        if kind == "uint16 or uint32":
            return "uint32" if self.terms > 65_536 else "uint16"
        return kind

    def groups(self) -> list[int]:
        return [math.ceil(n / 32) for n in np.diff(self.arrays["window.documents"]).tolist()]

    def check_lengths(self) -> None:
        arrays = self.arrays
        numbers = {
            "windows": len(self.documents) - 1,
            "terms": len(arrays["term.units"]),
            "postings": self.entry["postings"],
            "documents": self.entry["documents"],
            "runs": len(arrays.get("run.lengths", ())),
            "residuals": int((arrays["residual.slots"] >= 0).sum()) if "residual.slots" in arrays else 0,
            "groups": sum(self.groups()),
        }
        for name, (_, length) in self.table.items():
            assert len(arrays[name]) == eval(length.replace("×", "*"), {}, numbers), name

    def ids(self) -> list[str]:
        data, offsets = self.read("ids.data", "u1").tobytes(), self.read("ids.offsets", "i8")
        ids = [data[start:end].decode() for start, end in pairwise(offsets)]
        hashes, order = self.read("ids.hashes", "u8"), self.read("ids.order", "u4")
        assert hashes.tolist() == sorted(documented_hash(identifier) for identifier in ids)
        assert hashes.tolist() == [documented_hash(ids[number]) for number in order.tolist()]
        return ids

    def rows(self) -> list[Row]:
        """The documents as units and impacts, read from the postings."""
        rows: list[Row] = [([], []) for _ in range(self.entry["documents"])]
        by_layout = self.windows if self.entry["layout"] == "windows" else self.tiers
        by_layout(lambda row, unit, impact: (rows[row][0].append(unit), rows[row][1].append(impact)))
        return rows

    def windows(self, take: Callable[[int, int, float], Any]) -> None:
        arrays = self.arrays
        for window in range(len(self.documents) - 1):
            first, end = arrays["window.postings"][window : window + 2].tolist()
            terms = slice(*arrays["window.terms"][window : window + 2].tolist())
            starts = [first + start for start in arrays["term.starts"][terms].tolist()] + [end]
            units = arrays["term.units"][terms].tolist()
            assert units == sorted(set(units))
            for place, unit in enumerate(units):
                of_term = slice(starts[place], starts[place + 1])
                numbers = arrays["posting.rows"][of_term].tolist()
                assert numbers == sorted(set(numbers))
                for number, impact in zip(numbers, arrays["posting.impacts"][of_term].tolist(), strict=True):
                    take(self.documents[window] + number, unit, impact)

    def tiers(self, take: Callable[[int, int, float], Any]) -> None:
        arrays = self.arrays
        step = float(arrays["segment.steps"][0])
        units, runs = arrays["term.units"].tolist(), arrays["term.runs"].tolist()
        starts = arrays["run.starts"].reshape(runs[-1] + 1, len(self.documents) - 1).T.tolist()
        assert units == sorted(set(units))
        for window, groups in enumerate(self.groups()):
            base = int(arrays["window.postings"][window])
            for term, unit in enumerate(units):
                for run in range(runs[term], runs[term + 1]):
                    of_run = slice(base + starts[window][run], base + starts[window][run + 1])
                    places = arrays["posting.places"][of_run].tolist()
                    assert places == sorted(set(places))
                    for place, stored in zip(places, arrays["posting.impacts"][of_run].tolist(), strict=True):
                        number = place % groups * 32 + place // groups
                        take(self.documents[window] + number, unit, stored * step)

    def check_tiers(self, rows: list[Row]) -> None:
        """What `tiers` holds beside the postings agrees with them."""
        arrays = self.arrays
        step, residual_step = arrays["segment.steps"].tolist()
        units, runs = arrays["term.units"].tolist(), arrays["term.runs"].tolist()
        for row, (of_row, impacts) in enumerate(rows):
            entries = slice(*arrays["row.starts"][row : row + 2].tolist())
            assert [units[term] for term in arrays["row.terms"][entries].tolist()] == of_row
            assert [stored * step for stored in arrays["row.impacts"][entries].tolist()] == impacts
        starts = arrays["run.starts"].reshape(runs[-1] + 1, len(self.documents) - 1).T
        assert arrays["run.lengths"].tolist() == np.diff(starts, axis=1).sum(axis=0).tolist()
        largest = [0.0] * runs[-1]
        shares = [max(1, self.entry["documents"] // share) for share in (2048, 1024, 512, 256, 128, 64)]
        slots = arrays["residual.slots"].tolist()
        for window, groups in enumerate(self.groups()):
            base = int(arrays["window.postings"][window])
            residuals = arrays["residual.impacts"][
                slice(*arrays["residual.starts"][window : window + 2].tolist())
            ].reshape(-1, groups)
            for term in range(len(units)):
                bounds = np.zeros(groups)
                for run in range(runs[term], runs[term + 1]):
                    of_run = slice(base + int(starts[window, run]), base + int(starts[window, run + 1]))
                    impacts = arrays["posting.impacts"][of_run] * np.float32(step)
                    largest[run] = max(largest[run], float(impacts.max(initial=0)))
                    if run == runs[term + 1] - 1:
                        np.maximum.at(bounds, arrays["posting.places"][of_run] % groups, impacts)
                if slots[term] >= 0:
                    assert residuals[slots[term]].tolist() == np.ceil(bounds / residual_step).tolist()
        assert arrays["run.largest"].tolist() == largest
        for term in range(len(units)):
            lengths = arrays["run.lengths"][runs[term] : runs[term + 1]].tolist()
            assert len(lengths) == 1 + sum(sum(lengths) > share for share in shares)
            assert all(sum(lengths[: tier + 1]) <= shares[tier] for tier in range(len(lengths) - 1))
            assert (slots[term] >= 0) == (len(lengths) == 7)


def documented_hash(text: str) -> int:
    bits = (1 << 64) - 1
    value = 0xCBF29CE484222325  # FNV-1a: offset and prime
    for byte in text.encode():
        value = (value ^ byte) * 0x100000001B3 & bits
    value = (value ^ value >> 33) * 0xFF51AFD7ED558CCD & bits
    value = (value ^ value >> 33) * 0xC4CEB9FE1A85EC53 & bits
    return value ^ value >> 33


def documented_manifest(index: Path) -> dict[str, Any]:
    content = json.loads((index / "manifest.json").read_text("utf-8"))
    checksum = content.pop("checksum")
    assert checksum == documented_checksum(content)
    return dict(content)


def documented_checksum(content: dict[str, Any]) -> str:
    return f"sha256:{hashlib.sha256(documented_bytes(content)).hexdigest()}"


def documented_bytes(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()


# What it reads.

NUM_UNITS = 40
COUNT = 300


def some_vectors() -> SparseActivations:
    """Weights of several sizes, frequent and rare units, documents without any."""
    generator = np.random.default_rng(5)
    popularity = 1 / np.arange(1, NUM_UNITS + 1)
    rows = []
    for _ in range(COUNT):
        size = int(generator.integers(0, 12))
        units = generator.choice(NUM_UNITS, size, replace=False, p=popularity / popularity.sum())
        rows.append((sorted(units.tolist()), (generator.gamma(1.0, 2.0, size) + 0.001).tolist()))
    return SparseActivations.from_rows(rows, NUM_UNITS)


def read_back(weights: NDArray[np.float32], codec: str) -> tuple[list[float], float]:
    """Impacts as the document says that they are read back, and their step."""
    if codec == "float32":
        return weights.tolist(), 1.0
    steps = [n / 8 * 2.0**e for e in range(-20, 20) for n in range(8, 16)]
    step = min(step for step in steps if weights.max() <= 255 * step)
    return (np.clip(np.rint(weights / step), 1, 255) * step).tolist(), step


@pytest.fixture(params=["float32", "uint8"])
def codec(request: Any) -> str:
    return str(request.param)


@pytest.fixture(params=["windows", "tiers"])
def index(request: Any, codec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Documents in several windows: all in one segment, some of them deleted since."""
    monkeypatch.setattr(retrieval.index.merge, "TIERED_DOCUMENTS", 1 if request.param == "tiers" else 1 << 20)
    monkeypatch.setattr(retrieval.index.merge, "WINDOW_POSTINGS", 700)
    path, vectors = tmp_path / "index", some_vectors()
    with IndexWriter.create(
        path, encoder=PrecomputedEncoder(num_units=NUM_UNITS), impacts=codec, merge_policy=None
    ) as writer:
        for start in (0, 100):
            ids = [f"d{row} é" for row in range(start, COUNT if start else 100)]
            writer.add_vectors(ids, vectors[start : start + len(ids)])
            writer.commit()
        writer.merge()
        writer.delete([f"d{row} é" for row in range(0, COUNT, 7)])
    (entry,) = documented_manifest(path)["segments"]
    assert (entry["layout"], entry["impacts"]) == (
        request.param,
        codec if request.param == "tiers" else "float32",
    )
    return path


def test_a_reader_made_from_the_document_gets_the_vectors_back(index: Path, codec: str) -> None:
    manifest = documented_manifest(index)
    assert (manifest["format"], manifest["version"], manifest["impacts"]) == ("lexpert-index", 2, codec)
    segment = DocumentedSegment(index, manifest["segments"][0])
    segment.check_lengths()
    assert segment.ids() == [f"d{row} é" for row in range(COUNT)]
    assert np.flatnonzero(segment.deleted).tolist() == list(range(0, COUNT, 7))
    assert len(segment.documents) > 2
    vectors, rows = some_vectors(), segment.rows()
    expected, step = read_back(vectors.weights, segment.entry["impacts"])
    rounded = segment.entry["impacts"] == "uint8"
    assert np.abs(np.array(expected) - vectors.weights).max() < (step if rounded else 1e-30)
    assert [unit for units, _ in rows for unit in units] == vectors.units.tolist()
    assert [impact for _, impacts in rows for impact in impacts] == expected
    assert [len(units) for units, _ in rows] == np.diff(vectors.indptr).tolist()
    if segment.entry["layout"] == "tiers":
        segment.check_tiers(rows)


def test_the_document_names_every_file(index: Path) -> None:
    entry = documented_manifest(index)["segments"][0]
    here = {path.name for path in (index / "segments" / entry["name"]).iterdir()}
    assert here == set(entry["files"])
    postings = set(files_below(f"### The layout `{entry['layout']}`"))
    strings = {f"ids.{name.removeprefix('….')}" for name in files_below("### String tables")}
    beside = set(files_below("## A segment"))
    assert {"ids.*", "stored.data", "stored.offsets"} <= beside
    assert here == postings | strings | {"stored.data", "stored.offsets"}


def test_more_than_65536_terms_take_32_bits(
    codec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retrieval.index.merge, "TIERED_DOCUMENTS", 1)
    units = np.arange(70_000, dtype=np.int32)
    weights = (units % 255 + 1).astype(np.float32)
    vectors = SparseActivations(np.arange(0, 70_001, 1000, dtype=np.int64), units, weights, 70_000)
    with IndexWriter.create(
        tmp_path / "index", encoder=PrecomputedEncoder(num_units=70_000), impacts=codec
    ) as writer:
        writer.add_vectors([str(row) for row in range(70)], vectors)
        writer.merge()
    segment = DocumentedSegment(tmp_path / "index", documented_manifest(tmp_path / "index")["segments"][0])
    segment.check_lengths()
    assert segment.arrays["row.terms"].dtype == np.uint32
    rows = segment.rows()
    assert [unit for units, _ in rows for unit in units] == units.tolist()
    assert [impact for _, impacts in rows for impact in impacts] == weights.tolist()  # whole: exact in 8 bits
    segment.check_tiers(rows)


def test_a_first_commit_of_bm25_is_read_too(codec: str, tmp_path: Path) -> None:
    with IndexWriter.create(tmp_path / "index", encoder=Bm25Encoder(), impacts=codec) as writer:
        writer.add(
            [{"_id": "a", "text": "solar wind"}, {"_id": "b", "title": "Wind", "text": "wind tunnels"}]
        )
    segment = DocumentedSegment(tmp_path / "index", documented_manifest(tmp_path / "index")["segments"][0])
    segment.check_lengths()
    with SparseIndex.open(tmp_path / "index") as opened:
        hits = opened.search(["wind"])
        (unit,) = opened.encoder.vocabulary.find(["wind"])
    for identifier, score in zip(hits.ids[0], hits.scores[0].tolist(), strict=True):
        units, impacts = segment.rows()[segment.ids().index(identifier)]
        assert impacts[units.index(unit)] == score


def test_an_index_of_version_1_is_refused(index: Path) -> None:
    content = documented_manifest(index)
    content |= {"version": 1}
    for key in ("impacts", "calibration"):
        del content[key]
    for entry in content["segments"]:
        del entry["layout"], entry["impacts"]
    content["checksum"] = documented_checksum(content)
    (index / "manifest.json").write_bytes(documented_bytes(content))
    for open_it in (SparseIndex.open, IndexWriter.open):
        with pytest.raises(
            FormatError, match=r"version 1, but this lexpert reads version 2; build the index"
        ):
            open_it(index)


def test_damaged_postings_are_named(index: Path) -> None:
    entry = documented_manifest(index)["segments"][0]
    for name in files_below(f"### The layout `{entry['layout']}`"):
        path = index / "segments" / entry["name"] / name
        original = path.read_bytes()
        path.write_bytes(original[:-1])
        with pytest.raises(FormatError, match=rf"{re.escape(name)} has .* bytes, but its manifest says"):
            SparseIndex.open(index)
        path.write_bytes(original[:-1] + bytes([original[-1] ^ 1]))
        found = rf"{re.escape(name)} (does not have the checksum|of a segment is damaged)"
        with pytest.raises(FormatError, match=found), SparseIndex.open(index) as opened:
            opened.verify()
        path.unlink()
        with pytest.raises(FormatError, match=rf"{re.escape(name)} is missing"):
            SparseIndex.open(index)
        path.write_bytes(original)
    with SparseIndex.open(index) as opened:
        opened.verify()

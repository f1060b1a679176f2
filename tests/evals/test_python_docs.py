"""The documentation of the running Python as a collection."""

from __future__ import annotations

import builtins
import sys
from pathlib import Path

import pytest

from evals.collections.python_docs import PythonDocs, first_sentence

JSON = '''"""JSON encoder and decoder."""
raise SystemExit("sources are read, never run")
from .encoder import JSONEncoder
from _private import hidden_gem

def dumps(obj, *, indent=None):
    """Serialize obj to a JSON formatted string.  The rest tells more."""

def _secret(): """Private functions are left out."""

if True:
    async def stream(source): """Read a stream of documents lazily. One by one."""

class Reader:
    """Reads one value after the other from a file."""
    def __init__(self, file): "Initialisers are not documents of their own."
    @property
    def line(self): "Number of the current line. Counted from one."
    @staticmethod
    def sniff(sample): "Guess the dialect of a sample. Never raises."
    class _Inner: "Private."
'''


@pytest.fixture
def library(tmp_path: Path) -> Path:
    (tmp_path / "json").mkdir()
    (tmp_path / "json" / "__init__.py").write_text(JSON)
    (tmp_path / "json" / "encoder.py").write_text('class JSONEncoder:\n    """Extensible JSON encoder."""\n')
    (tmp_path / "json" / "tests").mkdir()
    (tmp_path / "json" / "tests" / "x.py").write_text('"""A test."""')
    (tmp_path / "site-packages").mkdir()
    (tmp_path / "site-packages" / "other.py").write_text('"""Installed, not of the library."""')
    (tmp_path / "string.py").write_text("def broken(:")
    return tmp_path


def test_sources_are_read_without_running_them(library: Path) -> None:
    documents = {d["_id"]: d for d in PythonDocs(library) if d["module"].startswith("json")}
    assert {identifier: (d["title"], d["kind"]) for identifier, d in documents.items()} == {
        "json": ("json", "module"),
        "json.JSONEncoder": ("json.JSONEncoder", "class"),
        "json.Reader": ("json.Reader(file)", "class"),
        "json.Reader.line": ("json.Reader.line", "method"),
        "json.Reader.sniff": ("json.Reader.sniff(sample)", "method"),
        "json.dumps": ("json.dumps(obj, *, indent=None)", "function"),
        "json.stream": ("json.stream(source)", "function"),
    }
    assert documents["json.dumps"]["text"].startswith("Serialize obj")


def test_reading_twice_gives_the_same_checksum_and_a_change_another(library: Path) -> None:
    before = PythonDocs(library).checksum()
    assert PythonDocs(library).checksum() == before
    (library / "json" / "decoder.py").write_text('"""Decodes."""')
    assert PythonDocs(library).checksum() != before


def test_what_a_program_puts_into_built_in_modules_is_not_documentation(
    library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = PythonDocs(library).checksum()

    def hook(*_: object) -> None:
        """Put in place of the one that is documented."""

    monkeypatch.setattr(sys, "excepthook", hook)
    monkeypatch.setattr(builtins, "display", hook, raising=False)
    assert PythonDocs(library).checksum() == before
    assert "sys.excepthook" in {document["_id"] for document in PythonDocs(library)}


@pytest.fixture(scope="module")
def docs() -> PythonDocs:
    return PythonDocs()


def test_the_library_gives_thousands_of_distinct_documents_in_order(docs: PythonDocs) -> None:
    identifiers = [document["_id"] for document in docs]
    assert len(identifiers) == docs.num_documents > 3000
    assert identifiers == sorted(set(identifiers))
    assert not [
        i for i in identifiers if any(part.startswith("_") for part in i.split(".")) or i.split() != [i]
    ]
    assert {document["kind"] for document in docs} == {"module", "class", "function", "method"}
    assert all(
        document["text"].strip() and document["title"].startswith(document["_id"]) for document in docs
    )


OWN = ["json.dumps", "builtins.str.split", "math.sin", "itertools.chain", "pathlib.Path"]
TAKEN_OVER = [
    "asyncio.run",
    "collections.deque",
    "io.StringIO",
    "os.path.join",
    "os.stat",
    "socket.socket.bind",
    "struct.pack",
    "unittest.TestCase",
]


@pytest.mark.parametrize("identifier", [*OWN, *TAKEN_OVER])
def test_what_people_look_up_is_there(docs: PythonDocs, identifier: str) -> None:
    assert identifier in {document["_id"] for document in docs}


def test_known_items_leave_the_query_out_of_its_document(docs: PythonDocs) -> None:
    collection = docs.known_items()
    whole = {document["_id"]: document for document in docs}
    indexed = {document["_id"]: document for document in collection.corpus}
    assert list(indexed) == list(whole)
    assert len(collection.queries) > 1000
    assert not collection.drop_self_matches
    for identifier, query in collection.queries.items():
        rest = indexed[identifier]["text"]
        assert collection.qrels[identifier] == {identifier: 1}
        assert len(query.split()) >= 4
        assert rest.strip()
        # Nothing is lost and nothing is kept twice: query and rest are the words of the docstring.
        assert sorted(f"{query} {rest}".split()) == sorted(whole[identifier]["text"].split())
    for identifier in whole.keys() - collection.queries.keys():
        assert indexed[identifier] == whole[identifier]


def test_a_sample_of_known_items_is_a_collection_of_its_own(docs: PythonDocs) -> None:
    whole, sample = docs.known_items(), docs.known_items(every=5)
    documents = list(sample.corpus)
    assert documents == list(whole.corpus)[::5]
    kept = {document["_id"] for document in documents}
    assert list(sample.queries.items()) == [pair for pair in whole.queries.items() if pair[0] in kept]
    assert sample.qrels == {identifier: {identifier: 1} for identifier in sample.queries}
    assert sample.corpus.checksum() != whole.corpus.checksum()
    assert sample.split != whole.split


def test_no_known_item_query_is_shared(docs: PythonDocs) -> None:
    queries = [query.lower() for query in docs.known_items().queries.values()]
    assert len(queries) == len(set(queries))


@pytest.mark.parametrize(
    ("docstring", "sentence", "rest"),
    [
        ("One sentence only", "One sentence only", ""),
        ("First one. Second one.", "First one.", "Second one."),
        ("Split over\ntwo lines. More.", "Split over\ntwo lines.", "More."),
        ("No stop\n\nNext paragraph.", "No stop", "Next paragraph."),
        ("Takes many, e.g. these. Rest.", "Takes many, e.g. these.", "Rest."),
        ("Version 3.12 of it! Rest.", "Version 3.12 of it!", "Rest."),
        (
            "range(stop) -> range object\n\nReturn a range. Rest.",
            "Return a range.",
            "range(stop) -> range object\nRest.",
        ),
        ("", "", ""),
    ],
)
def test_first_sentences(docstring: str, sentence: str, rest: str) -> None:
    assert first_sentence(docstring) == (sentence, rest)

"""The documentation of the Python that runs this: thousands of docstrings that every machine has."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
from collections import Counter
from collections.abc import Iterator, Set
from functools import cached_property
from pathlib import Path

from evals.collections.collection import Collection
from evals.collections.python_sources import Definition, Module, read_library
from retrieval.documents import Document

# Modules whose names exist only inside the library: what they define is documented where it is taken from
# them. `os` is made of the built-in module called os.name, `re` of sre_* before Python 3.11.
INTERNAL = frozenset({os.name, "genericpath", "nturl2path", "sre_compile", "sre_constants", "sre_parse"})

SHORTEST_QUERY = 4
"""Known-item queries have at least this many words."""

ABBREVIATIONS = ("e.g", "i.e", "etc", "cf", "vs", "resp", "approx")
_SENTENCE_END = re.compile(r"[.!?](?=\s|$)")
_CALL_LINE = re.compile(r"[\w.]+\(.*\)(\s*(->|=|--).*)?$")


class PythonDocs:
    """Modules, classes, functions and methods of the standard library, one document each.

    A document is ``{"_id": "json.dumps", "title": "json.dumps(obj, *, …)", "text": docstring, "kind":
    "function", "module": "json"}``. Left out are tests, private names and whatever has no docstring. A name
    that a package takes over from its submodules or from a private module stands under the package
    (``asyncio.run``, ``collections.deque``), as in Python's own documentation. Ordered by id.

    Args:
        root: folder of the library; None is that of the running Python.
    """

    def __init__(self, root: Path | None = None) -> None:
        self._root = root

    @property
    def name(self) -> str:
        return f"python-docs ({platform.python_version()})"

    @property
    def num_documents(self) -> int:
        return len(self._documents)

    def checksum(self) -> str:
        return documents_checksum(self._documents)

    def __iter__(self) -> Iterator[Document]:
        return iter(self._documents)

    @cached_property
    def _documents(self) -> list[dict[str, str]]:
        documents = {document["_id"]: document for document in _documents(read_library(self._root))}
        return [documents[identifier] for identifier in sorted(documents)]

    def known_items(self, every: int = 1) -> Collection:
        """A known-item collection: find the docstring whose first sentence is the query.

        The first sentence is left out of the document that it is the query for, so it is the rest of the
        docstring (and the title) that has to be found. Without a query, and whole, stay the documents whose
        first sentence has fewer than `SHORTEST_QUERY` words, leaves nothing over, or also opens another
        document. Query ids are document ids.

        Args:
            every: take each so many-th document alone, and the queries for these: a smaller collection of its own.
        """
        split = {document["_id"]: first_sentence(document["text"]) for document in self._documents}
        shared = Counter(_normalised(sentence) for sentence, _ in split.values())
        queries = {
            identifier: " ".join(sentence.split())
            for identifier, (sentence, rest) in split.items()
            if len(sentence.split()) >= SHORTEST_QUERY
            and re.search(r"\w", rest)
            and shared[_normalised(sentence)] == 1
        }
        documents: list[dict[str, str]] = [
            {**document, "text": split[document["_id"]][1]} if document["_id"] in queries else document
            for document in self._documents[::every]
        ]
        kept = {document["_id"] for document in documents}
        queries = {identifier: query for identifier, query in queries.items() if identifier in kept}
        return Collection(
            name="python-docs",
            split="known-items" if every == 1 else f"known-items-of-every-{every}th",
            corpus=_KnownItemCorpus(self.name, documents),
            queries=queries,
            qrels={identifier: {identifier: 1} for identifier in queries},
        )


class _KnownItemCorpus:
    def __init__(self, name: str, documents: list[dict[str, str]]) -> None:
        self.name = name
        self._documents = documents

    @property
    def num_documents(self) -> int:
        return len(self._documents)

    def checksum(self) -> str:
        return documents_checksum(self._documents)

    def __iter__(self) -> Iterator[Document]:
        return iter(self._documents)


def documents_checksum(documents: list[dict[str, str]]) -> str:
    """``sha256:…`` over all keys and values, in order."""
    digest = hashlib.sha256()
    for document in documents:
        digest.update(json.dumps(document, sort_keys=True).encode() + b"\n")
    return f"sha256:{digest.hexdigest()}"


def first_sentence(docstring: str) -> tuple[str, str]:
    """Split a docstring into its first sentence and the rest.

    A sentence ends with its paragraph at the latest. Lines at the start that only show a call, as the
    docstrings of C functions do (``range(stop) -> range object``), belong to the rest.
    """
    lines = docstring.strip().splitlines()
    calls = 0
    while calls < len(lines) and (
        _CALL_LINE.match(lines[calls].strip()) or (calls and not lines[calls].strip())
    ):
        calls += 1
    head, body = "\n".join(lines[:calls]), "\n".join(lines[calls:])
    paragraph = re.split(r"\n\s*\n", body, maxsplit=1)[0]
    end = len(paragraph)
    for match in _SENTENCE_END.finditer(paragraph):
        if not paragraph[: match.start()].lower().endswith(ABBREVIATIONS):
            end = match.end()
            break
    rest = "\n".join(part for part in (head.strip(), body[end:].strip()) if part)
    return paragraph[:end].strip(), rest


def _normalised(sentence: str) -> str:
    return " ".join(re.findall(r"\w+", sentence.lower()))


def _documents(modules: dict[str, Module]) -> Iterator[dict[str, str]]:
    # os.path is the one module that is public under a name that is not its file's.
    faces = {os.path.__name__: "os.path"}
    other_path = {"posixpath": "ntpath", "ntpath": "posixpath"}.get(os.path.__name__)
    public = {name: faces.get(name, name) for name in modules if _is_public(name) and name != other_path}
    moved = _moved(modules, set(public))
    for name, shown in public.items():
        module = modules[name]
        if module.docstring:
            yield _document(shown, "", module.docstring, "module", shown)
        for own, definition in module.names.items():
            if not own.startswith("_") and (name, own) not in moved:
                yield from _documents_of(f"{shown}.{own}", definition, shown, modules)
        for source, taken, here in _taken(module, modules, name, set(public)):
            if moved.get((source, taken)) == (name, here) and here not in module.names:
                yield from _documents_of(f"{shown}.{here}", modules[source].names[taken], shown, modules)


def _documents_of(
    name: str, definition: Definition, module: str, modules: dict[str, Module]
) -> Iterator[dict[str, str]]:
    if definition.docstring:
        yield _document(name, definition.signature, definition.docstring, definition.kind, module)
    members = dict(definition.members)
    for source, base in definition.bases:
        # socket.socket has most of its methods from _socket.socket, which nobody can look up otherwise.
        if source.startswith("_") and source in modules and base in modules[source].names:
            members = {**modules[source].names[base].members, **members}
    for member, found in members.items():
        if not member.startswith("_"):
            yield from _documents_of(f"{name}.{member}", found, module, modules)


def _document(name: str, signature: str, docstring: str, kind: str, module: str) -> dict[str, str]:
    # Docstrings of Python 2's time may hold bytes that decoded to lone surrogates.
    text = docstring.strip().encode("utf-8", "replace").decode()
    return {
        "_id": name,
        "title": " ".join(f"{name}{signature}".split()),
        "text": text,
        "kind": kind,
        "module": module,
    }


def _is_public(name: str) -> bool:
    return name not in INTERNAL and not any(part.startswith("_") for part in name.split("."))


def _moved(modules: dict[str, Module], public: set[str]) -> dict[tuple[str, str], tuple[str, str]]:
    """Which definitions are documented elsewhere: ``(module, name)`` → ``(module, name)`` it is public as.

    A public module takes over what it imports from a private module or from its own submodules; of several
    takers the private module's namesake (``_io`` and ``io``) wins, then the shortest name, then the first.
    """
    takers: dict[tuple[str, str], list[tuple[bool, int, str, str]]] = {}
    for name in public:
        for source, taken, here in _taken(modules[name], modules, name, public):
            namesake = source.lstrip("_") == name
            takers.setdefault((source, taken), []).append((not namesake, len(name), name, here))
    return {definition: min(found)[2:] for definition, found in takers.items()}


def _taken(
    module: Module, modules: dict[str, Module], name: str = "", public: Set[str] = frozenset()
) -> Iterator[tuple[str, str, str]]:
    """``(defining module, name there, name here)`` of the public names that `module` imports from others.

    With `public`, imports from public modules other than the submodules of `name` are passed over, and so are
    single names that the module's own list of exports does not have: those are imports for use.
    """
    seen: set[str] = set()
    for source, taken, here in module.taken:
        if source not in modules or (source in public and not source.startswith(f"{name}.")):
            continue
        if public and taken != "*" and module.exported is not None and here not in module.exported:
            continue
        for exported in _exports(modules[source], modules) if taken == "*" else [taken]:
            shown = exported if taken == "*" else here
            defining = _defining(source, exported, modules)
            if defining is not None and not shown.startswith("_") and shown not in seen:
                seen.add(shown)
                yield *defining, shown


def _exports(module: Module, modules: dict[str, Module]) -> list[str]:
    if module.exported is not None:
        return module.exported
    own = [name for name in module.names if not name.startswith("_")]
    return own + [here for _, _, here in _taken(module, modules) if here not in module.names]


def _defining(source: str, name: str, modules: dict[str, Module]) -> tuple[str, str] | None:
    """The module that really defines `name` of `source`, followed through what it imports itself."""
    for _ in range(5):  # as deep as the library goes, and an end to circular imports
        module = modules.get(source)
        if module is None:
            return None
        if name in module.names:
            return source, name
        for further, taken, here in module.taken:
            found = modules.get(further)
            if here == name or (taken == "*" and found is not None and name in found.names):
                source, name = further, (taken if taken != "*" else name)
                break
        else:
            return None
    return None

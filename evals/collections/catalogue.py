"""Which kind of collection a folder or a name is."""

from __future__ import annotations

from pathlib import Path

from evals.collections.collection import Collection
from runtime.errors import NotFoundError

PYTHON_DOCS = "python-docs"


def load_collection(name: str | Path, split: str | None = None) -> Collection:
    """Load a collection from a folder in BEIR's or MS MARCO's layout, or by name.

    Args:
        name: a folder; ``"python-docs"`` (known-item search over the documentation of this Python); or a name
            that ir_datasets knows, short (``"scifact"``) or whole (``"beir/scifact/test"``).
        split: which queries and judgements; None is ``"test"``, and ``"dev"`` for MS MARCO.

    Raises:
        NotFoundError: no such folder, name or split.
        UsageError: a split that this kind of collection does not have.
        InputError: malformed queries or judgements; names file and line.
    """
    from evals.collections.beir import is_beir_folder, load_beir
    from evals.collections.msmarco import is_msmarco_folder, load_msmarco

    folder = Path(name)
    if folder.is_dir():
        if is_msmarco_folder(folder):
            return load_msmarco(folder, split or "dev")
        if is_beir_folder(folder):
            return load_beir(folder, split or "test")
        raise NotFoundError(
            f"{folder} is no collection: it has neither corpus.jsonl (BEIR) nor collection.tsv (MS MARCO)"
        )
    if str(name) == PYTHON_DOCS:
        from evals.collections.python_docs import PythonDocs

        return PythonDocs().known_items()
    from evals.collections.ir_datasets_collection import load_ir_datasets

    return load_ir_datasets(str(name), split)

"""Small training sets."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest


@pytest.fixture
def write_pairs(tmp_path: Path) -> Callable[..., Path]:
    """Write a file of pairs and return it."""

    def write(pairs: Sequence[tuple[str, str]], name: str = "pairs.jsonl") -> Path:
        lines = "".join(json.dumps({"query": query, "positive": text}) + "\n" for query, text in pairs)
        path = tmp_path / name
        path.write_bytes(gzip.compress(lines.encode()) if name.endswith(".gz") else lines.encode())
        return path

    return write

"""Real collections: the index against brute force (`bench/exactness.py` does all queries)."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.exactness import differences


@pytest.mark.parametrize("name", ["scifact", "cosqa", "cranfield", "medline", "msmarco-5k"])
def test_top_1000_equals_brute_force(shared: Path, tmp_path: Path, name: str) -> None:
    assert differences(shared / "data" / name, tmp_path / "index", limit=50) == (
        50 if name != "medline" else 30,
        0,
    )

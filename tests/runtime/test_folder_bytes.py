from __future__ import annotations

from pathlib import Path

from runtime.folder_bytes import folder_bytes


def test_files_count_however_deep_they_lie(tmp_path: Path) -> None:
    (tmp_path / "one" / "two").mkdir(parents=True)
    (tmp_path / "a").write_bytes(b"12345")
    (tmp_path / "one" / "two" / "b").write_bytes(b"678")
    assert folder_bytes(tmp_path) == 8
    assert folder_bytes(tmp_path / "none") == 0

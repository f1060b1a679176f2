"""What a folder takes."""

from __future__ import annotations

from pathlib import Path


def folder_bytes(folder: Path) -> int:
    """Size of all files under a folder, in bytes; 0 for one that is not there."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())

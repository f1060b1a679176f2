"""Small JSON files that carry their own checksum, replaced atomically: the manifests of indexes."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson

from retrieval.index.arrays import disk_errors, sync_folder


def write_checked_json(path: Path, content: Mapping[str, Any]) -> None:
    """Replace a file atomically and durably by `content` with a ``checksum``."""
    checked = {**content, "checksum": _checksum(content)}
    temporary = path.with_name(f"{path.name}.tmp")
    with disk_errors(temporary):
        with temporary.open("wb") as file:
            file.write(_canonical(checked))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)


def without_checksum(content: Mapping[str, Any], data: bytes) -> dict[str, Any] | None:
    """The content of a file whose bytes are `data`, parsed; None if any byte differs from what was written.

    Comparing with the canonical bytes as well catches damage that JSON would read over, such as white space.
    """
    bare = {key: value for key, value in content.items() if key != "checksum"}
    checked = {**bare, "checksum": _checksum(bare)}
    return bare if checked == content and _canonical(checked) == data else None


def _canonical(content: Mapping[str, Any]) -> bytes:
    return orjson.dumps(
        content, option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS | orjson.OPT_APPEND_NEWLINE
    )


def _checksum(content: Mapping[str, Any]) -> str:
    return f"sha256:{hashlib.sha256(_canonical(content)).hexdigest()}"

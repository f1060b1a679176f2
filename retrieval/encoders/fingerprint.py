"""Fingerprint of an encoder folder: one hash over the settings and files that decide about its vectors."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROUNDED_WEIGHTS = "rounded.safetensors"
"""See `retrieval.encoders.rounded_weights`, which needs torch; this module does not."""

EXPANSION_FILE = "expansion.safetensors"
"""See `retrieval.encoders.expansion`, which needs torch, too."""

VOCABULARY_FILES = (
    "tokenizer.json",
    "vocab.txt",
    "vocab.json",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tokenizer.model",
)
"""One of these holds a tokenizer's vocabulary."""

TOKENIZER_FILES = (
    *VOCABULARY_FILES,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "merges.txt",
)


def tokenizer_files(folder: Path) -> dict[str, Path]:
    """The tokenizer's files in a model folder, by name."""
    return {name: folder / name for name in TOKENIZER_FILES if (folder / name).is_file()}


def holds_vocabulary(folder: Path) -> bool:
    """Whether a model folder has a tokenizer at all."""
    return any((folder / name).is_file() for name in VOCABULARY_FILES)


def model_files(folder: Path) -> dict[str, Path]:
    """Configuration, safetensors weights and tokenizer of a model folder, by name."""
    weights = sorted(folder.glob("model*.safetensors")) + sorted(folder.glob("model*.safetensors.index.json"))
    found = [folder / "config.json", folder / ROUNDED_WEIGHTS, *weights]
    return {path.name: path for path in found if path.is_file()} | tokenizer_files(folder)


def fingerprint(settings: Mapping[str, Any], files: Mapping[str, Path]) -> str:
    """Hexadecimal SHA-256 over `settings` (JSON, keys sorted) and the names and bytes of `files`.

    Files are read in blocks; the place of the folder and the order of the files do not matter.
    """
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for name in sorted(files):
        with files[name].open("rb") as file:
            digest.update(f"\n{name} {hashlib.file_digest(file, 'sha256').hexdigest()}".encode())
    return digest.hexdigest()

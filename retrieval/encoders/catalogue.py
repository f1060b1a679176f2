"""Which encoder family reads which folder."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from typing import Any

from retrieval.encoders.encoder import SparseEncoder
from runtime.errors import FormatError, NotFoundError

# Families are imported when used: two of the three need torch.
FAMILIES = {
    "bm25": "retrieval.encoders.bm25:Bm25Encoder",
    "splade": "retrieval.encoders.splade:SpladeEncoder",
    "inference_free": "retrieval.encoders.inference_free:InferenceFreeEncoder",
}

ENCODER_FILE = "lexpert_encoder.json"
"""In every folder that `SparseEncoder.save` wrote: ``{"family": …, …}``."""


def family_class(family: str) -> type[SparseEncoder]:
    """The class of an encoder family."""
    module, _, name = FAMILIES[family].partition(":")
    found: type[SparseEncoder] = getattr(import_module(module), name)
    return found


def load_encoder(name: str | Path, **options: Any) -> SparseEncoder:
    """Load by family name (``"bm25"``), folder, or hub name; see `SparseEncoder.load`."""
    if str(name) == "bm25":
        return family_class("bm25")(**options)
    folder = Path(name)
    if not folder.exists():
        folder = download(str(name))
    return family_class(detect_family(folder)).from_folder(folder, **options)


def detect_family(folder: Path) -> str:
    """The family of an encoder folder, from the files in it.

    Raises:
        FormatError: nothing in the folder names a family that is known here.
    """
    own = folder / ENCODER_FILE
    if own.is_file():
        family = json.loads(own.read_text("utf-8")).get("family")
        if family not in FAMILIES:
            raise FormatError(f"{own} names the family {family!r}; known are {', '.join(FAMILIES)}")
        return str(family)
    if (folder / "router_config.json").is_file():
        return "inference_free"
    if (folder / "modules.json").is_file() or (folder / "config.json").is_file():
        return "splade"
    raise FormatError(
        f"{folder} is not an encoder folder: it has none of {ENCODER_FILE}, modules.json and config.json"
    )


def download(name: str) -> Path:
    """Fetch a model from the Hugging Face hub (or its local cache) and return its folder."""
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise NotFoundError(
            f"there is no folder {name}; for names on the hub run: pip install 'lexpert[neural]'"
        ) from None
    try:
        return Path(snapshot_download(name))
    except Exception as error:  # the hub client raises a dozen types: offline, missing, gated, malformed name
        raise NotFoundError(
            f"there is no folder {name} and the hub did not give it ({type(error).__name__}); "
            "give the path of a local encoder folder"
        ) from error

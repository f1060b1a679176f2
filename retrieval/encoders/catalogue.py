"""Which encoder family reads which folder, and the encoders that come with the package."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import Any

from retrieval.encoders.encoder import SparseEncoder
from runtime.errors import FormatError, NotFoundError

# Families are imported when used: some need torch.
FAMILIES = {
    "bm25": "retrieval.encoders.bm25:Bm25Encoder",
    "splade": "retrieval.encoders.splade:SpladeEncoder",
    "inference_free": "retrieval.encoders.inference_free:InferenceFreeEncoder",
    "expanded_queries": "retrieval.encoders.expanded_queries:ExpandedQueriesEncoder",
    "unicoil": "retrieval.encoders.unicoil:UniCoilEncoder",
    "deepimpact": "retrieval.encoders.deepimpact:DeepImpactEncoder",
    "csr": "retrieval.encoders.csr:CsrEncoder",
    "precomputed": "retrieval.encoders.precomputed:PrecomputedEncoder",
}

PACKAGED = MappingProxyType({"lexpert-mini": Path(__file__).with_name("lexpert_mini")})
"""Encoders that come with the package, and their folders; a folder of the same name is meant by ``./NAME``."""

ENCODER_FILE = "lexpert_encoder.json"
"""In every folder that `SparseEncoder.save` wrote: ``{"family": …, …}``."""


def family_class(family: str) -> type[SparseEncoder]:
    """The class of an encoder family."""
    module, _, name = FAMILIES[family].partition(":")
    found: type[SparseEncoder] = getattr(import_module(module), name)
    return found


def load_encoder(name: str | Path, **options: Any) -> SparseEncoder:
    """Load by family name (``"bm25"``), packaged name, folder, or hub name; see `SparseEncoder.load`."""
    if str(name) == "bm25":
        return family_class("bm25")(**options)
    if str(name) in PACKAGED:
        folder = packaged_folder(str(name))
        encoder = family_class(detect_family(folder)).from_folder(folder, **options)
        encoder.source = str(name)  # and no path: what refers to it finds it in any installation
        return encoder
    folder = Path(name)
    source = str(folder.resolve()) if folder.exists() else str(name)
    if not folder.exists():
        folder = download(str(name))
    encoder = _follow_reference(folder, options) or family_class(detect_family(folder)).from_folder(
        folder, **options
    )
    encoder.source = encoder.source or source
    return encoder


def packaged_folder(name: str) -> Path:
    """The folder of an encoder that comes with the package.

    Raises:
        NotFoundError: this installation lacks it.
    """
    folder = PACKAGED[name]
    if not (folder / ENCODER_FILE).is_file():
        raise NotFoundError(
            f"the encoder {name} is missing from this installation ({folder}); install lexpert again"
        )
    return folder


def write_reference(
    folder: Path, encoder: SparseEncoder, options: Mapping[str, Any] = MappingProxyType({})
) -> None:
    """Write a folder that loads as `encoder`, with `options`, for as long as its source stays what it is."""
    folder.mkdir(parents=True, exist_ok=True)
    reference: dict[str, Any] = {
        "family": encoder.family,
        "reference": encoder.source,
        "fingerprint": encoder.fingerprint,
    }
    if options:
        reference["options"] = dict(options)
    (folder / ENCODER_FILE).write_text(json.dumps(reference, indent=1) + "\n", "utf-8")


def _follow_reference(folder: Path, options: dict[str, Any]) -> SparseEncoder | None:
    own = folder / ENCODER_FILE
    described = _read_own(own) if own.is_file() else {}
    if "reference" not in described:
        return None
    try:
        encoder = load_encoder(described["reference"], **(described.get("options", {}) | options))
    except NotFoundError as error:
        raise NotFoundError(
            f"{folder} needs the encoder {described['reference']}, which is not there any more; "
            "give its new place with: lexpert index merge INDEX --encoder PLACE"
        ) from error
    if encoder.fingerprint != described["fingerprint"]:
        raise FormatError(
            f"the encoder {described['reference']} is not the one that {folder} was made with: it has changed since"
        )
    return encoder


def _read_own(path: Path) -> dict[str, Any]:
    try:
        described = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise FormatError(f"{path} is damaged ({error})") from error
    if not isinstance(described, dict):
        raise FormatError(f"{path} is damaged: it does not hold a JSON object")
    return described


def detect_family(folder: Path) -> str:
    """The family of an encoder folder, from the files in it.

    Raises:
        FormatError: nothing in the folder names a family that is known here.
    """
    own = folder / ENCODER_FILE
    if own.is_file():
        family = _read_own(own).get("family")
        if family not in FAMILIES:
            raise FormatError(f"{own} names the family {family!r}; known are {', '.join(FAMILIES)}")
        return str(family)
    if (folder / "modules.json").is_file() or (folder / "config.json").is_file():
        from retrieval.encoders.sentence_transformers_folder import ends_in_autoencoder, has_query_table

        if ends_in_autoencoder(folder):
            return "csr"
        return "inference_free" if has_query_table(folder) else "splade"
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

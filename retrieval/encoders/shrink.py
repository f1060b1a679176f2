"""An encoder in a quarter of its bytes or less, for packages and small machines."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from retrieval.encoders import sentence_transformers_folder as st_folder
from retrieval.encoders.encoder import SparseEncoder
from retrieval.encoders.fingerprint import EXPANSION_FILE, ROUNDED_WEIGHTS, tokenizer_files
from retrieval.encoders.sentence_transformers_folder import TableRoute, read_object
from runtime.errors import NotFoundError, UsageError
from runtime.folder_bytes import folder_bytes
from runtime.output_folder import new_folder, require_new

if TYPE_CHECKING:
    from torch import Tensor

LAYER_COUNTS = ("num_hidden_layers", "n_layers")
"""Where a model's configuration has the number of its layers."""

_LAYER_NAME = re.compile(r"(.*?\blayers?\.)(\d+)(\..*)")


@dataclass(frozen=True)
class Shrunk:
    """What `shrink` did.

    Attributes:
        bytes_before, bytes_after: of all files of the two folders.
        layers: of the original, counted from 0, that each model of the new folder has.
    """

    bytes_before: int
    bytes_after: int
    layers: list[int]


def shrink(
    folder: Path,
    out: Path,
    *,
    layers: int | None = None,
    max_active_dims: int | None = None,
    max_length: int | None = None,
    word_bits: Literal[8, 4] = 8,
) -> Shrunk:
    """Write the encoder in `folder` to `out`, with its models' weights in 8 or 4 bits; see `rounded_weights`.

    The result loads as the encoder does; its vectors differ by what rounding makes of them, which an evaluation
    tells. Saved again, it is written in float32, which other libraries read. A tokenizer that both sides of an
    inference-free encoder have is kept once, and tokenizers without the white space of their files.

    Args:
        folder: of a SPLADE or inference-free encoder.
        layers: keep so many, the first and the last among them and the others evenly between; None keeps all. What
            is left was never trained to work without the others.
        max_active_dims: keep only so many terms of a text, the heaviest; None keeps what the folder says.
        max_length: most tokens of a text that a model reads; None keeps what the folder says.
        word_bits: of the tables with a row for each term, the largest of a small model: embeddings, decoder, and the
            weights of a term expansion. All other matrices have 8 bits.

    Raises:
        ConflictError: `out` exists, or another process is writing it.
        UsageError: a weight does not fit its bits, or layers cannot be left out.
        FormatError, NotFoundError: `folder` holds no such encoder.
    """
    from safetensors.torch import load_file

    from retrieval.encoders.expansion import TermExpansion
    from retrieval.encoders.language_model_folder import word_tables
    from retrieval.encoders.rounded_weights import ALL_EIGHT, save_rounded

    require_new(out)
    if not folder.is_dir():
        raise NotFoundError(f"there is no encoder folder {folder}")
    options = {"max_active_dims": max_active_dims, "max_length": max_length}
    options = {name: value for name, value in options.items() if value is not None}
    encoder = SparseEncoder.load(folder, **options)
    kept: list[int] = []
    with new_folder(out) as partial:
        encoder.save(partial)
        expansions = [path.parent for path in sorted(partial.rglob(EXPANSION_FILE))]
        if expansions and layers is not None:
            raise UsageError(
                f"{folder} has a term expansion, which reads what all its layers make of a text; leave out the layers "
                "first, and train the expansion after that"
            )
        for weights in sorted(partial.rglob("model.safetensors")):
            config = read_object(weights.parent / "config.json")
            if "model_type" not in config:  # the table of queries
                continue
            tensors = load_file(weights)
            kept = spread_layers(layer_count(config, weights.parent), layers)
            if layers is not None:
                config, tensors = with_layers(config, tensors, kept)
                st_folder.write_json(weights.parent / "config.json", config)
            bits = ALL_EIGHT if word_bits == 8 else dict.fromkeys(word_tables(weights.parent), word_bits)
            save_rounded(tensors, weights.parent / ROUNDED_WEIGHTS, bits)
            weights.unlink()
        if not kept:
            raise UsageError(f"{folder} holds no masked language model; only encoders with one can be shrunk")
        for module in expansions:
            TermExpansion.load(module).save(module, word_bits)
        _share_tokenizer(partial)
        for tokenizer in partial.rglob("tokenizer.json"):
            _compact(tokenizer)
    return Shrunk(folder_bytes(folder), folder_bytes(out), kept)


def layer_count(config: Mapping[str, Any], folder: Path) -> int:
    """The number of layers that a model's configuration names.

    Raises:
        UsageError: it names none.
    """
    found = next((config[name] for name in LAYER_COUNTS if isinstance(config.get(name), int)), None)
    if found is None:
        raise UsageError(f"{folder / 'config.json'} does not say how many layers the model has")
    return int(found)


def spread_layers(count: int, wanted: int | None) -> list[int]:
    """`wanted` of the layers 0 to `count` - 1, evenly spread, the first and the last among them; None is all.

    Raises:
        UsageError: there are not so many.
    """
    if wanted is None or wanted == count:
        return list(range(count))
    if not 1 <= wanted < count:
        raise UsageError(f"the model has {count} layers, so {wanted} of them cannot be kept")
    if wanted == 1:
        return [count - 1]
    return [round(place * (count - 1) / (wanted - 1)) for place in range(wanted)]


def with_layers(
    config: Mapping[str, Any], weights: Mapping[str, Tensor], kept: Sequence[int]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Configuration and weights of a model with only the layers `kept`, numbered anew in their order.

    Raises:
        UsageError: the model's layers are of several kinds, or its weights do not name them.
    """
    mixed = [name for name, value in config.items() if "layer" in name and isinstance(value, list)]
    mixed += [name for name in config if "every_n_layers" in name]
    if mixed:
        raise UsageError(
            f"the layers of this {config['model_type']} are not all alike ({mixed[0]}), so none can be left out"
        )
    places = {str(layer): place for place, layer in enumerate(kept)}
    chosen, found = {}, set()
    for name, weight in weights.items():
        numbered = _LAYER_NAME.fullmatch(name)
        if numbered is None:
            chosen[name] = weight
        elif numbered[2] in places:
            found.add(numbered[2])
            chosen[f"{numbered[1]}{places[numbered[2]]}{numbered[3]}"] = weight
    if len(found) < len(kept):
        raise UsageError(f"the weights of this {config['model_type']} do not name its layers by number")
    counts = {name: len(kept) for name in LAYER_COUNTS if name in config}
    return {**config, **counts}, chosen


def _share_tokenizer(folder: Path) -> None:
    """Have a query table refer to the document model's tokenizer where its own is the same, and drop its own."""
    described = st_folder.read_folder(folder)
    queries, documents = described.queries, described.documents
    if not isinstance(queries, TableRoute) or queries.folder == documents.folder:
        return
    own, other = (
        {name: path.read_bytes() for name, path in tokenizer_files(place).items()}
        for place in (queries.folder, documents.folder)
    )
    if own != other:
        return
    for path in tokenizer_files(queries.folder).values():
        path.unlink()
    path = queries.folder / "config.json"
    shared = str(documents.folder.relative_to(folder))
    st_folder.write_json(path, {**read_object(path), st_folder.SHARED_TOKENIZER: shared})


def _compact(path: Path) -> None:
    text = json.dumps(json.loads(path.read_text("utf-8")), ensure_ascii=False, separators=(",", ":"))
    path.write_text(text + "\n", "utf-8")

"""Queries without inference: each distinct token lights up its own term, with a weight from a table.

The weight is the token's IDF or was learned (Geng et al. 2024, "Towards Competitive Search Relevance for
Inference-Free Learned Sparse Retrievers"). Needs the tokenizer and the table, and neither torch nor a model.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from retrieval.encoders.sentence_transformers_folder import read_object
from retrieval.encoders.subword_vocabulary import SubwordVocabulary
from runtime.activations import SparseActivations
from runtime.errors import FormatError, NotFoundError

if TYPE_CHECKING:
    from tokenizers import Tokenizer


@dataclass(frozen=True, eq=False)
class QueryTable:
    """Tokenizer and weights of the query side.

    Attributes:
        tokenizer: with truncation set and padding off.
        weights: float32 ``[units]``; what is not above 0 never lights up.
    """

    tokenizer: Tokenizer
    weights: NDArray[np.float32]
    vocabulary: SubwordVocabulary

    def encode(
        self,
        texts: Sequence[str],
        prompt: str = "",
        max_active_dims: int | None = None,
        *,
        counted: bool = False,
    ) -> SparseActivations:
        """Weigh the distinct tokens of each text, special tokens not added; an empty text lights nothing.

        Args:
            counted: a token that is there n times weighs ``1 + log(n)`` times what the table says. Questions of
                several sentences repeat what they are about.
        """
        given = [prompt + text if text.strip() else "" for text in texts]
        rows = []
        for encoding in self.tokenizer.encode_batch_fast(given, add_special_tokens=False):
            ids = np.asarray(encoding.ids, np.int64)
            units, counts = np.unique(ids[ids < len(self.weights)], return_counts=True)
            weights = self.weights[units]
            if counted:
                weights = weights * (1 + np.log(counts, dtype=np.float32))
            (kept,) = np.nonzero(weights > 0)
            if max_active_dims is not None and len(kept) > max_active_dims:
                # stable: of equal weights the lower unit stays
                kept = np.sort(kept[np.argsort(-weights[kept], kind="stable")[:max_active_dims]])
            rows.append((units[kept].astype(np.int32), weights[kept]))
        if not rows:
            return SparseActivations.empty(0, len(self.weights))
        indptr = np.zeros(len(rows) + 1, np.int64)
        np.cumsum([len(units) for units, _ in rows], out=indptr[1:])
        lit, weights = (np.concatenate(parts) for parts in zip(*rows, strict=True))
        return SparseActivations(indptr, lit, weights, len(self.weights))

    def token_lengths(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text, without special ones."""
        encodings = self.tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [len(encoding.ids) for encoding in encodings]


def read_query_table(folder: Path, weights: Path) -> QueryTable:
    """Read the tokenizer in `folder` and the table in `weights`.

    Args:
        folder: holds tokenizer.json, and tokenizer_config.json for the limit of tokens.
        weights: safetensors with one tensor ``weight`` ``[units]``, or a JSON object of tokens and weights
            (``idf.json``), in which tokens that the tokenizer does not know cannot matter.

    Raises:
        FormatError: tokenizer or weights are damaged, or do not fit each other.
        NotFoundError: tokenizer.json is missing, or the package tokenizers is.
    """
    tokenizer = read_tokenizer(folder)
    tokens = tokenizer.get_vocab(with_added_tokens=True)
    table = _json_weights(weights, tokens) if weights.suffix == ".json" else _safetensors_weights(weights)
    if table.ndim != 1 or not len(table) or not np.isfinite(table).all():
        raise FormatError(f"{weights} must hold one row of finite weights, not the shape {table.shape}")
    if len(table) < tokenizer.get_vocab_size(with_added_tokens=False):
        raise FormatError(f"{weights} has {len(table)} weights for a tokenizer of {len(tokens)} tokens")
    return QueryTable(tokenizer, table, SubwordVocabulary(tokens, len(table)))


def read_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a folder, cutting texts at the length that its configuration names."""
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise NotFoundError(
            "this encoder needs the package tokenizers; run: pip install 'lexpert[neural]'"
        ) from None
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise NotFoundError(
            f"{path} is missing; save the tokenizer with transformers, which writes that file"
        )
    config_path = folder / "tokenizer_config.json"
    config = read_object(config_path)
    limit = config.get("model_max_length") or 0
    if not isinstance(limit, int | float) or not math.isfinite(limit):
        raise FormatError(f"{config_path}: model_max_length must be a number, not {limit!r:.60}")
    described = _normalized_as_configured(read_object(path), config, path)
    try:
        tokenizer = Tokenizer.from_str(json.dumps(described))
    except Exception as error:  # tokenizers raises plain Exception for a damaged file
        raise FormatError(f"the tokenizer {path} cannot be read ({error})") from None
    tokenizer.no_padding()
    limit = int(limit)
    if 0 < limit < 2**31:  # "no limit" is written as 10**30
        tokenizer.enable_truncation(limit)
    else:
        tokenizer.no_truncation()
    return tokenizer


def _normalized_as_configured(
    tokenizer: dict[str, Any], config: dict[str, Any], path: Path
) -> dict[str, Any]:
    """BERT's tokenizer classes in transformers normalize as tokenizer_config.json says, or by their defaults,
    whatever tokenizer.json says; generic classes go by tokenizer.json. So do we."""
    normalizer = tokenizer.get("normalizer") or {}
    if not isinstance(normalizer, dict):
        raise FormatError(f"{path}: normalizer must be a JSON object, not {normalizer!r:.60}")
    kind = config.get("tokenizer_class") or "PreTrainedTokenizerFast"
    if normalizer.get("type") != "BertNormalizer" or kind in ("PreTrainedTokenizerFast", "TokenizersBackend"):
        return tokenizer
    configured = {
        "lowercase": config.get("do_lower_case", True),
        "strip_accents": config.get("strip_accents"),
        "handle_chinese_chars": config.get("tokenize_chinese_chars", True),
    }
    return {**tokenizer, "normalizer": {**normalizer, **configured}}


def _safetensors_weights(path: Path) -> NDArray[np.float32]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            half = file.get_slice("weight").get_dtype() == "BF16"
            if not half:
                return np.asarray(file.get_tensor("weight"), np.float32)
        with safe_open(path, framework="pt") as file:  # NumPy has no bfloat16
            return np.asarray(file.get_tensor("weight").float().numpy())
    except (SafetensorError, ValueError, TypeError, AttributeError) as error:  # the last three for odd dtypes
        raise FormatError(f"the query weights {path} cannot be read ({error})") from None


def _json_weights(path: Path, tokens: dict[str, int]) -> NDArray[np.float32]:
    try:
        weights = json.loads(path.read_text("utf-8"))
        table = np.zeros(max(tokens.values()) + 1, np.float32)
        for token, weight in weights.items():
            if token in tokens:
                table[tokens[token]] = weight
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise FormatError(f"{path} must hold a JSON object of tokens and weights ({error})") from None
    return table

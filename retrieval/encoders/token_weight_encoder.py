"""What uniCOIL and DeepImpact share as encoders: a folder, its model once that is needed, and batches of texts."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from retrieval.encoders.catalogue import write_reference
from retrieval.encoders.encoder import Advance, SparseEncoder, Vocabulary
from retrieval.encoders.fingerprint import fingerprint, model_files
from retrieval.encoders.splade import SpladeOptions
from runtime.activations import SparseActivations
from runtime.errors import LexpertError, NotFoundError, UsageError

if TYPE_CHECKING:
    from retrieval.encoders.token_weight_model import TokenWeightModel

OPTIONS = ("device", "dtype", "token_budget", "max_length", "max_active_dims")


class TokenWeightEncoder(SparseEncoder):
    """An encoder folder of `TokenWeightModel.save`. An empty text lights up nothing."""

    def __init__(self, folder: Path, options: SpladeOptions) -> None:
        """Read the settings; the model follows when it is first needed."""
        try:
            from retrieval.encoders.token_weight_model import limited, read_settings
        except ImportError as error:
            raise NotFoundError(
                f"an encoder of the family {self.family} needs {error.name}; run: pip install 'lexpert[neural]'"
            ) from None
        self._folder = folder
        self._options = options
        self.settings = limited(read_settings(folder), options.max_length)
        self._loading = threading.Lock()
        self._model: TokenWeightModel | None = None

    @classmethod
    def from_folder(cls, folder: Path, **options: Any) -> Self:
        """Read what `save` wrote; options are those of `SpladeOptions`, without pooling and activation.

        Raises:
            FormatError: another version, or a damaged file.
            UsageError: an unknown option.
        """
        for name in options:
            if name not in OPTIONS:
                raise UsageError(
                    f"the family {cls.family} has no option {name!r}; it has {', '.join(OPTIONS)}"
                )
        return cls(folder, SpladeOptions.parse(options))

    @property
    def model(self) -> TokenWeightModel:
        """The torch model, loaded on first use."""
        with self._loading:
            if self._model is None:
                from retrieval.encoders.token_weight_model import TokenWeightModel

                options = self._options
                self._model = TokenWeightModel.load(
                    self._folder,
                    device=options.device,
                    dtype=options.dtype,
                    token_budget=options.token_budget,
                )
                self._model.settings = self.settings
            return self._model

    @property
    def vocabulary(self) -> Vocabulary:
        return self.model.terms.vocabulary

    def _files(self) -> dict[str, Path]:
        from retrieval.encoders.token_weight_model import HEAD_FILE, WORDS_FILE

        return model_files(self._folder) | {name: self._folder / name for name in (HEAD_FILE, WORDS_FILE)}

    @cached_property
    def fingerprint(self) -> str:  # hashing the weights takes a second
        settings = {**asdict(self.settings), "max_active_dims": self._options.max_active_dims}
        if settings["max_query_length"] is None:  # as before there were limits of queries
            del settings["max_query_length"]
        return fingerprint(settings, self._files())

    def encode_documents(self, texts: Sequence[str], advance: Advance | None = None) -> SparseActivations:
        """See `SparseEncoder`.

        Raises:
            LexpertError: the model computed NaN or infinity.
        """
        return self._encode(texts, advance)

    def _encode(
        self,
        texts: Sequence[str],
        advance: Advance | None = None,
        queries: bool = False,
        binary: bool = False,
    ) -> SparseActivations:
        model = self.model
        prompt = self.settings.query_prompt if queries else self.settings.document_prompt
        given = [place for place, text in enumerate(texts) if text.strip()]
        if advance is not None and len(given) < len(texts):
            advance(len(texts) - len(given))
        places: list[NDArray[np.int64]] = []
        parts = []
        prompted = [prompt + texts[place] for place in given]
        for batch, tokens in model.batches(prompted, advance, queries):
            part = model.query_terms(tokens) if binary else model.activations(tokens)
            if not np.isfinite(part.weights).all():
                raise LexpertError(
                    "the model computed NaN or infinity; load the encoder with dtype=float32 or check its weights"
                )
            places.append(np.asarray(given, np.int64)[batch])
            parts.append(part)
        parts.append(SparseActivations.empty(len(texts) - len(given), model.num_terms))
        places.append(np.setdiff1d(np.arange(len(texts)), given))
        rows = SparseActivations.concat(parts)[np.argsort(np.concatenate(places))]
        limit = self._options.max_active_dims
        return rows if limit is None else _heaviest_rows(rows, limit)

    def token_lengths(self, texts: Sequence[str]) -> list[int]:
        """Special tokens included, prompts not, each text cut at the longest."""
        return [len(ids) for ids in self.model.tokenize(texts)["input_ids"]]

    def save(self, folder: Path) -> None:
        """Copy the folder, with the settings as they are.

        Raises:
            UsageError: `folder` is the one that the encoder was loaded from.
        """
        from retrieval.encoders.token_weight_model import write_settings

        folder.mkdir(parents=True, exist_ok=True)
        if folder.samefile(self._folder):
            raise UsageError(f"the encoder was loaded from {folder}; save it into another folder")
        for name, path in self._files().items():
            shutil.copyfile(path, folder / name)
        write_settings(folder, self.settings)

    def save_for_search(self, folder: Path) -> None:
        """Write a reference to where the encoder came from, with the options that change its vectors."""
        if self.source is None:
            self.save(folder)
        else:
            write_reference(folder, self, self._options.of_vectors())


def _heaviest_rows(rows: SparseActivations, count: int) -> SparseActivations:
    from retrieval.encoders.masked_language_model import heaviest

    kept: list[tuple[Any, Any]] = [heaviest(units, weights, count) for units, weights in rows]
    return SparseActivations.from_rows(kept, rows.num_units)

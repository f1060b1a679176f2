"""SPLADE: texts weigh the terms of a masked language model's vocabulary (Formal et al., 2021).

Reads plain ``*ForMaskedLM`` folders (as SPLADE-max) and sentence-transformers' SparseEncoder folders of both
generations, with one model for both sides or one for each; writes the latter form.
"""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from retrieval.encoders import sentence_transformers_folder as st_folder
from retrieval.encoders.catalogue import ENCODER_FILE, write_reference
from retrieval.encoders.encoder import Advance, SparseEncoder, Vocabulary
from retrieval.encoders.fingerprint import EXPANSION_FILE, ROUNDED_WEIGHTS, fingerprint, model_files
from retrieval.encoders.sentence_transformers_folder import SpladeRoute, TableRoute
from runtime.activations import SparseActivations
from runtime.errors import FormatError, NotFoundError, UsageError

if TYPE_CHECKING:
    from retrieval.encoders.expansion import TermExpansion
    from retrieval.encoders.masked_language_model import MaskedLanguageModel, TermWeighting


@dataclass(frozen=True)
class SpladeOptions:
    """Options of `SparseEncoder.load` for encoders with a transformer; None keeps what the folder says.

    Attributes:
        device: torch device; by default CUDA where there is one.
        dtype: ``"auto"`` (bfloat16 where it is fast and close enough, see `bfloat16.choose_dtype`),
            ``"float32"`` or ``"bfloat16"``. Not part of the fingerprint: vectors agree within its error.
        token_budget: most tokens of a batch, padding included.
        max_length: most tokens of a text.
        max_active_dims: keep only so many terms of each text, the heaviest.
        pooling, activation: for plain model folders, which do not say how they were trained.
    """

    device: str | None = None
    dtype: Any = "auto"
    token_budget: int | None = None
    max_length: int | None = None
    max_active_dims: int | None = None
    pooling: str | None = None
    activation: str | None = None

    @classmethod
    def parse(cls, options: dict[str, Any]) -> Self:
        """Check options by name and value; UsageError for one that does not exist or makes no sense."""
        known = [field.name for field in fields(cls)]
        for name, value in options.items():
            if name not in known:
                raise UsageError(f"a SPLADE encoder has no option {name!r}; it has {', '.join(known)}")
            whole = isinstance(value, int) and not isinstance(value, bool) and value >= 1
            if name in ("token_budget", "max_length", "max_active_dims") and value is not None and not whole:
                raise UsageError(f"{name} must be a whole number of 1 or more, not {value!r}")
        parsed = cls(**options)
        for name, value, choices in (
            ("dtype", parsed.dtype, ("auto", "float32", "bfloat16")),
            ("pooling", parsed.pooling, (None, *st_folder.POOLINGS)),
            ("activation", parsed.activation, (None, *st_folder.ACTIVATIONS)),
        ):
            if value not in choices:
                raise UsageError(f"{name} must be one of {', '.join(filter(None, choices))}, not {value!r}")
        return parsed

    def of_vectors(self) -> dict[str, Any]:
        """The given options that change vectors, and so belong to an encoder wherever it is loaded."""
        names = ("max_length", "max_active_dims", "pooling", "activation")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}

    def applied_to(self, route: SpladeRoute) -> SpladeRoute:
        """`route` with what the options say otherwise."""
        changes = self.of_vectors()
        changes.pop("max_active_dims", None)
        return replace(route, **changes)


class SpladeSide:
    """One direction of an encoder, queries or documents: a route, and its model once that is needed."""

    def __init__(
        self, route: SpladeRoute, options: SpladeOptions, max_active_dims: int | None = None
    ) -> None:
        self.route = options.applied_to(route)
        self.max_active_dims = options.max_active_dims or max_active_dims
        self.options = options
        self._loading = threading.Lock()
        self._model: MaskedLanguageModel | None = None

    @property
    def model(self) -> MaskedLanguageModel:
        """The model, loaded on first use. Raises what `MaskedLanguageModel` raises."""
        with self._loading:
            if self._model is None:
                try:
                    from retrieval.encoders.masked_language_model import MaskedLanguageModel
                except ImportError as error:
                    raise NotFoundError(
                        f"a SPLADE model needs {error.name}; run: pip install 'lexpert[neural]'"
                    ) from None
                self._model = MaskedLanguageModel(
                    self.route.folder,
                    device=self.options.device,
                    dtype=self.options.dtype,
                    token_budget=self.options.token_budget,
                    lower_case=self.route.lower_case,
                    expansion=self._expansion(),
                )
            return self._model

    def _expansion(self) -> TermExpansion | None:
        if self.route.expansion is None:
            return None
        from retrieval.encoders.expansion import TermExpansion

        return TermExpansion.load(self.route.expansion)

    def shares_model_with(self, other: SpladeSide) -> bool:
        """Whether both sides run the same model on the same tokens, apart from prompt and pooling."""
        own, others = (
            (route.folder, route.lower_case, route.expansion) for route in (self.route, other.route)
        )
        return own == others

    def use_model_of(self, other: SpladeSide) -> None:
        self._model = other.model

    def encode(self, texts: Sequence[str], advance: Advance | None = None) -> SparseActivations:
        """See `MaskedLanguageModel.encode`."""
        return self.model.encode(texts, self._weighting(), advance)

    def expansion_of_queries(self, texts: Sequence[str]) -> SparseActivations:
        """See `MaskedLanguageModel.expand_queries`."""
        return self.model.expand_queries(texts, self._weighting())

    def _weighting(self) -> TermWeighting:
        from retrieval.encoders.masked_language_model import TermWeighting

        route = self.route
        return TermWeighting(
            route.pooling,  # type: ignore[arg-type]  # checked where the folder and the options were read
            route.activation,  # type: ignore[arg-type]
            route.max_length,
            route.prompt,
            self.max_active_dims,
        )

    def settings(self) -> dict[str, Any]:
        """What decides about the vectors beside the files."""
        route = self.route
        return {
            "pooling": route.pooling,
            "activation": route.activation,
            "max_length": route.max_length,
            "lower_case": route.lower_case,
            "prompt": route.prompt,
            "max_active_dims": self.max_active_dims,
        }

    def files(self) -> dict[str, Path]:
        """The files that decide about the vectors, by name."""
        expansion = self.route.expansion
        own = {} if expansion is None else {EXPANSION_FILE: expansion / EXPANSION_FILE}
        return model_files(self.route.folder) | own

    def write(self, transformer: Path, pooling: Path, num_units: int, expansion: Path | None = None) -> None:
        """Copy the model's files into `transformer` and write the settings there and into `pooling`; where the side
        has an expansion, it is written into `expansion`, in float32."""
        transformer.mkdir(parents=True, exist_ok=True)
        for name, path in model_files(self.route.folder).items():
            target = transformer / name
            if target.exists() and target.samefile(path):
                raise UsageError(f"the encoder was loaded from {path.parent}; save it into another folder")
            if name == ROUNDED_WEIGHTS:
                _write_whole(self.route.folder, transformer)
            else:
                shutil.copyfile(path, target)
        st_folder.write_splade_settings(self.route, transformer, pooling, num_units)
        own = self._expansion()
        if own is not None and expansion is not None:
            own.save(expansion)


def _write_whole(folder: Path, out: Path) -> None:
    """Write the float32 weights that rounded ones stand for, which every library reads."""
    from safetensors.torch import save_file

    from retrieval.encoders.rounded_weights import load_rounded

    save_file(load_rounded(folder / ROUNDED_WEIGHTS), out / "model.safetensors", {"format": "pt"})


class SpladeEncoder(SparseEncoder):
    """SPLADE over one model, or over two where queries have their own.

    An empty text (or one of white space only) lights up nothing, unlike in sentence-transformers, where it
    gets what the model makes of ``[CLS][SEP]``. All other vectors equal sentence-transformers', special
    tokens included, where a folder has no term expansion, which that library does not know.
    """

    family = "splade"

    def __init__(self, documents: SpladeSide, queries: SpladeSide) -> None:
        """Load the query model; a separate document model is loaded when documents are encoded."""
        self.documents = documents
        self.queries = queries
        self._vocabulary = queries.model.vocabulary
        if documents.shares_model_with(queries):
            documents.use_model_of(queries)

    @classmethod
    def from_folder(cls, folder: Path, **options: Any) -> Self:
        """Read a folder; see `SpladeOptions` for the options.

        Raises:
            FormatError: not a SPLADE folder, incomplete, or with pickled weights.
            UsageError: an unknown option.
        """
        parsed = SpladeOptions.parse(options)
        described = st_folder.read_folder(folder)
        if isinstance(described.queries, TableRoute):
            raise FormatError(f"{folder} encodes queries by a table; it is an inference_free encoder")
        limit = described.max_active_dims
        return cls(
            SpladeSide(described.documents, parsed, limit), SpladeSide(described.queries, parsed, limit)
        )

    @property
    def vocabulary(self) -> Vocabulary:
        return self._vocabulary

    @cached_property
    def fingerprint(self) -> str:  # hashing the weights takes a second
        sides = {"documents": self.documents}
        if not self.documents.shares_model_with(self.queries):
            sides["queries"] = self.queries
        files = {
            f"{name}/{file}": path for name, side in sides.items() for file, path in side.files().items()
        }
        settings = {"documents": self.documents.settings(), "queries": self.queries.settings()}
        return fingerprint({"family": self.family, **settings}, files)

    def encode_documents(self, texts: Sequence[str], advance: Advance | None = None) -> SparseActivations:
        width = len(self.documents.model.vocabulary)
        if width != len(self._vocabulary):
            raise FormatError(
                f"the document model in {self.documents.route.folder} has {width} terms, but the query model "
                f"has {len(self._vocabulary)}; both must share one vocabulary"
            )
        return self.documents.encode(texts, advance)

    def encode_queries(self, texts: Sequence[str]) -> SparseActivations:
        return self.queries.encode(texts)

    def token_lengths(self, texts: Sequence[str]) -> list[int]:
        """Special tokens included, cut at the longest that the query model reads."""
        return self.queries.model.token_lengths(texts, self.queries.route.max_length)

    def save(self, folder: Path) -> None:
        """Write a sentence-transformers folder (version 5 module paths) with the model's files copied.

        Raises:
            UsageError: `folder` is the one that the encoder was loaded from.
        """
        folder.mkdir(parents=True, exist_ok=True)
        documents, queries = self.documents, self.queries
        if replace(documents.route, prompt="") == replace(queries.route, prompt=""):
            modules = st_folder.splade_modules(documents.route)
            transformer, pooling, *expansion = (folder / module for module in modules)
            documents.write(transformer, pooling, len(self._vocabulary), *expansion)
            st_folder.write_modules(folder, modules)
        else:
            routes = {}
            for task, side in (("query", queries), ("document", documents)):
                routes[task] = st_folder.splade_modules(side.route, task)
                transformer, pooling, *expansion = (folder / module for module in routes[task])
                side.write(transformer, pooling, len(self._vocabulary), *expansion)
            st_folder.write_router(folder, routes)
        prompts = {"query": queries.route.prompt, "document": documents.route.prompt}
        st_folder.write_config(folder, prompts, documents.max_active_dims)
        (folder / ENCODER_FILE).write_text(json.dumps({"family": self.family}) + "\n", "utf-8")

    def save_for_search(self, folder: Path) -> None:
        """Write a reference to where the encoder came from, with the options that change its vectors."""
        if self.source is None:
            self.save(folder)
        else:
            write_reference(folder, self, self.documents.options.of_vectors())

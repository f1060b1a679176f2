"""The torch model of uniCOIL and DeepImpact: a transformer, and a head that gives each token one weight.

uniCOIL (Lin & Ma 2021, "A few brief notes on DeepImpact, COIL, and a conceptual framework"): ``relu(a · h + b)``, and
a term weighs as much as its heaviest token, in documents and queries alike. DeepImpact (Mallia et al. 2021): a hidden
layer in the head, a term is a whole word weighed by its first token, and terms of queries weigh 1.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from retrieval.encoders import sentence_transformers_folder as st_folder
from retrieval.encoders.bfloat16 import Precision
from retrieval.encoders.catalogue import ENCODER_FILE
from retrieval.encoders.encoder import Advance
from retrieval.encoders.language_model_folder import quiet
from retrieval.encoders.term_places import TermPlaces, TokenTerms, WholeTerms, frequent_words
from retrieval.encoders.text_transformer import TextTransformer
from retrieval.encoders.token_inputs import Tokens
from runtime.activations import SparseActivations
from runtime.errors import FormatError, UsageError

Family = Literal["unicoil", "deepimpact"]
FORMAT_VERSION = 1
HEAD_FILE = "head.safetensors"
WORDS_FILE = "words.json"


@dataclass(frozen=True)
class TokenWeightSettings:
    """What a folder says beside its weights.

    Attributes:
        max_length: most tokens of a text, special ones included; None means the tokenizer's own limit.
        query_prompt, document_prompt: put before each text; their tokens are weighed as well.
        max_query_length: most tokens of a query; None for `max_length`.
    """

    family: Family
    max_length: int | None = None
    query_prompt: str = ""
    document_prompt: str = ""
    max_query_length: int | None = None


class TokenWeightModel(nn.Module):
    """Weights of terms with gradients, and without: to train an encoder, and to run it.

    Attributes:
        num_terms: width of what `forward` returns.
        settings: see `TokenWeightSettings`.
    """

    def __init__(
        self, reader: TextTransformer, settings: TokenWeightSettings, words: Sequence[Sequence[int]] = ()
    ) -> None:
        """Put a model with a new head together.

        Args:
            reader: transformer and tokenizer.
            words: of DeepImpact, see `WholeTerms`.
        """
        super().__init__()
        self.settings = settings
        self.transformer = reader.model
        self.head = _new_head(settings.family, reader.width).to(reader.device, reader.dtype)
        self._reader = reader
        self._words = [tuple(word) for word in words]
        num_tokens = int(reader.model.config.vocab_size)
        self.terms: TokenTerms | WholeTerms = (
            TokenTerms(reader.tokenizer, num_tokens)
            if settings.family == "unicoil"
            else WholeTerms(reader.tokenizer, num_tokens, self._words)
        )
        self.num_terms = len(self.terms.vocabulary)

    @classmethod
    def start(
        cls,
        base: Path,
        settings: TokenWeightSettings,
        texts: Sequence[str] = (),
        num_words: int = 65536,
        **options: Any,
    ) -> Self:
        """A model to be trained, from any transformer folder.

        At first every token weighs about 1, so that a text starts as the bag of its terms; with weights around 0,
        half of all tokens would start without a gradient.

        Args:
            texts: of DeepImpact: their most frequent words of several tokens get units of their own.
            num_words: at most so many.
            options: of `TextTransformer`.
        """
        reader = TextTransformer(base, **options)
        words: list[tuple[int, ...]] = []
        if settings.family == "deepimpact":
            terms = WholeTerms(reader.tokenizer, int(reader.model.config.vocab_size))
            ids = reader.tokenize(texts, settings.max_length)["input_ids"]
            words = frequent_words(terms, ids, num_words)
        return cls(reader, settings, words)

    @classmethod
    def load(
        cls,
        folder: Path,
        *,
        device: str | None = None,
        dtype: Precision = "float32",
        token_budget: int | None = None,
    ) -> Self:
        """Read what `save` wrote; the model is ready to infer.

        Raises:
            FormatError: another version, or a damaged file.
        """
        from safetensors.torch import load_file

        settings, words = read_settings(folder), read_words(folder)
        reader = TextTransformer(folder, device=device, dtype=dtype, token_budget=token_budget)
        model = cls(reader, settings, words)
        try:
            model.head.load_state_dict(load_file(folder / HEAD_FILE))
        except Exception as error:  # safetensors and torch raise a handful of types
            raise FormatError(
                f"the head {folder / HEAD_FILE} cannot be read ({str(error).splitlines()[0]}); save the encoder again"
            ) from None
        return model.eval()

    def tokenize(self, texts: Sequence[str], queries: bool = False) -> Tokens:
        """Tokens of each text, cut at the longest of documents or of queries; prompts are the caller's."""
        return self._reader.tokenize(texts, self._limit(queries))

    def batches(
        self, texts: Sequence[str], advance: Advance | None = None, queries: bool = False
    ) -> Iterator[tuple[NDArray[np.int64], Tokens]]:
        """See `TextTransformer.batches`."""
        return self._reader.batches(texts, self._limit(queries), advance)

    def _limit(self, queries: bool) -> int | None:
        limit = self.settings.max_query_length if queries else None
        return self.settings.max_length if limit is None else limit

    def forward(self, tokens: Tokens) -> Tensor:
        """Term weights of documents, with gradients: float32 ``[rows, num_terms]``, all ≥ 0."""
        places, weights = self._weighed(tokens)
        dense = weights.new_zeros(len(tokens["input_ids"]), self.num_terms)
        if not len(places.rows):
            return dense
        at = torch.from_numpy(places.rows).to(dense.device), torch.from_numpy(places.units).to(dense.device)
        return dense.index_put(at, weights)

    def forward_queries(self, tokens: Tokens) -> Tensor:
        """Term weights of queries: as documents in uniCOIL, 1 for each word, without gradients, in DeepImpact."""
        if self.settings.family == "unicoil":
            weights: Tensor = self(tokens)
            return weights
        return self.query_terms(tokens).torch().to_dense().to(self.transformer.device)

    def activations(self, tokens: Tokens) -> SparseActivations:
        """Term weights of documents without a dense matrix; otherwise as `forward`."""
        with torch.inference_mode():
            places, weights = self._weighed(tokens)
        return places.activations(weights.cpu().numpy(), len(tokens["input_ids"]), self.num_terms)

    def query_terms(self, tokens: Tokens) -> SparseActivations:
        """Weights of the terms of DeepImpact's queries; see `WholeTerms` for those below 1."""
        places = self.terms.places(tokens["input_ids"])
        places = places.heaviest(places.shares, self.num_terms)
        return places.activations(places.shares, len(tokens["input_ids"]), self.num_terms)

    def _weighed(self, tokens: Tokens) -> tuple[TermPlaces, Tensor]:
        """One place for each term of each text, sorted by row and unit, and the weights there, float32."""
        hidden, _ = self._reader.hidden_states(tokens)
        weights = self.head(hidden).squeeze(-1).float().relu()
        places = self.terms.places(tokens["input_ids"])
        if self.settings.family == "unicoil":
            every: NDArray[np.float32] = weights.detach().cpu().numpy()
            places = places.heaviest(every[places.rows, places.positions], self.num_terms)
        else:
            places = places.first(self.num_terms)
        rows, positions = (
            torch.from_numpy(values).to(weights.device) for values in (places.rows, places.positions)
        )
        return places, weights[rows, positions]

    def save(self, folder: Path) -> None:
        """Write an encoder folder, which `SparseEncoder.load` reads; the file that says so comes last."""
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        (folder / ENCODER_FILE).unlink(missing_ok=True)
        with quiet():
            self.transformer.save_pretrained(folder)
        self._reader.tokenizer.save_pretrained(folder)
        save_file(
            {name: value.contiguous() for name, value in self.head.state_dict().items()}, folder / HEAD_FILE
        )
        (folder / WORDS_FILE).write_text(json.dumps(self._words) + "\n", "utf-8")
        write_settings(folder, self.settings)


def read_settings(folder: Path) -> TokenWeightSettings:
    """What the folder says about itself.

    Raises:
        FormatError: it has another version, or is damaged.
    """
    path = folder / ENCODER_FILE
    described = st_folder.read_object(path)
    if described.get("version") != FORMAT_VERSION:
        raise FormatError(
            f"{path} has version {described.get('version')!r}, but this lexpert reads version {FORMAT_VERSION}; "
            "save the encoder again or install that lexpert"
        )
    family = described.get("family")
    if family not in ("unicoil", "deepimpact"):
        raise FormatError(f"{path} names the family {family!r}; known here are unicoil and deepimpact")
    prompts = [described.get(name, "") for name in ("query_prompt", "document_prompt")]
    if not all(isinstance(prompt, str) for prompt in prompts):
        raise FormatError(f"{path}: prompts must be texts")
    documents, queries = (
        st_folder.length_in(described, name, path) for name in ("max_length", "max_query_length")
    )
    query_prompt, document_prompt = prompts
    return TokenWeightSettings(family, documents, query_prompt, document_prompt, queries)


def write_settings(folder: Path, settings: TokenWeightSettings) -> None:
    described = {**asdict(settings), "version": FORMAT_VERSION}
    (folder / ENCODER_FILE).write_text(json.dumps(described, indent=2) + "\n", "utf-8")


def read_words(folder: Path) -> list[tuple[int, ...]]:
    """Tokens of the words with units of their own; none in uniCOIL."""
    path = folder / WORDS_FILE
    try:
        words = json.loads(path.read_text("utf-8"))
        if not all(type(token) is int for word in words for token in word):
            raise ValueError("a token must be a whole number")
        return [tuple(word) for word in words]
    except FileNotFoundError:
        raise FormatError(f"{path} is missing; save the encoder again") from None
    except (ValueError, TypeError) as error:
        raise FormatError(f"{path} is damaged ({error}); save the encoder again") from None


def limited(settings: TokenWeightSettings, max_length: int | None) -> TokenWeightSettings:
    """`settings` with another limit of tokens for documents and queries, if there is one."""
    return settings if max_length is None else replace(settings, max_length=max_length, max_query_length=None)


def _new_head(family: Family, width: int) -> nn.Sequential:
    if family not in ("unicoil", "deepimpact"):
        raise UsageError(f"there is no family {family!r} of token weights; there are unicoil and deepimpact")
    last = nn.Linear(width, 1)
    with torch.no_grad():
        last.weight.normal_(0.0, 0.02)
        last.bias.fill_(1.0)
    return (
        nn.Sequential(last)
        if family == "unicoil"
        else nn.Sequential(nn.Linear(width, width), nn.ReLU(), last)
    )

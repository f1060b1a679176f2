"""A transformer with a masked-language-model head that turns texts into term weights."""

from __future__ import annotations

import copy
import logging
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from retrieval.encoders.bfloat16 import Precision, choose_dtype, processor_has_bfloat16
from retrieval.encoders.encoder import Advance
from retrieval.encoders.expansion import TermExpansion
from retrieval.encoders.language_model_folder import load_language_model, load_tokenizer
from retrieval.encoders.subword_vocabulary import SubwordVocabulary
from retrieval.encoders.text_vector import TextVectors
from retrieval.encoders.token_batches import token_batches
from retrieval.encoders.token_inputs import Tokens, chosen, padded, tokenize, usable_positions
from retrieval.encoders.vocabulary_head import Activation, Pooling, plain_pooled_terms, pooled_terms
from retrieval.encoders.vocabulary_screen import VocabularyScreen
from runtime.activations import SparseActivations
from runtime.errors import LexpertError

SORT_WINDOW = 8192
"""Texts that are tokenized and sorted by length together."""

MAX_ROWS = 256
"""Most texts of one batch: each costs a dense row of the vocabulary (122 KB for BERT's)."""

SparseRow = tuple[NDArray[np.int32], NDArray[np.float32]]
"""Units, ascending, and weights."""

NO_TERMS: SparseRow = (np.zeros(0, np.int32), np.zeros(0, np.float32))

PROBE_TEXTS = (
    "What is a sparse vector?",
    "The quick brown fox jumps over the lazy dog, twice; then it rests.",
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TermWeighting:
    """How logits become term weights, and what is put before and cut from each text.

    Attributes:
        max_length: most tokens of a text, special ones included; None means the tokenizer's own limit. It is
            never more than the model has positions for.
        max_active_dims: keep only so many terms of each text, the heaviest.
    """

    pooling: Pooling = "max"
    activation: Activation = "relu"
    max_length: int | None = None
    prompt: str = ""
    max_active_dims: int | None = None


class DecoderInput(nn.Module):
    """Stands in for the decoder of the vocabulary head and returns its input instead of logits.

    Keeps the decoder's parameters, under their names, for heads that look at them.
    """

    def __init__(self, decoder: nn.Linear) -> None:
        super().__init__()
        self.weight = decoder.weight
        self.bias = decoder.bias

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden


class MaskedLanguageModel:
    """A ``*ForMaskedLM`` folder, ready to encode; safetensors weights only, and no code from the folder.

    Attributes:
        fused: whether decoder and pooling run fused, in tiles. False where the model does not end in a plain
            linear decoder; then all logits of a batch are held at once, and the log says so.
        dtype: what the model computes in; term weights are float32 in any case.
        expansion: what is added to the weights that the head gives.
    """

    def __init__(
        self,
        folder: Path,
        *,
        device: str | None = None,
        dtype: Precision = "auto",
        token_budget: int | None = None,
        lower_case: bool = False,
        expansion: TermExpansion | None = None,
    ) -> None:
        """Load the model.

        Args:
            folder: holds config.json, model.safetensors and the tokenizer.
            device: a torch device; CUDA where there is one by default.
            dtype: see `choose_dtype`.
            token_budget: most tokens of a batch, padding included; by default 4096 on a CPU, where larger
                batches are no faster, and 65536 elsewhere.
            lower_case: lower-case texts before the tokenizer sees them.
            expansion: adds to the weights of terms what it makes of texts as a whole.

        Raises:
            FormatError: the folder is no masked language model with complete safetensors weights, or its
                tokenizer is missing, damaged or another model's, or the expansion is.
        """
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.token_budget = token_budget or (4096 if self.device.type == "cpu" else 65536)
        self.model = load_language_model(folder).to(self.device)
        self.tokenizer = load_tokenizer(folder, lower_case, int(self.model.config.vocab_size))
        self._positions = usable_positions(self.model)
        with torch.inference_mode():
            logits = self.model(**self._padded(self._tokenize(PROBE_TEXTS))).logits
        self.vocabulary = SubwordVocabulary(self.tokenizer.get_vocab(), logits.shape[-1])
        self._decoder: nn.Linear | None = None
        self._screen: VocabularyScreen | None = None
        self._making_screen = threading.Lock()
        self._vectors: TextVectors | None = None
        self._making_vectors = threading.Lock()
        self.fused = self._fuse(logits)
        if not self.fused:
            logger.warning(
                "%s does not end in a plain linear decoder: its logits are held whole, batch by batch", folder
            )
        self.expansion: TermExpansion | None = None
        self.dtype = choose_dtype(dtype, processor_has_bfloat16(self.device), self._probe)
        self.model.to(self.dtype)
        if expansion is not None:
            expansion.require_fit(len(self.vocabulary), int(self.model.config.hidden_size))
            self.expansion = expansion.to(self.device)
            self._listen()

    def encode(
        self, texts: Sequence[str], weighting: TermWeighting, advance: Advance | None = None
    ) -> SparseActivations:
        """Encode texts; float32 weights > 0, units ascending and distinct, rows in the order of `texts`.

        A text without a token of its own (empty, or white space only) lights up nothing: what the model would
        make of the special tokens alone says nothing about the text.

        Raises:
            LexpertError: the model computed NaN or infinity.
        """
        rows = [NO_TERMS] * len(texts)
        for places, tokens in self._batches(texts, weighting, advance):
            found, _ = self._weigh_sparse(tokens, weighting, self.expansion)
            for place, row in zip(places, found, strict=True):
                rows[place] = row
        return self._together(rows)

    def encode_with_pooled(
        self, texts: Sequence[str], weighting: TermWeighting, advance: Advance | None = None
    ) -> tuple[SparseActivations, NDArray[np.float32]]:
        """What the vocabulary head alone makes of texts, without an expansion, and their dense vectors, in one pass.

        Returns:
            The term weights, and float32 ``[texts, width]``: see `text_vector`. A text without a token of its own
            has zeros.

        Raises:
            FormatError: the model has no body apart from its head.
            LexpertError: the model computed NaN or infinity.
        """
        self._listen()
        rows = [NO_TERMS] * len(texts)
        vectors = np.zeros((len(texts), int(self.model.config.hidden_size)), np.float32)
        for places, tokens in self._batches(texts, weighting, advance):
            found, pooled = self._weigh_sparse(tokens, weighting, None)
            assert pooled is not None  # there is a listener
            self._check_finite(pooled)
            vectors[places] = pooled.cpu().numpy()
            for place, row in zip(places, found, strict=True):
                rows[place] = row
        return self._together(rows), vectors

    def expand_queries(self, texts: Sequence[str], weighting: TermWeighting) -> SparseActivations:
        """What the expansion alone gives queries, see `TermExpansion.query_terms`, in the form of `encode`.

        Raises:
            LexpertError: the model computed NaN or infinity.
        """
        rows = [NO_TERMS] * len(texts)
        if self.expansion is None:
            return self._together(rows)
        for places, tokens in self._batches(texts, weighting, None):
            with torch.inference_mode():
                *_, vectors = self._run(tokens)
                assert vectors is not None  # where there is an expansion, there is a listener
                found = self.expansion.query_terms(vectors)
            self._check_finite(found)
            for place, row in zip(places, _sparse_rows(found, None), strict=True):
                rows[place] = row
        return self._together(rows)

    def _together(self, rows: Sequence[SparseRow]) -> SparseActivations:
        if not rows:
            return SparseActivations.empty(0, len(self.vocabulary))
        indptr = np.zeros(len(rows) + 1, np.int64)
        np.cumsum([len(units) for units, _ in rows], out=indptr[1:])
        units = np.concatenate([units for units, _ in rows])
        return SparseActivations(indptr, units, np.concatenate([w for _, w in rows]), len(self.vocabulary))

    def _batches(
        self, texts: Sequence[str], weighting: TermWeighting, advance: Advance | None
    ) -> Iterator[tuple[list[int], Tokens]]:
        """Places and tokens of batches of texts of similar length; texts without a token of their own are left out."""
        for start in range(0, len(texts), SORT_WINDOW):
            window = texts[start : start + SORT_WINDOW]
            given = [place for place, text in enumerate(window) if text.strip()]
            tokens = self._tokenize(
                [weighting.prompt + window[place] for place in given], weighting.max_length
            )
            lengths = [len(ids) for ids in tokens["input_ids"]]
            if advance is not None and len(given) < len(window):
                advance(len(window) - len(given))
            for batch in token_batches(lengths, self.token_budget, MAX_ROWS):
                yield [start + given[place] for place in batch], chosen(tokens, batch.tolist())
                if advance is not None:
                    advance(len(batch))

    def _listen(self) -> None:
        """Have the texts' vectors computed from now on."""
        with self._making_vectors:
            if self._vectors is None:
                self._vectors = TextVectors(self.model)

    def _weigh_sparse(
        self, tokens: Tokens, weighting: TermWeighting, expansion: TermExpansion | None
    ) -> tuple[list[SparseRow], Tensor | None]:
        """What is above 0 in `weigh` of a batch, cut to the heaviest; and the texts' vectors, if they are computed.

        On a processor, in float32, a maximum is computed for those terms alone that a `VocabularyScreen` leaves.
        """
        decoder, limit = self._decoder, weighting.max_active_dims
        screened = self.device.type == "cpu" and self.dtype == torch.float32 and weighting.pooling == "max"
        if decoder is None or not screened:
            dense, vectors = self._weigh_dense(tokens, weighting.pooling, weighting.activation, expansion)
            self._check_finite(dense)
            return _sparse_rows(dense, limit), vectors
        lengths = [len(ids) for ids in tokens["input_ids"]]
        rows = []
        with torch.inference_mode():
            hidden, vectors = self._decoder_inputs(tokens)
            self._check_finite(hidden)
            screen = self._screen_of(decoder)
            parts = zip(hidden.split(lengths), screen.candidates(hidden, lengths), strict=True)
            expanded = self._expanded(vectors, expansion)
            for place, (part, terms) in enumerate(parts):
                at = torch.from_numpy(terms)
                bias = None if decoder.bias is None else decoder.bias[at]
                weights = pooled_terms(
                    part, [len(part)], decoder.weight[at], bias, "max", weighting.activation
                )
                self._check_finite(weights)
                ((places, values),) = _sparse_rows(weights, None)
                row = (terms[places].astype(np.int32), values)
                if expanded is not None:
                    row = with_added(row, expanded[place].numpy())
                rows.append(row if limit is None else heaviest(*row, limit))
        return rows, vectors

    def _expanded(self, vectors: Tensor | None, expansion: TermExpansion | None) -> Tensor | None:
        """float32 ``[texts, terms]``, what is added to the weights of the head."""
        if vectors is None or expansion is None:
            return None
        expanded = expansion.terms(vectors)
        self._check_finite(expanded)
        return expanded

    def _screen_of(self, decoder: nn.Linear) -> VocabularyScreen:
        """The screen of the decoder's weights, made when it is first needed."""
        with self._making_screen:
            if self._screen is None:
                self._check_finite(decoder.weight)
                if decoder.bias is not None:
                    self._check_finite(decoder.bias)
                hidden, _ = self._decoder_inputs(self._tokenize(PROBE_TEXTS))
                self._screen = VocabularyScreen(decoder.weight.detach(), decoder.bias, hidden.mean(dim=0))
            return self._screen

    def _decoder_inputs(self, tokens: Tokens) -> tuple[Tensor, Tensor | None]:
        """What the decoder of a fused model reads for each token, one text after the other, without padding; and the
        texts' vectors."""
        output, mask, vectors = self._run(tokens)
        return output[mask.bool()], vectors

    def _run(self, tokens: Tokens) -> tuple[Tensor, Tensor, Tensor | None]:
        """The logits of a batch, or where the model is fused what its decoder reads; its mask; the texts' vectors."""
        inputs, listener = self._padded(tokens), self._vectors
        mask = inputs["attention_mask"]
        output: Tensor = self.model(**inputs).logits
        return output, mask, None if listener is None else listener.take(mask)

    def _check_finite(self, numbers: Tensor) -> None:
        if not bool(torch.isfinite(numbers).all()):
            raise LexpertError(
                f"the model computed NaN or infinity in {self.dtype}; "
                "load the encoder with dtype=float32 or check its weights"
            )

    def weigh(self, tokens: Tokens, pooling: Pooling, activation: Activation) -> Tensor:
        """Term weights of tokenized texts, run as one batch; those of an expansion are added.

        Without an expansion, on the hidden states of one batch, this is `plain_pooled_terms` within float32 rounding,
        see `pooled_terms`. The hidden states themselves depend on what else is in the batch: padding changes the
        shapes of the transformer's products, and with them the order of addition. So a text encoded in two
        batches differs in the last digits (up to 1e-5 in small models with large weights), fused or not.

        Args:
            tokens: of each text, not padded.

        Returns:
            float32 ``[rows, terms]``, dense.
        """
        weights, _ = self._weigh_dense(tokens, pooling, activation, self.expansion)
        return weights

    def _weigh_dense(
        self, tokens: Tokens, pooling: Pooling, activation: Activation, expansion: TermExpansion | None
    ) -> tuple[Tensor, Tensor | None]:
        """See `weigh`; and the texts' vectors, if they are computed."""
        decoder = self._decoder
        with torch.inference_mode():
            if decoder is None:
                logits, mask, vectors = self._run(tokens)
                weights = plain_pooled_terms(logits, mask, pooling, activation)
            else:
                lengths = [len(ids) for ids in tokens["input_ids"]]
                hidden, vectors = self._decoder_inputs(tokens)
                weights = pooled_terms(hidden, lengths, decoder.weight, decoder.bias, pooling, activation)
            expanded = self._expanded(vectors, expansion)
            return (weights if expanded is None else weights.add_(expanded)), vectors

    def token_lengths(self, texts: Sequence[str], max_length: int | None = None) -> list[int]:
        """Tokens of each text, special ones included, cut at `max_length`."""
        return [len(ids) for ids in self._tokenize(texts, max_length)["input_ids"]]

    def _tokenize(self, texts: Sequence[str], max_length: int | None = None) -> Tokens:
        limit = min(max_length or int(self.tokenizer.model_max_length), self._positions)
        return tokenize(self.tokenizer, texts, limit)

    def _padded(self, tokens: Tokens) -> dict[str, Tensor]:
        return padded(tokens, self.tokenizer.pad_token_id or 0, self.device)

    def _fuse(self, logits: Tensor) -> bool:
        """Take the decoder out of the model, if its input times its weights is what `logits` says."""
        decoder = self.model.get_output_embeddings()
        if not isinstance(decoder, nn.Linear) or decoder.out_features != logits.shape[-1]:
            return False
        name = next((name for name, module in self.model.named_modules() if module is decoder), None)
        if name is None:
            return False
        self.model.set_submodule(name, DecoderInput(decoder))
        with torch.inference_mode():
            hidden = self.model(**self._padded(self._tokenize(PROBE_TEXTS))).logits
            if hidden.shape[-1] == decoder.in_features and torch.allclose(
                decoder(hidden), logits, rtol=1e-4, atol=1e-4
            ):
                self._decoder = decoder
                return True
        self.model.set_submodule(name, decoder)
        return False

    def _probe(self, dtype: torch.dtype) -> Tensor:
        """Dense vectors of the probe texts in `dtype`; the model itself stays as it is."""
        trial = copy.copy(self)
        trial.model = copy.deepcopy(self.model).to(dtype)
        if self._decoder is not None:
            trial._decoder = copy.deepcopy(self._decoder).to(dtype)
        return trial.weigh(self._tokenize(PROBE_TEXTS), "max", "relu")


def _sparse_rows(dense: Tensor, max_active_dims: int | None) -> list[SparseRow]:
    """The nonzero places and values of each row, cut to the heaviest; equal weights keep the lower unit."""
    at, units = torch.nonzero(dense, as_tuple=True)
    weights = dense[at, units].cpu().numpy()
    ends = np.cumsum(torch.bincount(at, minlength=len(dense)).cpu().numpy())[:-1]
    rows = list(
        zip(np.split(units.cpu().numpy().astype(np.int32), ends), np.split(weights, ends), strict=True)
    )
    if max_active_dims is None:
        return rows
    return [heaviest(units, weights, max_active_dims) for units, weights in rows]


def with_added(row: SparseRow, more: NDArray[np.float32]) -> SparseRow:
    """The sum of a row and of a dense one, ``[terms]``."""
    total = more.copy()
    units, weights = row
    total[units] += weights
    lit = np.flatnonzero(total)
    return lit.astype(np.int32), total[lit]


def heaviest(
    units: NDArray[np.int32], weights: NDArray[np.float32], count: int
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Keep the `count` heaviest of a row with ascending units; of equal weights the lower unit stays."""
    if len(units) <= count:
        return units, weights
    kept = np.sort(np.argsort(-weights, kind="stable")[:count])
    return units[kept], weights[kept]

"""A cross-encoder as a teacher: it reads query and passage together and gives one score for the pair.

Any ``*ForSequenceClassification`` folder with one output, or with two, of which the second means relevant; the score
is then the difference of the two, which is the log-odds of relevance.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from retrieval.encoders.fingerprint import fingerprint, model_files
from retrieval.training.row_cache import CacheUse, DenseRows, text_keys
from runtime.errors import FormatError, LexpertError, NotFoundError
from runtime.progress import Advance

if TYPE_CHECKING:
    from torch import Tensor

MAX_LENGTH = 512
PAIRS_AT_ONCE = 2048
"""Pairs that are tokenized and sorted by length together, and kept together."""


class CrossEncoder:
    """A model that scores pairs, ready to run; safetensors weights only, and no code from its folder."""

    def __init__(
        self,
        folder: Path,
        *,
        device: str | None = None,
        max_length: int = MAX_LENGTH,
        token_budget: int | None = None,
    ) -> None:
        """Load the model.

        Args:
            folder: holds config.json, model.safetensors and the tokenizer.
            device: a torch device; CUDA where there is one by default.
            max_length: most tokens of a pair; the longer of the two texts is cut first.
            token_budget: most tokens of a batch, padding included; by default 4096 on a CPU and 65536 elsewhere.

        Raises:
            NotFoundError: there is no such folder, or torch and transformers are missing.
            FormatError: it holds no classifier with one or two outputs and complete weights, or its tokenizer is
                missing or another model's.
        """
        if not folder.is_dir():
            raise NotFoundError(f"there is no folder {folder}; give one with a cross-encoder")
        try:
            import torch

            from retrieval.encoders.language_model_folder import load_classifier, load_tokenizer
            from retrieval.encoders.token_inputs import usable_positions
        except ImportError as error:
            raise NotFoundError(
                f"a cross-encoder needs {error.name}; run: pip install 'lexpert[neural]'"
            ) from None
        self.folder = folder
        self._device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self._token_budget = token_budget or (4096 if self._device.type == "cpu" else 65536)
        self._model = load_classifier(folder).to(self._device)
        if self._model.config.num_labels not in (1, 2):
            raise FormatError(
                f"{folder} gives {self._model.config.num_labels} scores for a pair, but a cross-encoder for retrieval "
                "gives one, or one for irrelevant and one for relevant"
            )
        self._tokenizer = load_tokenizer(folder, False, int(self._model.config.vocab_size))
        self._max_length = min(
            max_length, int(self._tokenizer.model_max_length), usable_positions(self._model)
        )

    @cached_property
    def fingerprint(self) -> str:
        """Hexadecimal SHA-256 over everything that changes the scores."""
        settings = {"family": "cross_encoder", "max_length": self._max_length}
        return fingerprint(settings, model_files(self.folder))

    def score(
        self, queries: Sequence[str], passages: Sequence[str], advance: Advance = lambda _: None
    ) -> NDArray[np.float32]:
        """float32 ``[pairs]``: the score of each query with the passage at the same place, before any sigmoid.

        Raises:
            LexpertError: the model computed NaN or infinity.
        """
        import torch

        from retrieval.encoders.token_batches import token_batches
        from retrieval.encoders.token_inputs import chosen, padded

        scores = np.empty(len(queries), np.float32)
        for start in range(0, len(queries), PAIRS_AT_ONCE):
            end = start + PAIRS_AT_ONCE
            tokens = self._tokenize(queries[start:end], passages[start:end])
            lengths = [len(ids) for ids in tokens["input_ids"]]
            for batch in token_batches(lengths, self._token_budget, len(lengths)):
                inputs = padded(
                    chosen(tokens, batch.tolist()), self._tokenizer.pad_token_id or 0, self._device
                )
                with torch.inference_mode():
                    scores[start + batch] = _one_score(self._model(**inputs).logits).float().cpu().numpy()
                advance(len(batch))
        if not np.isfinite(scores).all():
            raise LexpertError(f"the cross-encoder {self.folder} computed NaN or infinity; check its weights")
        return scores

    def _tokenize(self, queries: Sequence[str], passages: Sequence[str]) -> dict[str, Any]:
        encoded = self._tokenizer(
            list(queries),
            list(passages),
            truncation="longest_first",
            max_length=self._max_length,
            padding=False,
            return_attention_mask=False,
        )
        return {name: encoded[name] for name in ("input_ids", "token_type_ids") if name in encoded}


def _one_score(logits: Tensor) -> Tensor:
    return logits[:, 0] if logits.shape[1] == 1 else logits[:, 1] - logits[:, 0]


class CrossEncoderScores:
    """Scores of pairs of a training set, from the cache where they are there."""

    def __init__(
        self,
        encoder: CrossEncoder,
        name: str,
        queries: Sequence[str],
        passages: Sequence[str],
        cache: Path,
        use: CacheUse,
    ) -> None:
        self.name = name
        self.fingerprint = encoder.fingerprint
        self._encoder = encoder
        self._queries = queries
        self._passages = passages
        self._rows = DenseRows(cache, use, "cross_encoder", encoder.fingerprint)

    def pair_scores(
        self, queries: NDArray[Any], passages: NDArray[Any], advance: Advance = lambda _: None
    ) -> NDArray[np.float32]:
        """float32 ``[n]``: the score of each query with the passage at the same place, both given by number."""
        asked = [self._queries[number] for number in queries.tolist()]
        against = [self._passages[number] for number in passages.tolist()]

        def make(places: NDArray[np.int64], done: Advance) -> NDArray[np.float32]:
            chosen = places.tolist()
            return self._encoder.score(
                [asked[place] for place in chosen], [against[place] for place in chosen], done
            )

        found: NDArray[np.float32] = self._rows.rows(text_keys(asked, against), make, advance, PAIRS_AT_ONCE)
        return found

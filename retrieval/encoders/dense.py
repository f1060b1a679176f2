"""Dense encoders: teachers, and what sparse codes are learned over. One float32 vector for each text.

Reads sentence-transformers folders (a transformer, pooling, and any number of linear layers and normalisations)
and plain transformer folders, which are pooled by the mean, with transformers alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from retrieval.encoders import sentence_transformers_folder as st_folder
from retrieval.encoders.dense_folder import DenseFolder, LinearLayer, Normalize, Pooling, read_dense_folder
from retrieval.encoders.encoder import Advance
from retrieval.encoders.fingerprint import fingerprint, model_files
from runtime.errors import FormatError, LexpertError, NotFoundError, UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from retrieval.encoders.text_transformer import TextTransformer

OPTIONS = ("device", "dtype", "token_budget", "max_length", "normalize")


class DenseEncoder:
    """A transformer that gives one vector for each text; scores are dot products of its vectors.

    Vectors equal sentence-transformers' within 1e-5 in float32. An empty text gets what the model makes of its
    special tokens alone, as there.

    Attributes:
        described: what the folder and the options say.
        width: number of dimensions.
        source: the absolute folder that the encoder was loaded from.
    """

    def __init__(self, described: DenseFolder, transformer: TextTransformer) -> None:
        self.source = str(described.folder.resolve())
        self.described = described
        self._transformer = transformer
        self._steps, self.width = _steps(described, transformer)

    @classmethod
    def load(cls, folder: str | Path, **options: Any) -> Self:
        """Read a sentence-transformers folder or a plain transformer folder.

        Args:
            options: ``device`` and ``token_budget``, see `TextTransformer`; ``dtype``, ``"float32"`` by default,
                since scores of teachers and codes are learned from small differences; ``max_length``, the most
                tokens of a text; ``normalize=True`` brings vectors to length 1 at the end if the folder does not
                say so itself.

        Raises:
            NotFoundError: there is no such folder, or torch and transformers are missing.
            FormatError: it holds another kind of encoder, pickled weights, or damaged files.
            UsageError: an unknown option.
        """
        return cls.from_description(read_dense_folder(Path(folder)), **options)

    @classmethod
    def from_description(cls, described: DenseFolder, **options: Any) -> Self:
        """Load what a folder was read as; options and errors are those of `load`."""
        for name in options:
            if name not in OPTIONS:
                raise UsageError(f"a dense encoder has no option {name!r}; it has {', '.join(OPTIONS)}")
        try:
            from retrieval.encoders.text_transformer import TextTransformer
        except ImportError as error:
            raise NotFoundError(
                f"a dense encoder needs {error.name}; run: pip install 'lexpert[neural]'"
            ) from None
        described = replace(described, max_length=options.get("max_length") or described.max_length)
        if options.get("normalize"):
            described = replace(described, steps=(*described.steps, Normalize()))
        transformer = TextTransformer(
            described.transformer,
            device=options.get("device"),
            dtype=options.get("dtype", "float32"),
            token_budget=options.get("token_budget"),
            lower_case=described.lower_case,
        )
        return cls(described, transformer)

    @cached_property
    def fingerprint(self) -> str:
        """Hexadecimal SHA-256 over everything that changes the vectors, apart from the dtype of the model."""
        described = self.described
        layers = [step for step in described.steps if isinstance(step, LinearLayer)]
        settings = {
            "family": "dense",
            "steps": [step.settings() for step in described.steps],
            "max_length": described.max_length,
            "lower_case": described.lower_case,
            "prompts": [described.query_prompt, described.document_prompt],
        }
        files = {f"transformer/{name}": path for name, path in model_files(described.transformer).items()}
        files |= {f"layer {i}": layer.folder / st_folder.WEIGHTS for i, layer in enumerate(layers)}
        return fingerprint(settings, files)

    def encode_documents(self, texts: Sequence[str], advance: Advance | None = None) -> NDArray[np.float32]:
        """Float32 ``[texts, width]`` in the order of `texts`; `advance` is called with each number of texts done.

        Raises:
            LexpertError: the model computed NaN or infinity.
        """
        return self._encode([self.described.document_prompt + text for text in texts], advance)

    def encode_queries(self, texts: Sequence[str], advance: Advance | None = None) -> NDArray[np.float32]:
        """Encode queries, in the same form as documents."""
        return self._encode([self.described.query_prompt + text for text in texts], advance)

    def token_lengths(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text, special ones included, prompts not, cut at the longest."""
        return [len(ids) for ids in self._transformer.tokenize(texts, self.described.max_length)["input_ids"]]

    def _encode(self, texts: Sequence[str], advance: Advance | None) -> NDArray[np.float32]:
        import torch

        vectors = np.empty((len(texts), self.width), np.float32)
        with torch.inference_mode():
            for places, tokens in self._transformer.batches(texts, self.described.max_length, advance):
                hidden, mask = self._transformer.hidden_states(tokens)
                pooled = self._steps(hidden.float(), mask)
                if not bool(torch.isfinite(pooled).all()):
                    raise LexpertError(
                        f"the model computed NaN or infinity in {self._transformer.dtype}; "
                        "load the encoder with dtype=float32 or check its weights"
                    )
                vectors[places] = pooled.cpu().numpy()
        return vectors


def _steps(
    described: DenseFolder, transformer: TextTransformer
) -> tuple[Callable[[Tensor, Tensor], Tensor], int]:
    """What follows the transformer as one function of hidden states and mask, and the width of its result."""
    import torch

    pooling, *rest = described.steps
    assert isinstance(pooling, Pooling)
    width = transformer.width * len(pooling.modes)
    layers: list[Callable[[Tensor], Tensor]] = []
    for step in rest:
        if isinstance(step, LinearLayer):
            linear = step.load(width).to(transformer.device)
            layers.append(linear)
            width = step.outputs
        else:
            layers.append(lambda pooled: torch.nn.functional.normalize(pooled, dim=1))

    def run(hidden: Tensor, mask: Tensor) -> Tensor:
        pooled = torch.cat([pool(hidden, mask, mode) for mode in pooling.modes], dim=1)
        for layer in layers:
            pooled = layer(pooled)
        return pooled

    return run, width


def pool(hidden: Tensor, mask: Tensor, mode: str) -> Tensor:
    """One vector from the hidden states of a text's tokens.

    Args:
        hidden: float32 ``[rows, length, width]``.
        mask: ``[rows, length]``, 1 where there is a token; rows are padded behind and have a token or more.
        mode: one of `dense_folder.POOLINGS`.

    Returns:
        float32 ``[rows, width]``.
    """
    import torch

    weights = mask.unsqueeze(-1).to(hidden.dtype)
    lengths = weights.sum(1)
    if mode == "cls":
        return hidden[:, 0]
    if mode == "lasttoken":
        return hidden[torch.arange(len(hidden), device=hidden.device), mask.sum(1) - 1]
    if mode == "max":
        return hidden.masked_fill(weights == 0, float("-inf")).amax(1)
    total = (hidden * weights).sum(1)
    if mode == "mean":
        return total / lengths
    if mode == "mean_sqrt_len_tokens":
        return total / lengths.sqrt()
    raise FormatError(f"there is no pooling {mode!r} here")

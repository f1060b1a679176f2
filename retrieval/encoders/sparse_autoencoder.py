"""Sparse codes of dense vectors: the few latents of an autoencoder that a vector lights up (CSR).

``z = relu(W (x - b) + c)`` with most entries set to 0, and ``Wᵀ z + b`` back, as in Wen et al. 2025, "Beyond
Matryoshka: Revisiting Sparse Coding for Adaptive Representation". Which entries stay is one of

- ``top_k``: the k highest of each vector;
- ``mutual_choice``: the highest of all vectors together, k for each on average;
- ``feature_choice``: of each latent the vectors that light it up most, so that vectors have k on average and all
  latents are used alike;

the latter two after Ayonrinde 2024, "Adaptive Sparse Allocation with Mutual Choice & Feature Choice Sparse
Autoencoders" (arXiv 2411.02124). There the choice is made within a batch; here, once trained, against thresholds that
make the same choice on the training vectors, so that a text's code does not depend on what it is encoded with.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self, get_args

import numpy as np
from numpy.typing import NDArray

from retrieval.encoders import sentence_transformers_folder as st_folder
from runtime.activations import SparseActivations
from runtime.errors import FormatError, InputError
from runtime.select import TopK

Allocation = Literal["top_k", "mutual_choice", "feature_choice"]
ALLOCATIONS: tuple[Allocation, ...] = get_args(Allocation)

LATENTS_AT_ONCE = 1 << 22
"""Most activations held before the choice: 16 MiB."""

ALLOCATION_FILE = "allocation.safetensors"
"""Thresholds of the other allocations, beside the weights; sentence-transformers knows top-k alone."""


@dataclass(frozen=True, eq=False)
class SparseAutoencoder:
    """The trained weights, in NumPy.

    Attributes:
        weight: W, float32 ``[latents, width]``.
        latent_bias: c, float32 ``[latents]``.
        bias: b, float32 ``[width]``.
        k: latents of a vector: exactly (at most, where fewer are above 0) or, with thresholds, on average.
        layer_norm: whether vectors are brought to mean 0 and standard deviation 1 first.
        thresholds: float32 ``[latents]`` where the allocation has any: a latent lights up from it on.
    """

    weight: NDArray[np.float32]
    latent_bias: NDArray[np.float32]
    bias: NDArray[np.float32]
    k: int
    allocation: Allocation = "top_k"
    layer_norm: bool = False
    thresholds: NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        latents, width = self.weight.shape
        if self.latent_bias.shape != (latents,) or self.bias.shape != (width,):
            raise FormatError(
                f"the biases of an autoencoder of {latents} latents over {width} values do not fit it"
            )
        if self.allocation not in ALLOCATIONS or (self.allocation == "top_k") != (self.thresholds is None):
            raise FormatError(
                f"the allocation {self.allocation!r} does not fit the thresholds of the autoencoder"
            )
        if self.thresholds is not None and self.thresholds.shape != (latents,):
            raise FormatError(f"an autoencoder of {latents} latents has {self.thresholds.shape} thresholds")

    def activations(self, vectors: NDArray[Any]) -> NDArray[np.float32]:
        """All latents before the choice: float32 ``[rows, latents]``, ≥ 0."""
        if vectors.ndim != 2 or vectors.shape[1] != self.weight.shape[1]:
            raise InputError(
                f"the autoencoder takes vectors of {self.weight.shape[1]} values, not {vectors.shape}"
            )
        if self.layer_norm:
            vectors = vectors - vectors.mean(1, keepdims=True)
            deviations: NDArray[np.float32] = vectors.std(1, ddof=1, keepdims=True)
            vectors /= deviations + np.float32(1e-5)
        latents: NDArray[np.float32] = (vectors - self.bias) @ self.weight.T + self.latent_bias
        return np.maximum(latents, 0, out=latents)

    def codes(self, vectors: NDArray[np.float32], k: int | None = None) -> SparseActivations:
        """The code of each vector: float32 weights > 0, units ascending. `k` overrides that of top-k, and caps the
        codes of the other allocations."""
        rows = max(1, LATENTS_AT_ONCE // len(self.weight))
        parts = [
            self._chosen(self.activations(vectors[start : start + rows]), k)
            for start in range(0, len(vectors), rows)
        ]
        return SparseActivations.concat(parts) if parts else SparseActivations.empty(0, len(self.weight))

    def _chosen(self, latents: NDArray[np.float32], k: int | None) -> SparseActivations:
        if self.thresholds is not None:
            latents = np.where(latents >= self.thresholds, latents, np.float32(0))
        limit = k if k is not None or self.thresholds is not None else self.k
        if limit is not None:
            kept = TopK(limit)(latents)
            latents = np.zeros_like(latents)
            latents[np.repeat(np.arange(kept.num_rows), np.diff(kept.indptr)), kept.units] = kept.weights
        return SparseActivations.from_dense(latents)

    def save(self, folder: Path) -> None:
        """Write a module folder of sentence-transformers, and thresholds beside it."""
        from safetensors.numpy import save_file

        folder.mkdir(parents=True, exist_ok=True)
        latents, width = self.weight.shape
        tensors = {
            "encoder.weight": self.weight,
            "latent_bias": self.latent_bias,
            "pre_bias": self.bias,
            "stats_last_nonzero": np.zeros(latents, np.int64),
        }
        save_file(
            {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()},
            folder / st_folder.WEIGHTS,
        )
        if self.thresholds is not None:
            save_file(
                {"thresholds": self.thresholds}, folder / ALLOCATION_FILE, {"allocation": self.allocation}
            )
        config = {
            "input_dim": width,
            "hidden_dim": latents,
            "k": self.k,
            "k_aux": min(512, latents),
            "normalize": self.layer_norm,
            "dead_threshold": 30,
        }
        st_folder.write_json(folder / "config.json", config)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what `save` or sentence-transformers wrote.

        Raises:
            FormatError: a file is missing or damaged.
        """
        from safetensors import safe_open
        from safetensors.numpy import load_file

        path = folder / "config.json"
        config = st_folder.read_object(path)
        k = st_folder.length_in(config, "k", path)
        if k is None:
            raise FormatError(f"{path} does not say k")
        allocation: Any = "top_k"
        thresholds = None
        try:
            tensors = load_file(folder / st_folder.WEIGHTS)
            weight = tensors.get("encoder.weight", tensors.get("decoder.linear.weight"))
            if weight is None:
                raise KeyError("encoder.weight")
            if (folder / ALLOCATION_FILE).is_file():
                with safe_open(folder / ALLOCATION_FILE, "np") as file:
                    allocation = (file.metadata() or {})["allocation"]
                    thresholds = file.get_tensor("thresholds")
            rest = tensors["latent_bias"], tensors["pre_bias"]
        except Exception as error:  # safetensors raises a handful of types
            raise FormatError(
                f"the autoencoder in {folder} cannot be read ({json.dumps(str(error))})"
            ) from None
        weight, latent_bias, bias = (np.asarray(tensor, np.float32) for tensor in (weight, *rest))
        return cls(weight, latent_bias, bias, k, allocation, bool(config.get("normalize", False)), thresholds)

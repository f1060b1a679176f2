"""Training of the autoencoder of sparse codes (CSR) over vectors that are computed once.

The loss adds up, with weights (Wen et al. 2025; after Gao et al. 2024, "Scaling and evaluating sparse autoencoders"):

- the error of the vectors restored from their codes with k latents, and, times 1/8, with 4k;
- times .1, the error of restoring what is missing from latents that lit up for nothing in the last 30 steps, so that
  they find a use;
- the contrastive loss of the codes: a text's code is to be closer to that of its pair than to those of others. Without
  pairs a code is its own pair, which keeps the codes of different texts apart.

Errors are relative to the variance of the vectors, so that 1 is what their mean alone would give, and the weights mean
the same for any vectors.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from retrieval.encoders.sparse_autoencoder import ALLOCATIONS, Allocation, SparseAutoencoder
from runtime.errors import InputError, LexpertError, UsageError

FOUR_K_WEIGHT = 1 / 8
DEAD_AFTER = 30
AUXILIARY_LATENTS = 512
"""Most dead latents that take part in restoring one vector."""

THRESHOLD_VECTORS = 32768
"""Vectors that the thresholds are read from: 200 MB for 1,536 latents."""

TEMPERATURE = 0.05
"""Cosines of codes are divided by it before the softmax of the contrastive loss."""


@dataclass(frozen=True)
class CsrSettings:
    """What is trained and how.

    Attributes:
        k: latents of a code, on average.
        hidden_factor: latents for each value of a dense vector.
        allocation: see `SparseAutoencoder`.
        steps: batches.
        batch: vectors of a batch; with pairs, half of them are queries.
        learning_rate: of Adam, falling to 0 over the last half.
        auxiliary: weight of the loss on latents out of use.
        contrastive: weight of the contrastive loss.
        seed: of the first weights and the order of the vectors.
    """

    k: int = 32
    hidden_factor: int = 4
    allocation: Allocation = "top_k"
    steps: int = 2000
    batch: int = 512
    learning_rate: float = 1e-3
    auxiliary: float = 0.1
    contrastive: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("k", "hidden_factor", "steps", "batch"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} must be 1 or more, not {getattr(self, name)}")
        for name in ("learning_rate", "auxiliary", "contrastive"):
            value = getattr(self, name)
            if not (np.isfinite(value) and value >= 0):
                raise UsageError(f"{name} must be a number of 0 or more, not {value}")
        if self.allocation not in ALLOCATIONS:
            raise UsageError(
                f"the allocation must be one of {', '.join(ALLOCATIONS)}, not {self.allocation!r}"
            )


@dataclass(frozen=True)
class CsrStep:
    """Losses of one step, not weighted, and how many latents are out of use."""

    step: int
    restored: float
    restored_4k: float
    auxiliary: float
    contrastive: float
    dead: int


def allocate(latents: Tensor, budget: int, allocation: Allocation) -> Tensor:
    """Set all latents of a batch to 0 but those that the allocation keeps.

    Args:
        latents: ``[rows, latents]``, ≥ 0.
        budget: how many to keep for each row: exactly, or on average. Of feature choice, each latent keeps as many
            rows as its share of the whole comes to, rounded, and at least one.

    Returns:
        ``[rows, latents]`` with gradients where something is kept.
    """
    rows, width = latents.shape
    if allocation == "mutual_choice":
        kept = latents.flatten().topk(min(budget * rows, latents.numel())).indices
        mask = torch.zeros(latents.numel(), dtype=torch.bool, device=latents.device)
        return latents * mask.index_fill_(0, kept, True).view_as(latents)
    if allocation == "feature_choice":
        share = min(max(round(budget * rows / width), 1), rows)
        kept = latents.topk(share, dim=0).indices
        return latents * torch.zeros_like(latents, dtype=torch.bool).scatter_(0, kept, True)
    kept = latents.topk(min(budget, width), dim=1).indices
    return latents * torch.zeros_like(latents, dtype=torch.bool).scatter_(1, kept, True)


def thresholds_of(latents: NDArray[np.float32], k: int, allocation: Allocation) -> NDArray[np.float32] | None:
    """Where latents light up from, so that what an allocation keeps of all these vectors stays the same for each alone.

    Args:
        latents: of the training vectors, float32 ``[rows, latents]``, ≥ 0. Sorted in place.

    Returns:
        float32 ``[latents]``, all above 0; None for top-k.
    """
    rows, width = latents.shape
    least = np.nextafter(np.float32(0), np.float32(1))
    if allocation == "mutual_choice":
        place = latents.size - min(k * rows, latents.size)
        lowest = np.partition(latents.ravel(), place)[place]
        return np.full(width, max(lowest, least), np.float32)
    if allocation == "feature_choice":
        share = min(max(round(k * rows / width), 1), rows)
        latents.partition(rows - share, axis=0)
        return np.maximum(latents[rows - share], least).astype(np.float32)
    return None


def train_autoencoder(
    vectors: NDArray[np.float32],
    settings: CsrSettings,
    pairs: NDArray[np.int64] | None = None,
    report: Callable[[CsrStep], None] | None = None,
    every: int = 100,
) -> SparseAutoencoder:
    """Train on vectors; the same settings and vectors give the same autoencoder.

    Args:
        vectors: float32 ``[rows, width]``.
        pairs: int64 ``[pairs, 2]``, rows that belong together: a query and what answers it. None trains each vector
            for itself.
        report: called at the first step, every `every` steps and at the last.

    Raises:
        InputError: there are fewer than two vectors or pairs, or a value is not finite.
        LexpertError: the loss became NaN or infinite.
    """
    choices = len(vectors) if pairs is None else len(pairs)
    if choices < 2 or vectors.ndim != 2:
        raise InputError(f"an autoencoder is trained on two vectors or pairs or more, not {choices}")
    if not np.isfinite(vectors).all():
        raise InputError(
            "a vector to train the autoencoder on is not finite; check the dense encoder's weights"
        )
    generator = np.random.default_rng(settings.seed)
    trained = _Autoencoder(vectors, settings, generator)
    data = torch.from_numpy(np.ascontiguousarray(vectors, np.float32))
    variance = float(np.var(vectors, axis=0, dtype=np.float64).mean()) or 1.0
    optimizer = torch.optim.Adam(trained.parameters(), lr=settings.learning_rate)
    order, at = generator.permutation(choices), 0
    size = min(settings.batch if pairs is None else max(settings.batch // 2, 2), choices)
    for step in range(1, settings.steps + 1):
        if at + size > choices:
            order, at = generator.permutation(choices), 0
        chosen, at = order[at : at + size], at + size
        rows = chosen if pairs is None else pairs[chosen].T.ravel()
        for group in optimizer.param_groups:
            left = (settings.steps - step + 1) / settings.steps
            group["lr"] = settings.learning_rate * min(1.0, 2 * left)
        losses, loss = trained.losses(data[torch.from_numpy(rows)], variance, pairs is not None)
        if not bool(torch.isfinite(loss)):
            raise LexpertError(
                f"the loss of the autoencoder is {loss.item()} at step {step}; try a lower learning_rate"
            )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if report is not None and (step == 1 or step % every == 0 or step == settings.steps):
            restored, wide, auxiliary, contrastive = (float(part.detach()) for part in losses)
            report(CsrStep(step, restored, wide, auxiliary, contrastive, trained.num_dead))
    return trained.finished(vectors)


class _Autoencoder:
    def __init__(
        self, vectors: NDArray[np.float32], settings: CsrSettings, generator: np.random.Generator
    ) -> None:
        width = vectors.shape[1]
        latents = settings.hidden_factor * width
        weight = generator.standard_normal((latents, width), np.float32)
        weight /= np.linalg.norm(weight, axis=1, keepdims=True)
        self.settings = settings
        self.weight = torch.from_numpy(weight).requires_grad_()
        self.latent_bias = torch.zeros(latents, requires_grad=True)
        self.bias = torch.from_numpy(vectors.mean(0, dtype=np.float64).astype(np.float32)).requires_grad_()
        self.unused = torch.zeros(latents, dtype=torch.int64)

    def parameters(self) -> list[Tensor]:
        return [self.weight, self.latent_bias, self.bias]

    @property
    def num_dead(self) -> int:
        return int((self.unused > DEAD_AFTER).sum())

    def losses(self, vectors: Tensor, variance: float, paired: bool) -> tuple[list[Tensor], Tensor]:
        """The four losses, and their weighted sum."""
        settings = self.settings
        latents = ((vectors - self.bias) @ self.weight.t() + self.latent_bias).relu()
        code = allocate(latents, settings.k, settings.allocation)
        restored = code @ self.weight + self.bias
        wide = allocate(latents, 4 * settings.k, settings.allocation) @ self.weight + self.bias
        lit = (code.detach() > 0).any(0)
        self.unused = torch.where(lit, torch.zeros_like(self.unused), self.unused + 1)
        dead = self.unused > DEAD_AFTER
        auxiliary = vectors.new_zeros(())
        if bool(dead.any()) and settings.auxiliary:
            missing = (vectors - restored).detach()
            revived = allocate(latents[:, dead], min(AUXILIARY_LATENTS, int(dead.sum())), "top_k")
            auxiliary = (revived @ self.weight[dead] - missing).square().mean() / missing.var().clamp(
                min=1e-12
            )
        losses = [
            (restored - vectors).square().mean() / variance,
            (wide - vectors).square().mean() / variance,
            auxiliary,
            _contrastive(code, paired) if settings.contrastive else vectors.new_zeros(()),
        ]
        weights = (1.0, FOUR_K_WEIGHT, settings.auxiliary, settings.contrastive)
        return losses, torch.stack(
            [weight * loss for weight, loss in zip(weights, losses, strict=True)]
        ).sum()

    def finished(self, vectors: NDArray[np.float32]) -> SparseAutoencoder:
        """The autoencoder with its thresholds, which a part of many vectors sets."""
        settings = self.settings
        weight, latent_bias, bias = (parameter.detach().numpy() for parameter in self.parameters())
        thresholds = None
        if settings.allocation != "top_k":
            generator = np.random.default_rng(settings.seed)
            some = generator.choice(len(vectors), min(len(vectors), THRESHOLD_VECTORS), replace=False)
            every = SparseAutoencoder(weight, latent_bias, bias, settings.k).activations(
                vectors[np.sort(some)]
            )
            thresholds = thresholds_of(every, settings.k, settings.allocation)
        return SparseAutoencoder(
            weight, latent_bias, bias, settings.k, settings.allocation, thresholds=thresholds
        )


def _contrastive(code: Tensor, paired: bool) -> Tensor:
    unit = torch.nn.functional.normalize(code, dim=1)
    left, right = unit.chunk(2) if paired else (unit, unit)
    targets = torch.arange(len(left), device=code.device)
    return torch.nn.functional.cross_entropy(left @ right.t() / TEMPERATURE, targets)

"""A random router: rows from N(0, .02²) (Komatsuzaki et al. 2023, "Sparse Upcycling")."""

from __future__ import annotations

import torch
from torch import Tensor

STD = 0.02


def random_rows(num_rows: int, width: int, generator: torch.Generator) -> Tensor:
    """Rows of a router, float32 ``[num_rows, width]``."""
    return torch.randn(num_rows, width, generator=generator) * STD

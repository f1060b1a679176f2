"""How many threads torch computes with, for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from runtime.cores import available_cores


@contextmanager
def torch_threads(count: int | None) -> Iterator[None]:
    """Compute on so many threads, or on one for each core that the process may use."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or available_cores())
    try:
        yield
    finally:
        torch.set_num_threads(before)

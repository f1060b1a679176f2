"""Routers whose logits a test writes down itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from moe.routing.router import Tokens


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def with_logits() -> Callable[..., Any]:
    """``with_logits(router, logits, **fields)``: the routing of tokens that have these logits.

    The router's gate becomes the identity, and the hidden states the logits.
    """

    def route(router: Any, logits: NDArray[np.float32], **fields: Any) -> Any:
        with torch.no_grad():
            router.gate.weight.copy_(torch.eye(*router.gate.weight.shape))
        return router(Tokens(torch.from_numpy(logits), **fields))

    return route

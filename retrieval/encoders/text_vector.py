"""The dense vector of a text, taken from a masked language model while it computes what its head reads.

It is what a dense encoder with the same transformer gives: the mean of the last hidden states of all tokens, special
ones included, scaled to length 1.
"""

from __future__ import annotations

import threading
from typing import Any

import torch
from torch import Tensor

from retrieval.encoders.dense import pool
from runtime.errors import FormatError


class TextVectors:
    """Listens to the body of a masked language model; after each forward pass, `take` gives the texts' vectors.

    Each thread takes those of its own passes. A model with a listener cannot be copied.
    """

    def __init__(self, model: Any) -> None:
        """Listen to `model` from now on.

        Raises:
            FormatError: the model has no body apart from its head.
        """
        if model.base_model is model:
            raise FormatError(
                f"{type(model).__name__} has no transformer apart from its vocabulary head, so that its texts have no "
                "dense vectors; use a model such as BERT's"
            )
        self._latest = threading.local()
        model.base_model.register_forward_hook(self._keep)

    def _keep(self, _body: Any, _inputs: Any, output: Any) -> None:
        self._latest.hidden = output.last_hidden_state

    def take(self, mask: Tensor) -> Tensor:
        """Vectors of the texts of the latest pass, once.

        Args:
            mask: ``[rows, length]``, 1 where there is a token.

        Returns:
            float32 ``[rows, width]``, of length 1.
        """
        hidden: Tensor = self._latest.__dict__.pop("hidden")
        return torch.nn.functional.normalize(pool(hidden.float(), mask, "mean"), dim=1)

"""Terms that a text as a whole stands for, beside those that its tokens light up.

After SpaDE (Choi et al. 2022, "SpaDE: Improving Sparse Representations using a Dual Document Encoder for First-stage
Retrieval"): the weight of term j in a text is the sum of what the vocabulary head gives it and of an expansion, which
here reads the text's dense vector x (see `text_vector`):

    w_j = activation(max_i logit_ij) + max(0, W_j · x + b_j)

In an encoder folder it is a module of its own, after pooling, with one file.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from retrieval.encoders.checked_tensors import load_checked, save_checked
from retrieval.encoders.fingerprint import EXPANSION_FILE
from retrieval.encoders.rounded_weights import Bits, restored, rounded
from runtime.errors import FormatError, UsageError

VERSION = "1"
FORM = "term_expansion"


class TermExpansion:
    """The matrix and the bias of an expansion.

    Attributes:
        weight: float32 ``[terms, width]``.
        bias: float32 ``[terms]``.
    """

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        """Take what a training made.

        Raises:
            UsageError: the shapes do not fit each other, or a value is NaN or infinite.
        """
        if weight.ndim != 2 or bias.shape != weight.shape[:1]:
            raise UsageError(
                f"a term expansion has weights [terms, width] and a bias [terms], not {list(weight.shape)} and "
                f"{list(bias.shape)}; give tensors of those shapes"
            )
        self.weight, self.bias = (tensor.detach().float().contiguous() for tensor in (weight, bias))
        if not (bool(torch.isfinite(self.weight).all()) and bool(torch.isfinite(self.bias).all())):
            raise UsageError("the term expansion has weights that are NaN or infinite; train it again")

    @property
    def num_terms(self) -> int:
        return len(self.weight)

    @property
    def width(self) -> int:
        return self.weight.shape[1]

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what `save` wrote.

        Raises:
            FormatError: the file is missing, damaged, of another version, or does not hold an expansion.
        """
        path = folder / EXPANSION_FILE
        tensors = restored(load_checked(path, FORM, VERSION), path)
        if set(tensors) != {"weight", "bias"}:
            raise FormatError(
                f"{path} must hold weight and bias, not {', '.join(sorted(tensors)) or 'nothing'}; "
                "save the encoder again"
            )
        try:
            return cls(tensors["weight"], tensors["bias"])
        except UsageError as error:
            raise FormatError(f"{path} cannot be used: {error}") from None

    def save(self, folder: Path, bits: Bits | None = None) -> None:
        """Write the module's file into `folder`; it appears when it is whole.

        Args:
            bits: of the weights, see `rounded_weights`; None keeps float32.

        Raises:
            UsageError: values do not fit so few bits.
        """
        folder.mkdir(parents=True, exist_ok=True)
        tensors: Mapping[str, Tensor] = {"weight": self.weight.cpu(), "bias": self.bias.cpu()}
        if bits is not None:
            tensors = rounded(tensors, {"weight": bits})
        save_checked(tensors, folder / EXPANSION_FILE, FORM, VERSION)

    def require_fit(self, num_terms: int, width: int) -> None:
        """Check that the expansion is of a model with so many terms and hidden states of this width.

        Raises:
            FormatError: it is another model's.
        """
        if (self.num_terms, self.width) != (num_terms, width):
            raise FormatError(
                f"the term expansion is of {self.num_terms} terms and vectors of {self.width} values, but the model "
                f"has {num_terms} terms and vectors of {width}; use the expansion that was trained with the model"
            )

    def to(self, device: torch.device) -> Self:
        """The same on a device of torch."""
        return type(self)(self.weight.to(device), self.bias.to(device))

    def terms(self, pooled: Tensor) -> Tensor:
        """What the expansion gives each term.

        Args:
            pooled: float32 ``[texts, width]``, of length 1.

        Returns:
            float32 ``[texts, terms]``, all ≥ 0.
        """
        return torch.addmm(self.bias, pooled, self.weight.t()).relu_()

"""The activations of experts by transformers' names, for NumPy and for torch."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from runtime.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

ALIASES = {
    "swish": "silu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_pytorch_tanh",
    "gelu_fast": "gelu_pytorch_tanh",
    "gelu_accurate": "gelu_pytorch_tanh",
    "gelu_python_tanh": "gelu_pytorch_tanh",
}
"""Other names of the same function."""


def numpy_activation(name: str) -> Callable[[Any], Any]:
    """The activation as its formula."""
    return _NUMPY[canonical_activation(name)]


def torch_activation(name: str) -> Callable[[Tensor], Tensor]:
    """The activation in torch's own operations, differentiable; may return its argument itself."""
    return _torch()[canonical_activation(name)]


@cache
def _torch() -> dict[str, Callable[[Tensor], Tensor]]:
    from torch import sigmoid, tanh
    from torch.nn import functional

    return {
        "gelu": functional.gelu,
        "gelu_pytorch_tanh": lambda x: functional.gelu(x, approximate="tanh"),
        "leaky_relu": functional.leaky_relu,
        "linear": lambda x: x,
        "mish": functional.mish,
        "quick_gelu": lambda x: x * sigmoid(1.702 * x),
        "relu": functional.relu,
        "relu2": lambda x: functional.relu(x).square(),
        "relu6": functional.relu6,
        "sigmoid": sigmoid,
        "silu": functional.silu,
        "tanh": tanh,
    }


def canonical_activation(name: str) -> str:
    """The name that the tables use.

    Raises:
        UsageError: there is no such activation.
    """
    canonical = ALIASES.get(name, name)
    if canonical not in _NUMPY:
        known = ", ".join(sorted({*_NUMPY, *ALIASES}))
        raise UsageError(f"experts have no activation {name!r}; choose from {known}")
    return canonical


def _sigmoid(x: Any) -> Any:
    return 0.5 * (1 + np.tanh(0.5 * x))


_erf = np.vectorize(math.erf, otypes=[np.float64])

_NUMPY: dict[str, Callable[[Any], Any]] = {
    "gelu": lambda x: 0.5 * x * (1 + _erf(x / math.sqrt(2))),
    "gelu_pytorch_tanh": lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "leaky_relu": lambda x: np.where(x > 0, x, 0.01 * x),
    "linear": lambda x: x,
    "mish": lambda x: x * np.tanh(np.logaddexp(0, x)),
    "quick_gelu": lambda x: x * _sigmoid(1.702 * x),
    "relu": lambda x: np.maximum(x, 0),
    "relu2": lambda x: np.maximum(x, 0) ** 2,
    "relu6": lambda x: np.clip(x, 0, 6),
    "sigmoid": _sigmoid,
    "silu": lambda x: x * _sigmoid(x),
    "tanh": np.tanh,
}

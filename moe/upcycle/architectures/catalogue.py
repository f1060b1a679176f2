"""Finds the rules of an architecture by its model type."""

from __future__ import annotations

from importlib import import_module

from moe.upcycle.rules import Architecture
from runtime.errors import UsageError

_HOMES = {
    "bert": "moe.upcycle.architectures.bert",
    "distilbert": "moe.upcycle.architectures.distilbert",
    "llama": "moe.upcycle.architectures.llama",
    "mistral": "moe.upcycle.architectures.mistral",
    "modernbert": "moe.upcycle.architectures.modernbert",
    "qwen2": "moe.upcycle.architectures.qwen2",
    "qwen3": "moe.upcycle.architectures.qwen3",
}
"""Model type to the module that holds its rules as ``ARCHITECTURE``."""


def architecture_of(model_type: str) -> Architecture:
    """The rules for a model type.

    Raises:
        UsageError: there are none; names those that there are.
    """
    if model_type not in _HOMES:
        raise UsageError(
            f"there are no upcycling rules for the architecture {model_type!r}; known are {', '.join(_HOMES)}"
        )
    architecture: Architecture = import_module(_HOMES[model_type]).ARCHITECTURE
    return architecture

"""Training of language models with experts, on the Trainer of transformers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from runtime.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from moe.training.settings import TrainingSettings
    from moe.training.training import TrainingReport, train

__all__ = ["TrainingReport", "TrainingSettings", "train"]

_HOMES = {
    "TrainingReport": "moe.training.training",
    "TrainingSettings": "moe.training.settings",
    "train": "moe.training.training",
}

__getattr__ = lazy_exports(__name__, _HOMES)

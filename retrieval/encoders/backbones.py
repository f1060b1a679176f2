"""Models that transformers learns about from another part of the project, before a folder of theirs is loaded."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path

BACKBONES = {"moe_": "moe.models"}
"""Start of a model type to the module that registers such types with transformers when it is imported."""


def register_backbone(folder: Path) -> None:
    """Import what the model type in a folder's config.json needs; nothing where it says none of `BACKBONES`."""
    try:
        config = json.loads((folder / "config.json").read_text("utf-8"))
    except (OSError, ValueError):
        return  # transformers says what is wrong with it
    model_type = config.get("model_type") if isinstance(config, dict) else None
    for start, module in BACKBONES.items():
        if isinstance(model_type, str) and model_type.startswith(start):
            import_module(module)

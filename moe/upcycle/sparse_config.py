"""The configuration of a sparse checkpoint."""

from __future__ import annotations

from typing import Any

from moe.upcycle.plan import UpcyclePlan
from moe.upcycle.rules import Target
from runtime.errors import UsageError


def sparse_config(target: Target, config: Any, plan: UpcyclePlan, expert_width: int, auto_class: str) -> Any:
    """The target's configuration, which names the class that loads the checkpoint.

    Args:
        config: of the dense checkpoint.
        auto_class: as in `Architecture`.

    Raises:
        UsageError: transformers refuses it.
    """
    import transformers
    from transformers import AutoConfig

    try:
        sparse = AutoConfig.for_model(target.model_type, **target.config(config, plan, expert_width))
    except Exception as error:  # ValueError, StrictDataclassError, …
        raise UsageError(
            f"transformers refuses the configuration of {target.model_type} that the plan leads to: {error}"
        ) from error
    loaders = getattr(transformers, auto_class)
    sparse.architectures = [loaders._model_mapping[type(sparse)].__name__]
    return sparse

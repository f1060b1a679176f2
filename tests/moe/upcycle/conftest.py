"""Tiny dense checkpoints, saved once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

Dense = Callable[..., Path]


@pytest.fixture(scope="session")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Dense:
    """Makes the folder of a small dense model with random weights: ``dense("llama", attention_bias=True)``."""
    root = tmp_path_factory.mktemp("dense")
    made: dict[str, Path] = {}

    def make(model_type: str, *, dtype: Any = torch.float32, shard: str = "5GB", **changes: Any) -> Path:
        key = repr((model_type, dtype, shard, sorted(changes.items())))
        if key not in made:
            made[key] = root / f"{model_type}-{len(made)}"
            sizes = {
                "vocab_size": 96,
                "hidden_size": 32,
                "intermediate_size": 48,
                "num_hidden_layers": 3,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "max_position_embeddings": 64,
            }
            config = transformers.AutoConfig.for_model(model_type, **sizes | changes)
            model = transformers.AutoModelForCausalLM.from_config(config)
            draw = torch.Generator().manual_seed(0)
            with torch.no_grad():
                for name, parameter in model.named_parameters():
                    mean = 1.0 if "norm" in name else 0.0
                    parameter.copy_(torch.randn(parameter.shape, generator=draw) * 0.15 + mean)
            model.to(dtype).save_pretrained(made[key], max_shard_size=shard)
        return made[key]

    return make


def logits(folder: Path, ids: Any, **options: Any) -> Any:
    """Logits of a folder in plain transformers, float32."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options).eval()
    with torch.inference_mode():
        return model(ids).logits


@pytest.fixture(scope="session")
def ids() -> Any:
    return torch.randint(96, (2, 40), generator=torch.Generator().manual_seed(1))

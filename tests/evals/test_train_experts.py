"""An encoder with experts is trained with the losses of its routers, which retrieval is handed from above."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from moe.stats.recorder import RoutingRecorder
from retrieval.encoders.encoder import SparseEncoder
from retrieval.training.recipe import Recipe
from retrieval.training.training import train
from retrieval.training.training_set import TrainingSet
from runtime.errors import UsageError
from tests.moe.training.conftest import folder_of  # noqa: F401 - fixtures
from tests.retrieval.conftest import make_language_model  # noqa: F401
from tests.retrieval.training.conftest import make_recipe, training_set  # noqa: F401


@pytest.mark.parametrize("part", [None, 3])
def test_the_balance_of_routers_is_trained_in_whole_batches_and_in_parts(
    part: int | None, folder_of: Callable[..., Path], make_recipe: Callable[..., Recipe], training_set: TrainingSet,  # noqa: F811
    tmp_path: Path,
) -> None:  # fmt: skip
    batch = {"queries": 4, "negatives": 1, "max_query_length": 16, "max_passage_length": 24, "part": part}
    base = folder_of("moe_bert", router="top_k", router_options={"top_k": 2})
    weights = []
    for balance in (0.0, 5.0):
        recipe = make_recipe(batch=batch, dropout=0.0, routers={"balance": balance, "z": 0.0})
        out = tmp_path / f"run-{balance}"
        train(recipe, base, training_set, out, watch_routers=RoutingRecorder, device="cpu")
        assert SparseEncoder.load(out / "model").encode_documents(["w1 w2"]).num_units == 64
        weights.append((out / "model" / "model.safetensors").read_bytes())
    assert weights[0] != weights[1]


def test_losses_of_routers_need_experts(
    make_language_model: Callable[..., Path], make_recipe: Callable[..., Recipe], training_set: TrainingSet,  # noqa: F811
    tmp_path: Path,
) -> None:  # fmt: skip
    with pytest.raises(UsageError, match="the model has no experts"):
        train(
            make_recipe(routers={}), make_language_model(), training_set, tmp_path / "run",
            watch_routers=RoutingRecorder, device="cpu",
        )  # fmt: skip

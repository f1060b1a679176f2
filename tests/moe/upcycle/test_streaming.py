"""Memory stays near one feed-forward block, counted tensor by tensor while a checkpoint is written."""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from hypothesis import given  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from safetensors import safe_open  # noqa: E402

from moe.upcycle.architectures.catalogue import architecture_of  # noqa: E402
from moe.upcycle.checkpoint_folder import CheckpointFolder  # noqa: E402
from moe.upcycle.methods.catalogue import method_of  # noqa: E402
from moe.upcycle.plan import UpcyclePlan  # noqa: E402
from moe.upcycle.router_init.start import router_start  # noqa: E402
from moe.upcycle.shard_writer import Output, write_shards  # noqa: E402
from moe.upcycle.translation import Translation, choose_target  # noqa: E402
from tests.moe.upcycle.conftest import Dense  # noqa: E402


def live_bytes() -> int:
    """Bytes of all tensors that are alive and were made after `gc.freeze`, each storage once."""
    storages = {
        thing.untyped_storage().data_ptr(): thing.untyped_storage().nbytes()
        for thing in gc.get_objects()
        if type(thing) is torch.Tensor
    }
    return sum(storages.values())


def test_no_more_than_a_block_and_an_expert_are_in_memory(dense: Dense, tmp_path: Path) -> None:
    folder = CheckpointFolder(
        dense("llama", hidden_size=64, intermediate_size=512, num_hidden_layers=4, vocab_size=64)
    )
    config = folder.config()
    architecture = architecture_of("llama")
    plan = UpcyclePlan(experts=6, method="drop", drop=0.3)
    target = choose_target(architecture, config, plan)
    translation = Translation(
        folder, config, architecture, target, plan, method_of(plan), router_start(plan, {}, torch.relu)
    )
    block = 3 * 64 * 512 * 4
    total = sum(output.num_bytes for output in translation.outputs)
    most = 0

    def advance(_: int) -> None:
        nonlocal most
        most = max(most, live_bytes())

    gc.freeze()
    try:
        write_shards(tmp_path, translation.outputs, advance)
    finally:
        gc.unfreeze()
    assert block <= most <= 2.5 * block
    assert total > 20 * block


@given(
    st.lists(
        st.tuples(
            st.sampled_from([torch.float32, torch.bfloat16, torch.float64]),
            st.lists(st.integers(1, 5), max_size=3),
        ),
        min_size=1,
        max_size=8,
    ),
    st.integers(1, 200),
)
def test_what_is_written_is_what_safetensors_reads(
    tmp_path_factory: pytest.TempPathFactory, kinds: list[Any], shard_bytes: int
) -> None:
    folder = tmp_path_factory.mktemp("shards")
    tensors = {f"t{place}": torch.randn(shape).to(dtype) for place, (dtype, shape) in enumerate(kinds)}

    def pieces(tensor: Any) -> Iterator[Any]:
        yield from (tensor[None] if tensor.ndim == 0 else tensor)  # row by row

    written = 0

    def advance(done: int) -> None:
        nonlocal written
        written += done

    outputs = [
        Output(name, tuple(tensor.shape), tensor.dtype, lambda tensor=tensor: pieces(tensor))
        for name, tensor in tensors.items()
    ]
    write_shards(folder, outputs, advance, shard_bytes)
    assert written == sum(output.num_bytes for output in outputs)
    files = sorted(folder.glob("*.safetensors"))
    if len(files) > 1:
        names = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    else:
        names = dict.fromkeys(tensors, "model.safetensors")
    assert names.keys() == tensors.keys()
    for name, file in names.items():
        with safe_open(folder / file, "pt") as opened:
            assert torch.equal(opened.get_tensor(name), tensors[name])

"""Training in bfloat16, with activations computed again, and in several processes."""

from __future__ import annotations

import os
import pickle
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("accelerate")

import torch
from safetensors.torch import load_file

from moe.stats.recorder import RoutingRecorder
from moe.training import TrainingReport, TrainingSettings, train
from moe.training.router_precision import keep_routers_in_float32
from runtime.errors import UsageError
from runtime.run_folder import RunFolder
from runtime.step_log import read_records
from tests.moe.training.conftest import MakeFolder, tiny_decoder

ROOT = Path(__file__).resolve().parents[3]
SETTINGS = TrainingSettings(
    steps=3, batch_size=2, block=16, learning_rate=1e-2, schedule="constant", eval_every=3, eval_blocks=4
)
BALANCED = {"router": "top_k", "router_options": {"top_k": 2, "balance_rate": 0.1}}


def weights_of(out: Path) -> dict[str, Any]:
    return load_file(out / "model" / "model.safetensors")


def assert_near(a: Path, b: Path) -> None:
    of_a, of_b = weights_of(a), weights_of(b)
    assert of_a.keys() == of_b.keys()
    for name in of_a:
        torch.testing.assert_close(of_a[name], of_b[name], rtol=1e-3, atol=2e-5)


def steps_of(out: Path) -> list[dict[str, Any]]:
    return [record for record in read_records(out / "steps.jsonl") if "loss" in record]


@pytest.fixture(scope="module")
def plain(folder_of: MakeFolder, text: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainingReport:
    """A Mixtral trained in float32, in one process that accumulates two batches."""
    out = tmp_path_factory.mktemp("plain") / "out"
    return train(folder_of("mixtral"), [text], out, replace(SETTINGS, accumulate=2), device="cpu")


def test_bfloat16_keeps_weights_and_optimiser_in_float32_and_learns_the_same(
    plain: TrainingReport, text: Path, tmp_path: Path
) -> None:
    settings = replace(SETTINGS, accumulate=2, precision="bfloat16")
    report = train(plain.model, [text], tmp_path / "out", settings, device="cpu")
    assert report.first_perplexity == pytest.approx(plain.first_perplexity, rel=0.01)
    assert report.first_perplexity != plain.first_perplexity
    assert report.last_perplexity == pytest.approx(plain.last_perplexity, rel=0.03)
    assert all(weights.dtype == torch.float32 for weights in weights_of(tmp_path / "out").values())
    checkpoint = RunFolder(tmp_path / "out").checkpoint(3)
    moments = torch.load(checkpoint / "optimizer.pt", weights_only=True)["state"].values()
    assert {moment["exp_avg"].dtype for moment in moments} == {torch.float32}


@pytest.mark.parametrize("model_type", ["mixtral", "olmoe", "jetmoe"])
def test_routers_see_float32_under_autocast(model_type: str) -> None:
    model = tiny_decoder(model_type)
    keep_routers_in_float32(model)
    ids = torch.randint(5, 64, (2, 16), generator=torch.Generator().manual_seed(0))
    with RoutingRecorder(model) as recorder, torch.autocast("cpu", dtype=torch.bfloat16):
        seen: list[Any] = []
        routers = [model.get_submodule(name) for name in recorder.layers]
        for router in routers:
            router.register_forward_hook(
                lambda router, inputs, output: seen.append((router, inputs[0], output))
            )
        model(input_ids=ids)
    assert len(seen) == len(routers) > 0
    for router, hidden, output in seen:
        weight = router.weight if hasattr(router, "weight") else router.layer.weight
        logits = hidden.float().reshape(-1, 32) @ weight.T
        assert any(
            isinstance(value, torch.Tensor)
            and value.shape == logits.shape
            and torch.allclose(value, logits, atol=1e-5)
            for value in output
        )


@pytest.mark.parametrize("model_type", ["mixtral", "moe_bert"])
def test_checkpointing_trains_to_the_same_weights_and_counts_every_token_once(
    model_type: str, folder_of: MakeFolder, text: Path, tmp_path: Path
) -> None:
    encoder = model_type == "moe_bert"
    folder = folder_of(model_type, **(BALANCED if encoder else {"attention_dropout": 0.1}))
    settings = replace(SETTINGS, objective="masked" if encoder else "causal")
    train(folder, [text], tmp_path / "kept", settings, device="cpu")
    train(folder, [text], tmp_path / "again", replace(settings, checkpointing=True), device="cpu")
    assert_near(tmp_path / "kept", tmp_path / "again")
    for kept, again in zip(steps_of(tmp_path / "kept"), steps_of(tmp_path / "again"), strict=True):
        assert again["loss"] == pytest.approx(kept["loss"], rel=1e-5)
        assert [layer["load"] for layer in again["layers"]] == [layer["load"] for layer in kept["layers"]]


def test_unknown_precisions_are_refused() -> None:
    with pytest.raises(UsageError, match="no precision 'half'; choose from float32, bfloat16"):
        TrainingSettings(precision="half")


PROGRAM = """
import os, pickle, sys
import moe.models, moe.training.trainer
from moe.training import train

port, model, text, out, settings = sys.argv[1:]
child = os.fork()  # what is imported is imported once for both
rank = "0" if child else "1"
os.environ |= {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
report = train(model, [text], out, pickle.loads(bytes.fromhex(settings)), device="cpu", resume=True)
os.write(1, f"{rank} {report.tokens}\\n".encode())  # whole: both write to one pipe
if child:
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def train_in_two_processes(model: str, text: Path, out: Path, settings: TrainingSettings) -> str:
    """As torchrun starts them; what they print."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, port, model, str(text), str(out), pickle.dumps(settings).hex()],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_two_processes_train_to_what_one_does_that_accumulates_twice_as_much(
    plain: TrainingReport, text: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    printed = train_in_two_processes(plain.model, text, out, SETTINGS)
    assert sorted(printed.splitlines()) == [f"0 {plain.tokens}", f"1 {plain.tokens}"]
    assert_near(out, Path(plain.out))
    for ours, theirs in zip(steps_of(out), steps_of(Path(plain.out)), strict=True):
        assert ours["tokens"] == theirs["tokens"] == 2 * 2 * 16
        for name in ("loss", "objective_loss", "balance", "z", "evenness"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-4), name
        assert [layer["load"] for layer in ours["layers"]] == [layer["load"] for layer in theirs["layers"]]
    assert read_records(out / "steps.jsonl")[-1]["held_out_loss"] == pytest.approx(
        read_records(Path(plain.out) / "steps.jsonl")[-1]["held_out_loss"], rel=1e-4
    )

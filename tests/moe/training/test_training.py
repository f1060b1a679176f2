"""Training as a whole: it learns, logs, stops and goes on, and refuses what cannot be."""

from __future__ import annotations

import json
import math
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("accelerate")

import numpy as np
import torch
import transformers
from typer.testing import CliRunner

from moe.training import TrainingReport, TrainingSettings, train
from moe.training.objective import causal_loss
from moe.training.trainer import ExpertTrainer
from runtime.errors import (
    ConflictError,
    FormatError,
    InputError,
    LexpertError,
    NotFoundError,
    UsageError,
)
from runtime.run_folder import RunFolder, open_run
from runtime.step_log import read_records
from tests.moe.training.conftest import MakeFolder, tiny_decoder, word_tokenizer

ROOT = Path(__file__).resolve().parents[3]
SETTINGS = TrainingSettings(
    steps=12, batch_size=4, block=16, learning_rate=1e-2, schedule="constant", eval_every=6, save_every=4
)


def weights_of(out: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(out / "model" / "model.safetensors")


def assert_same_weights(a: Path, b: Path) -> None:
    of_a, of_b = weights_of(a), weights_of(b)
    assert of_a.keys() == of_b.keys()
    assert all(torch.equal(of_a[name], of_b[name]) for name in of_a)


@pytest.fixture(scope="module")
def whole(folder_of: MakeFolder, text: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainingReport:
    """A Mixtral with dropout, trained without interruption."""
    out = tmp_path_factory.mktemp("whole") / "out"
    return train(folder_of("mixtral", attention_dropout=0.1), [text], out, SETTINGS)


def test_training_learns_the_text(whole: TrainingReport) -> None:
    assert whole.last_perplexity < 0.8 * whole.first_perplexity
    assert whole.layers == ["model.layers.0.mlp.gate", "model.layers.1.mlp.gate"]
    assert whole.tokens == 12 * 4 * 16
    assert whole.flops == whole.tokens * whole.flops_per_token


def test_the_trained_model_is_one_of_plain_transformers(whole: TrainingReport) -> None:
    folder = Path(whole.out) / "model"
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    assert model(**tokenizer("w1 w2 w3", return_tensors="pt")).logits.shape == (1, 4, 64)
    assert "experts_implementation" not in json.loads((folder / "config.json").read_text())


def test_every_step_is_logged_with_each_layers_figures(whole: TrainingReport) -> None:
    records = read_records(Path(whole.out) / "steps.jsonl")
    steps = [record for record in records if "loss" in record]
    assert [record["step"] for record in steps] == list(range(1, 13))
    assert [record["step"] for record in records if "held_out_loss" in record] == [0, 6, 12]
    for record in steps:
        layers = record["layers"]
        assert [sum(layer["load"]) for layer in layers] == pytest.approx([1, 1], abs=1e-4)
        routers = sum(0.01 * layer["load_balance"] + 0.001 * layer["z"] for layer in layers)
        assert record["loss"] == pytest.approx(record["objective_loss"] + routers, rel=1e-4)
        assert record["dropped"] == 0
        assert record["balance"] == pytest.approx(sum(layer["load_balance"] for layer in layers) / 2)
    assert (Path(whole.out) / "training.png").stat().st_size > 10_000
    assert any((Path(whole.out) / "tensorboard").iterdir())


def test_a_killed_training_goes_on_to_the_same_weights(
    whole: TrainingReport, text: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    program = (
        "import sys, pickle; from moe.training import train; "
        "model, text, out, settings = sys.argv[1:]; "
        "train(model, [text], out, pickle.loads(bytes.fromhex(settings)))"
    )
    arguments = [whole.model, str(text), str(out), pickle.dumps(SETTINGS).hex()]
    process = subprocess.Popen(
        [sys.executable, "-c", program, *arguments], cwd=ROOT, stderr=subprocess.DEVNULL
    )
    while not (out / "checkpoints/checkpoint-4/complete").exists():
        assert process.poll() is None
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (out / "model").exists()
    # and half of a later checkpoint is there, as after a kill while it is written, and whole records of later steps
    shutil.copytree(out / "checkpoints/checkpoint-4", out / "checkpoints/checkpoint-11")
    (out / "checkpoints/checkpoint-11/complete").unlink()
    with (out / "steps.jsonl").open("a") as log:
        log.write('{"step": 8, "loss": 0.5}\n{"step": 9, "lo')
    report = train(whole.model, [text], out, SETTINGS, resume=True)
    assert_same_weights(out, Path(whole.out))
    assert report.last_perplexity == whole.last_perplexity
    assert report.first_perplexity == whole.first_perplexity
    records, expected = read_records(out / "steps.jsonl"), read_records(Path(whole.out) / "steps.jsonl")
    assert records == expected


def test_a_training_killed_after_its_last_step_trains_no_further(
    whole: TrainingReport, text: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(whole.out, out)
    (out / "report.json").unlink()
    shutil.rmtree(out / "model")
    report = train(whole.model, [text], out, SETTINGS, resume=True)
    assert report.last_perplexity == whole.last_perplexity
    assert_same_weights(out, Path(whole.out))
    assert read_records(out / "steps.jsonl") == read_records(Path(whole.out) / "steps.jsonl")


class StoppedError(Exception):
    pass


def test_a_stopped_encoder_goes_on_over_epochs_with_the_same_masks_and_dropout(
    folder_of: MakeFolder, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # an epoch has 13 batches, 2 in each of its steps but the last, the seventh, where the training is stopped
    settings = replace(
        SETTINGS, objective="masked", steps=9, save_every=7, accumulate=2, max_tokens=1040, held_out=0.2
    )
    router = {"router": "top_k", "router_options": {"top_k": 1, "balance_rate": 0.1, "capacity_factor": 1.0}}
    model = folder_of("moe_bert", **router)
    report = train(model, [text], tmp_path / "whole", settings)
    assert report.layers == ["bert.encoder.layer.1.moe"]
    steps = [record for record in read_records(tmp_path / "whole/steps.jsonl") if "loss" in record]
    assert sum(record["dropped"] for record in steps) > 0
    assert [record["tokens"] for record in steps] == [128] * 6 + [64] + [128] * 2
    finish = ExpertTrainer._save_checkpoint

    def save_and_stop(self: Any, *arguments: Any) -> None:
        finish(self, *arguments)
        raise StoppedError

    monkeypatch.setattr(ExpertTrainer, "_save_checkpoint", save_and_stop)
    with pytest.raises(StoppedError):
        train(model, [text], tmp_path / "stopped", settings)
    monkeypatch.undo()
    assert RunFolder(tmp_path / "stopped").complete_steps() == [7]
    train(model, [text], tmp_path / "stopped", settings, resume=True)
    assert_same_weights(tmp_path / "stopped", tmp_path / "whole")
    assert weights_of(tmp_path / "whole")["bert.encoder.layer.1.moe.router.balance.bias"].any()
    again = train(
        model, [text], tmp_path / "stopped", settings, resume=True
    )  # done: it says so and does nothing
    assert again.last_perplexity == report.last_perplexity


def test_dense_models_are_trained_too(folder_of: MakeFolder, text: Path, tmp_path: Path) -> None:
    report = train(folder_of("llama"), [text], tmp_path / "out", replace(SETTINGS, steps=2, eval_every=2))
    assert report.layers == []
    assert "layers" not in read_records(tmp_path / "out/steps.jsonl")[1]


@pytest.mark.parametrize(("held_out", "blocks"), [(0.02, 4), (0.04, 8)])
def test_every_held_out_block_is_evaluated_whatever_the_batch(
    held_out: float, blocks: int, whole: TrainingReport, text: Path, tmp_path: Path
) -> None:
    settings = replace(SETTINGS, steps=1, held_out=held_out, batch_size=5, learning_rate=0.0)
    report = train(whole.model, [text], tmp_path / "out", settings)
    assert report.held_out_blocks == blocks
    tokens = np.fromfile(tmp_path / "out/tokens.bin", np.int32)
    held = tokens[: len(tokens) // 16 * 16].reshape(-1, 16)[-blocks:].astype(np.int64)
    model = transformers.AutoModelForCausalLM.from_pretrained(whole.model)
    with torch.inference_mode():
        loss = float(causal_loss(model, torch.from_numpy(held)))
    assert report.first_perplexity == pytest.approx(math.exp(loss), rel=1e-4)


def test_a_folder_is_not_written_over(whole: TrainingReport, text: Path) -> None:
    with pytest.raises(ConflictError, match="exists already; go on with --resume"):
        train(whole.model, [text], whole.out, SETTINGS)
    with pytest.raises(
        UsageError, match=r"was started with learning_rate 0.01, .*go on with learning_rate 0.5"
    ):
        train(whole.model, [text], whole.out, replace(SETTINGS, learning_rate=0.5), resume=True)


def test_two_processes_do_not_train_in_one_folder(tmp_path: Path) -> None:
    with (
        open_run(tmp_path / "out", {}, False),
        pytest.raises(ConflictError, match="another process"),
        open_run(tmp_path / "out", {}, True),
    ):
        pass


def test_what_cannot_be_trained_is_refused(folder_of: MakeFolder, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    model = folder_of("mixtral")
    with pytest.raises(UsageError, match="no decoder but an encoder"):
        train(folder_of("moe_bert"), [text], out, SETTINGS)
    with pytest.raises(UsageError, match="is a decoder and predicts no masked tokens"):
        train(model, [text], out, replace(SETTINGS, objective="masked"))
    with pytest.raises(NotFoundError, match=r"no config\.json"):
        train(tmp_path, [text], out, SETTINGS)
    with pytest.raises(NotFoundError, match="missing or no file"):
        train(model, [tmp_path / "none.txt"], out, SETTINGS)
    with pytest.raises(UsageError, match="has 33 tokens, but the model has 32 positions"):
        train(model, [text], out, replace(SETTINGS, block=33))
    bare = tmp_path / "bare"
    tiny_decoder("llama").save_pretrained(bare)
    with pytest.raises(NotFoundError, match="no tokenizer"):
        train(bare, [text], out, SETTINGS)
    assert not out.exists()
    (tmp_path / "other").mkdir()
    (tmp_path / "other/file").touch()
    with pytest.raises(FormatError, match="no folder of a training"):
        train(model, [text], tmp_path / "other", SETTINGS, resume=True)


def test_too_short_a_text_says_how_much_it_is(folder_of: MakeFolder, tmp_path: Path) -> None:
    short = tmp_path / "short.txt"
    short.write_text("w1 w2 w3")
    with pytest.raises(InputError, match="the text has 4 tokens, 0 blocks of 16"):
        train(folder_of("mixtral"), [short], tmp_path / "out", SETTINGS)


def test_what_a_text_that_cannot_be_trained_on_left_is_removed(
    folder_of: MakeFolder, text: Path, tmp_path: Path
) -> None:
    bad, out = tmp_path / "bad.txt", tmp_path / "out"
    model, settings = folder_of("llama"), replace(SETTINGS, steps=1)
    for content in (b"", b"w1 w2 w3", b"w1 w2 \xff w3" * 2000, text.read_bytes()[:400] + b"\xff"):
        bad.write_bytes(content)
        with pytest.raises(InputError):
            train(model, [bad], out, settings)
        assert not out.exists()
    out.mkdir()
    with pytest.raises(InputError):
        train(model, [bad], out, settings)
    assert list(out.iterdir()) == []
    # and what a killed process left while it read the text hinders no mended command
    (out / "training.json").write_text("{}")
    (out / "tokens.bin.partial").write_bytes(b"1234")
    (out / "mine").touch()
    with pytest.raises(InputError):
        train(model, [bad], out, settings, resume=True)
    assert [path.name for path in out.iterdir()] == ["mine"]
    (out / "mine").unlink()
    bad.write_bytes(text.read_bytes())
    assert train(model, [bad], out, settings).steps == 1


def test_a_training_that_took_a_step_stays(tmp_path: Path) -> None:
    def stop_at(step: int) -> None:
        with open_run(tmp_path / "out", {}, False) as run:
            run.log.write_text(json.dumps({"step": step}) + "\n")
            raise StoppedError

    for step, stays in ((0, False), (1, True)):
        with pytest.raises(StoppedError):
            stop_at(step)
        assert (tmp_path / "out").exists() == stays


def test_a_text_that_changed_is_not_gone_on_with(whole: TrainingReport, text: Path, tmp_path: Path) -> None:
    out, copy = tmp_path / "out", tmp_path / "text.txt"
    copy.write_bytes(text.read_bytes())
    settings = replace(SETTINGS, steps=1)
    train(whole.model, [copy], out, settings)
    os.utime(copy)  # a copy of another time is the same text
    train(whole.model, [copy], out, settings, resume=True)
    copy.write_bytes(text.read_bytes().replace(b"w1", b"w2"))
    with pytest.raises(UsageError, match=r"the text has changed since .*out was started"):
        train(whole.model, [copy], out, settings, resume=True)
    with pytest.raises(UsageError, match=r"was started with text .*; give the same options") as caught:
        train(whole.model, [text], out, settings, resume=True)
    assert "digest" not in str(caught.value)


def test_a_loss_that_is_no_number_ends_the_training(
    folder_of: MakeFolder, text: Path, tmp_path: Path
) -> None:
    with pytest.raises(LexpertError, match="the loss is nan at step"):
        train(folder_of("llama"), [text], tmp_path / "out", replace(SETTINGS, learning_rate=1e30))


def test_old_checkpoints_go_when_new_ones_are_whole(whole: TrainingReport) -> None:
    assert RunFolder(Path(whole.out)).complete_steps() == [8, 12]


def test_settings_that_cannot_be_are_refused() -> None:
    for wrong, message in (
        ({"steps": 0}, "steps is 0"), ({"block": 1}, "block is 1"), ({"held_out": 1.0}, "held_out is 1.0"),
        ({"warmup": 1000}, "warmup takes 1000"), ({"schedule": "stairs"}, "no schedule 'stairs'"),
        ({"balance": -1.0}, "balance is -1.0"), ({"objective": "both"}, "no objective 'both'"),
        ({"seed": -1}, "the seed is -1"), ({"seed": 2**32}, "a whole number from 0 to 4294967295"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=message):
            TrainingSettings(**wrong)  # type: ignore[arg-type]


def test_the_command_prints_json_and_nothing_else(folder_of: MakeFolder, text: Path, tmp_path: Path) -> None:
    import lexpert

    arguments = [
        "moe", "train", str(folder_of("mixtral")), "--text", str(text), "--out", str(tmp_path / "out"), "--steps",
        "2", "--batch-size", "2", "--block", "8", "--balance", "0.1", "--balance-end", "0", "--json",
    ]  # fmt: skip
    done = CliRunner().invoke(lexpert.app, arguments)
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["steps"] == 2
    steps = [record for record in read_records(tmp_path / "out/steps.jsonl") if "loss" in record]
    assert [record["balance_coefficient"] for record in steps] == [0.1, 0.0]


def test_blocks_hold_the_text_in_order(text: Path, tmp_path: Path) -> None:
    from moe.token_stream import stream_tokens
    from moe.training.blocks import split_blocks, spread, write_tokens

    tokenizer = word_tokenizer()
    write_tokens(stream_tokens([text], tokenizer), tmp_path / "tokens.bin")
    expected = [
        id for document in text.read_text().strip().split("\n\n") for id in tokenizer(document)["input_ids"]
    ]
    training, held_out = split_blocks(tmp_path / "tokens.bin", 16, 0.1, 1)
    packed = [*training.ids.ravel().tolist(), *held_out.ids.ravel().tolist()]
    assert packed == expected[: len(expected) // 16 * 16]
    assert len(held_out) == round(0.1 * (len(training) + len(held_out)))
    assert spread(held_out, 3).ids.tolist() == held_out.ids[[0, (len(held_out) - 1) // 2, -1]].tolist()

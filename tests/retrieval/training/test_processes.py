"""Two processes give what one gives: penalties of the same value, and trained weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("accelerate")

import torch
from safetensors.torch import load_file

from retrieval.training.recipe import Recipe
from retrieval.training.training import train
from retrieval.training.training_set import TrainingSet
from runtime.step_log import read_records
from tests.retrieval.training.forks import Forks
from tests.retrieval.training.penalty_process import penalties_of

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available(), reason="torch was built without processes"
)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """As the processes that these trainings are compared with: sums of several threads round otherwise."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


PENALTIES = "import sys; from tests.retrieval.training.penalty_process import main; main(sys.argv[1])"


def test_penalties_have_the_same_value_and_gradients(forks: Forks, tmp_path: Path) -> None:
    forks.run_two(PENALTIES, tmp_path)
    two = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    for kind, expected in penalties_of(0, 1).items():
        assert expected[0] > 0
        for found in two:
            for left, right in zip(found[kind], expected, strict=True):
                torch.testing.assert_close(left, right)


TRAIN = """
import json, sys
from pathlib import Path
from retrieval.training.recipe import Recipe
from retrieval.training.training import train
from retrieval.training.training_set import TrainingSet
recipe, model, data, out = sys.argv[1:]
recipe, data = Recipe.model_validate(json.loads(recipe)), TrainingSet.load(Path(data))
scores = iter([0.2, 0.5, 0.4])
def evaluate(encoder):
    return {"a": next(scores)}  # of the process that leads alone
first = train(recipe, model, data, out, device="cpu", evaluate=evaluate)
assert (first.steps, first.chosen_step, first.score) == (6, 4, 0.5), first
"""


def test_trained_weights_are_those_of_one_process_that_accumulates_twice_as_much(
    make_recipe: Callable[..., Recipe], make_language_model: Callable[..., Path], training_set: TrainingSet,
    forks: Forks, tmp_path: Path,
) -> None:  # fmt: skip
    """Scores and losses are of each batch, and so are those of accumulated ones. Penalties are of all rows of all
    processes: those of one process see a batch at a time. L1 of queries, of which batches have as many, is the same.
    """
    optimiser = {"learning_rate": 1e-3, "schedule": "linear", "max_grad_norm": 0.5}
    changes = {
        "penalties": {"queries": {"kind": "l1", "strength": 1e-2, "ramp": 4}},
        "dropout": 0.0,
        "evaluate_every": 2,
    }
    training_set.save(tmp_path / "set")
    model = make_language_model()
    alone = make_recipe(**changes, optimiser={**optimiser, "accumulate": 2})
    scores = iter([0.2, 0.5, 0.4])
    train(alone, model, training_set, tmp_path / "one", device="cpu", evaluate=lambda _: {"a": next(scores)})
    recipe = make_recipe(**changes, optimiser=optimiser)
    forks.run_two(TRAIN, recipe.model_dump_json(), model, tmp_path / "set", tmp_path / "two")
    one, two = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("one", "two"))
    for name, weights in one.items():
        if name.endswith("key.bias"):
            continue  # attention does not depend on it: its gradient is rounding alone, which Adam scales up
        torch.testing.assert_close(two[name], weights, rtol=1e-4, atol=1e-6)
    logs = [read_records(tmp_path / name / "steps.jsonl") for name in ("one", "two")]
    for left, right in zip(*logs, strict=True):
        assert right == pytest.approx(left, rel=1e-3)
    assert not list((tmp_path / "two").glob("best-*"))


KILLED = """
import json, os, signal, sys
from pathlib import Path
from retrieval.training.recipe import Recipe
from retrieval.training.training import train
from retrieval.training.training_set import TrainingSet
recipe, model, data, out, ends = sys.argv[1:]
recipe, data = Recipe.model_validate(json.loads(recipe)), TrainingSet.load(Path(data))
def evaluate(encoder):
    if (Path(out) / "checkpoints" / "checkpoint-2" / "complete").exists() and ends == "early":
        raise KeyboardInterrupt  # of the process that leads; the other finds itself alone
    return {"a": 0.5}
try:
    train(recipe, model, data, out, device="cpu", evaluate=evaluate, resume=True)
except (KeyboardInterrupt, Exception) as error:
    assert ends == "early", error
"""


def test_stopped_processes_go_on_to_the_same_weights(
    make_recipe: Callable[..., Recipe], make_language_model: Callable[..., Path], training_set: TrainingSet,
    forks: Forks, tmp_path: Path,
) -> None:  # fmt: skip
    """With dropout, of which each process has a random state of its own in the checkpoint."""
    recipe = make_recipe(dropout=0.2, evaluate_every=2, steps=4)
    training_set.save(tmp_path / "set")
    for out, ends in (("whole", "late"), ("stopped", "early"), ("stopped", "late")):
        arguments = recipe.model_dump_json(), make_language_model(), tmp_path / "set", tmp_path / out
        forks.run_two(KILLED, *arguments, ends)
        assert (tmp_path / out / "model").exists() == (ends == "late")
    whole, stopped = (tmp_path / out / "model" / "model.safetensors" for out in ("whole", "stopped"))
    assert stopped.read_bytes() == whole.read_bytes()


TWICE = """
from runtime.processes import joined_processes
for turn in (1, 2, 3):
    with joined_processes("cpu") as processes:
        assert processes.gather(processes.rank + turn) == [turn, turn + 1]
        processes.wait()
"""


def test_processes_join_again_after_they_are_done(forks: Forks) -> None:
    forks.run_two(TWICE)

"""Trainings end with an encoder that loads everywhere, and a killed one ends with the same weights."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("accelerate")

import torch

from retrieval.encoders.encoder import SparseEncoder
from retrieval.training.recipe import Recipe
from retrieval.training.training import train
from retrieval.training.training_set import TrainingSet
from runtime.errors import ConflictError, LexpertError, UsageError
from runtime.step_log import read_records

MakeRecipe = Callable[..., Recipe]
MakeModel = Callable[..., Path]
TABLE = {"queries": "table", "activation": "log1p_relu"}
IN_BATCH = [{"kind": "kl", "over": "batch", "scale": 5.0}]
IDF = {"passages": {"kind": "idf_flops", "strength": 1e-3, "free_terms": 2}}


def weights_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.safetensors")}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.parametrize(
    ("changes", "family"),
    [
        ({}, "splade"),
        ({"queries": "own", "losses": [{"kind": "margin_mse"}, {"kind": "kl"}]}, "splade"),
        (
            {**TABLE, "losses": IN_BATCH, "penalties": IDF, "optimiser": {"table_learning_rate": 1e-2}},
            "inference_free",
        ),
        ({"precision": "bfloat16", "dropout": 0.0}, "splade"),
        ({"family": "unicoil"}, "unicoil"),
        ({"family": "deepimpact"}, "deepimpact"),
    ],
    ids=["shared", "own", "table", "bfloat16", "unicoil", "deepimpact"],
)
def test_a_training_ends_with_an_encoder(
    changes: dict[str, Any], family: str, make_recipe: MakeRecipe, make_language_model: MakeModel,
    training_set: TrainingSet, tmp_path: Path,
) -> None:  # fmt: skip
    report = train(
        make_recipe(**changes), make_language_model(), training_set, tmp_path / "run", device="cpu"
    )
    assert (report.family, report.steps, report.stopped_early) == (family, 6, False)
    records = read_records(tmp_path / "run" / "steps.jsonl")
    assert [record["step"] for record in records if "loss" in record] == [1, 2, 3, 4, 5, 6]
    assert {"active_queries", "active_passages", "flops", "grad_norm"} <= records[0].keys()
    encoder = SparseEncoder.load(tmp_path / "run" / "model")
    assert encoder.family == family
    assert encoder.encode_documents(training_set.passages[:3]).nnz
    assert encoder.encode_queries(training_set.queries[:3]).nnz
    assert (tmp_path / "run" / "training.png").exists() == (_has("matplotlib"))
    again = train(
        make_recipe(**changes),
        make_language_model(),
        training_set,
        tmp_path / "run",
        resume=True,
        device="cpu",
    )
    assert again == report


@pytest.mark.parametrize(
    "changes", [{}, {"queries": "own"}, {**TABLE, "optimiser": {"table_learning_rate": 1e-2}}]
)
def test_sentence_transformers_gives_the_same_vectors(
    changes: dict[str, Any], make_recipe: MakeRecipe, make_language_model: MakeModel, training_set: TrainingSet,
    tmp_path: Path,
) -> None:  # fmt: skip
    peers = pytest.importorskip("sentence_transformers")
    train(make_recipe(**changes), make_language_model(), training_set, tmp_path / "run", device="cpu")
    ours = SparseEncoder.load(tmp_path / "run" / "model", dtype="float32", device="cpu")
    peer = peers.SparseEncoder(str(tmp_path / "run" / "model"), device="cpu")
    for mine, theirs, texts in (
        (ours.encode_documents, peer.encode_document, training_set.passages),
        (ours.encode_queries, peer.encode_query, training_set.queries),
    ):
        expected = theirs(texts, convert_to_sparse_tensor=False).numpy()
        np.testing.assert_allclose(mine(texts).to_dense(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "changes", [{}, {**TABLE, "losses": IN_BATCH, "penalties": IDF}], ids=["shared", "table"]
)
def test_parts_of_a_batch_train_to_the_same_weights(
    changes: dict[str, Any], make_recipe: MakeRecipe, make_language_model: MakeModel, training_set: TrainingSet,
    tmp_path: Path,
) -> None:  # fmt: skip
    batch = {"queries": 4, "negatives": 2, "max_query_length": 16, "max_passage_length": 24}
    vectors = []
    for part in (None, 3):
        recipe = make_recipe(**changes, batch={**batch, "part": part}, dropout=0.0, precision="float32")
        out = tmp_path / f"run-{part}"
        train(recipe, make_language_model(), training_set, out, device="cpu")
        encoder = SparseEncoder.load(out / "model", dtype="float32", device="cpu")
        vectors.append(encoder.encode_documents(training_set.passages).to_dense())
    np.testing.assert_allclose(*vectors, rtol=1e-3, atol=1e-4)


def test_the_same_seed_gives_the_same_weights_and_another_gives_others(
    make_recipe: MakeRecipe, make_language_model: MakeModel, training_set: TrainingSet, tmp_path: Path
) -> None:
    found = []
    for number, seed in enumerate((1, 1, 2)):
        out = tmp_path / str(number)
        train(make_recipe(seed=seed, steps=2), make_language_model(), training_set, out, device="cpu")
        found.append(weights_of(out / "model"))
    assert found[0] == found[1]
    assert found[0] != found[2]


def test_the_best_encoder_is_kept_and_training_stops_when_none_is_better(
    make_recipe: MakeRecipe, make_language_model: MakeModel, training_set: TrainingSet, tmp_path: Path
) -> None:
    scores = iter([0.2, 0.5, 0.4, 0.3, 0.9])
    vectors = []

    def evaluate(encoder: SparseEncoder) -> dict[str, float]:
        vectors.append(encoder.encode_documents(training_set.passages).to_dense())
        score = next(scores)
        return {"a": score - 0.1, "b": score + 0.1}

    recipe = make_recipe(steps=10, evaluate_every=2, patience=2)
    report = train(
        recipe, make_language_model(), training_set, tmp_path / "run", evaluate=evaluate, device="cpu"
    )
    assert (report.steps, report.chosen_step, report.stopped_early) == (8, 4, True)
    assert report.score == pytest.approx(0.5)
    kept = SparseEncoder.load(tmp_path / "run" / "model", dtype="float32", device="cpu")
    np.testing.assert_array_equal(kept.encode_documents(training_set.passages).to_dense(), vectors[1])
    assert not list((tmp_path / "run").glob("best-*"))


KILLED = """
import sys, os, json
sys.path.insert(0, {root!r})
import torch
torch.set_num_threads(1)
from pathlib import Path
from retrieval.training.recipe import Recipe
from retrieval.training.training import train
from retrieval.training.training_set import TrainingSet
recipe = Recipe.model_validate(json.loads({recipe!r}))
train(recipe, {model!r}, TrainingSet.load(Path({data!r})), {out!r}, device="cpu", evaluate={evaluate})
"""
SCORE_OF_WEIGHTS = (
    "lambda encoder: {'a': float(encoder.encode_documents(['the virus in a body']).weights.sum()) % 1}"
)


def test_a_killed_training_goes_on_to_the_same_weights(
    make_recipe: MakeRecipe, make_language_model: MakeModel, training_set: TrainingSet, tmp_path: Path
) -> None:
    recipe = make_recipe(
        **TABLE,
        steps=16,
        evaluate_every=4,
        optimiser={"table_learning_rate": 1e-3, "warmup": 3, "accumulate": 2},
    )
    evaluate = eval(SCORE_OF_WEIGHTS)
    model = make_language_model()
    whole = train(recipe, model, training_set, tmp_path / "whole", evaluate=evaluate, device="cpu")
    training_set.save(tmp_path / "set")
    script = KILLED.format(
        root=str(Path(__file__).resolve().parents[3]), recipe=recipe.model_dump_json(), model=str(model),
        data=str(tmp_path / "set"), out=str(tmp_path / "killed"), evaluate=SCORE_OF_WEIGHTS,
    )  # fmt: skip
    process = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.DEVNULL)
    log = tmp_path / "killed" / "steps.jsonl"
    deadline = time.monotonic() + 100
    while time.monotonic() < deadline and process.poll() is None:
        if log.exists() and log.read_text().count('"loss"') >= 6:
            break
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    report = train(
        recipe, model, training_set, tmp_path / "killed", resume=True, evaluate=evaluate, device="cpu"
    )
    assert (report.chosen_step, report.score) == (whole.chosen_step, whole.score)
    assert weights_of(tmp_path / "killed" / "model") == weights_of(tmp_path / "whole" / "model")
    steps = [
        {name: value for name, value in record.items() if not name.startswith("seconds")}
        for record in read_records(log)
    ]
    assert steps == read_records(tmp_path / "whole" / "steps.jsonl")


@pytest.mark.parametrize(
    ("changes", "table"),
    [({**TABLE}, {"table_learning_rate": 1e-1}), ({"queries": "own"}, {}), ({"family": "unicoil"}, {})],
    ids=["table", "own", "unicoil"],
)
def test_a_training_goes_on_with_the_query_side_that_an_encoder_has(
    changes: dict[str, Any], table: dict[str, float], make_recipe: MakeRecipe, make_language_model: MakeModel,
    training_set: TrainingSet, tmp_path: Path,
) -> None:  # fmt: skip
    first = make_recipe(**changes, optimiser={"learning_rate": 1e-2, **table}, steps=2)
    train(first, make_language_model(), training_set, tmp_path / "first", device="cpu")
    # Steps too small to change anything: what comes out is what went in.
    still = make_recipe(**changes, optimiser={"learning_rate": 1e-30, "weight_decay": 0.0}, steps=1)
    train(still, tmp_path / "first" / "model", training_set, tmp_path / "second", device="cpu")
    before, after = (SparseEncoder.load(tmp_path / name / "model") for name in ("first", "second"))
    np.testing.assert_allclose(
        after.encode_queries(training_set.queries).to_dense(),
        before.encode_queries(training_set.queries).to_dense(),
        rtol=1e-5,
    )


def test_another_collection_to_evaluate_on_is_refused(
    make_recipe: MakeRecipe, make_language_model: MakeModel, training_set: TrainingSet, tmp_path: Path
) -> None:
    def go(*names: str) -> None:
        train(
            make_recipe(steps=1), make_language_model(), training_set, tmp_path / "run", resume=True,
            evaluate=lambda _: {"a": 0.5}, evaluated_on=names, device="cpu",
        )  # fmt: skip

    go("scifact, test")
    go("scifact, test")
    with pytest.raises(UsageError, match=r"evaluated_on \['scifact, test'\], and is asked to go on with"):
        go("scifact, train")


def test_a_few_queries_without_terms_stop_nothing(
    make_recipe: MakeRecipe, make_language_model: MakeModel, tmp_path: Path
) -> None:
    data = TrainingSet(
        ["🦠", "the virus", "the cell", "how vaccines"],  # the first is of unknown tokens alone
        ["the virus in the body", "the immune system", "how cell learns", "vaccines protect"],
        np.arange(4, dtype=np.int32),
        [np.array([(query + 1) % 4], np.int32) for query in range(4)],
    )
    recipe = make_recipe(**TABLE, batch={"queries": 1, "negatives": 1}, steps=4)
    assert train(recipe, make_language_model(), data, tmp_path / "run", device="cpu").steps == 4


LIMITED = "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
LIMITED += "resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))"


def test_what_cannot_be_written_is_said_in_one_sentence(
    make_recipe: MakeRecipe, make_language_model: MakeModel, training_set: TrainingSet, tmp_path: Path
) -> None:
    training_set.save(tmp_path / "set")
    script = KILLED.format(
        root=str(Path(__file__).resolve().parents[3]), recipe=make_recipe().model_dump_json(),
        model=str(make_language_model()), data=str(tmp_path / "set"), out=str(tmp_path / "run"), evaluate=None,
    )  # fmt: skip
    process = subprocess.run([sys.executable, "-c", f"{LIMITED}\n{script}"], capture_output=True, text=True)
    last = process.stderr.strip().splitlines()[-1]
    assert "LexpertError" in last
    assert "checkpoints could not be written: File too large; allow larger files" in last
    assert not list((tmp_path / "run").glob("checkpoints/*/complete"))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no device that is always full")
@pytest.mark.parametrize("size", [1, 1 << 16, 1 << 22])
def test_a_full_disk_is_known_from_what_torch_says_of_it(size: int) -> None:
    from retrieval.training.trainer import writing

    with pytest.raises(LexpertError, match="No space left on device; free some space"), writing(Path("run")):
        torch.save({"a": torch.zeros(size)}, "/dev/full")


def test_terms_that_all_vanish_stop_the_training_and_name_lambda(
    make_recipe: MakeRecipe, make_language_model: MakeModel, training_set: TrainingSet, tmp_path: Path
) -> None:
    recipe = make_recipe(
        penalties={"passages": {"kind": "l1", "strength": 1e4, "ramp": 2}},
        optimiser={"learning_rate": 0.3, "schedule": "constant"}, steps=60, dropout=0.0,
    )  # fmt: skip
    with pytest.raises(LexpertError, match=r"no term of any of the (queries|passages) is active any more.*λ"):
        train(recipe, make_language_model(), training_set, tmp_path / "run", device="cpu")


def test_a_loss_that_is_no_number_stops_the_training_and_keeps_the_batch(
    make_recipe: MakeRecipe, make_language_model: MakeModel, training_set: TrainingSet, tmp_path: Path
) -> None:
    recipe = make_recipe(losses=[{"kind": "margin_mse", "scale": 1e38}, {"kind": "kl", "scale": 1e38}])
    with pytest.raises(LexpertError, match=r"the loss is (inf|nan) at step 1, whose batch is in") as stopped:
        train(recipe, make_language_model(), training_set, tmp_path / "run", device="cpu")
    kept = json.loads((tmp_path / "run" / "not-finite-step-1.json").read_text())
    assert len(kept["queries"]) == 4
    assert "not-finite-step-1.json" in str(stopped.value)


def test_what_does_not_fit_is_refused_before_a_folder_is_made(
    make_recipe: MakeRecipe, make_language_model: MakeModel, training_set: TrainingSet, tmp_path: Path
) -> None:
    bare = TrainingSet(
        training_set.queries, training_set.passages, training_set.positives,
        [np.zeros(0, np.int32) for _ in training_set.queries],
    )  # fmt: skip
    for changes, message in (
        ({"losses": [{"kind": "kl"}]}, "scores of listed passages"),
        ({"losses": IN_BATCH}, "bi-encoder teachers"),
        ({"batch": {"queries": 2, "topics": 1}}, "batches by topic"),
        ({"batch": {"queries": 99}}, "a batch takes 99 queries"),
    ):
        with pytest.raises(UsageError, match=message):
            train(make_recipe(**changes), make_language_model(), bare, tmp_path / "run", device="cpu")
    assert not (tmp_path / "run").exists()
    train(make_recipe(steps=2), make_language_model(), bare, tmp_path / "run", device="cpu")
    with pytest.raises(ConflictError, match="--resume"):
        train(make_recipe(steps=2), make_language_model(), bare, tmp_path / "run", device="cpu")
    with pytest.raises(UsageError, match=r"recipe.steps 2, and is asked to go on with recipe.steps 3"):
        train(make_recipe(steps=3), make_language_model(), bare, tmp_path / "run", resume=True, device="cpu")


def _has(package: str) -> bool:
    from importlib.util import find_spec

    return find_spec(package) is not None


def test_a_base_with_a_term_expansion_is_refused(
    make_recipe: MakeRecipe, make_language_model: MakeModel, training_set: TrainingSet, tmp_path: Path
) -> None:
    from retrieval.encoders.expansion import TermExpansion
    from retrieval.encoders.sentence_transformers_folder import SpladeRoute
    from retrieval.encoders.splade import SpladeEncoder, SpladeOptions, SpladeSide

    model = make_language_model()
    terms = len(SparseEncoder.load(model).vocabulary)
    TermExpansion(torch.zeros(terms, 16), torch.zeros(terms)).save(tmp_path / "module")
    side = SpladeSide(SpladeRoute(model, expansion=tmp_path / "module"), SpladeOptions())
    SpladeEncoder(side, side).save(tmp_path / "base")
    with pytest.raises(UsageError, match="has a term expansion, which cannot be trained further"):
        train(make_recipe(), tmp_path / "base", training_set, tmp_path / "run", device="cpu")
    assert not (tmp_path / "run").exists()

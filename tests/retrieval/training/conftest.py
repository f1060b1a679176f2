"""Small training sets, and recipes that take a second."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from retrieval.training.recipe import Recipe
from retrieval.training.teachers.vectors import DenseTeacher
from retrieval.training.training_set import TrainingSet
from tests.retrieval.conftest import PIECES, TOKENS
from tests.retrieval.training.forks import Forks


@pytest.fixture(scope="session")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    """Starts processes that have torch and the Trainer imported."""
    started = Forks(tmp_path_factory.mktemp("forks"))
    yield started
    started.close()


UNUSED = [TOKENS.index(piece) for piece in PIECES if piece not in ("a", "##s")]
"""Tokens that no text of the training set has."""


def dark(model: Path, folder: Path, terms: list[int]) -> Path:
    """A copy of a model whose head lights up none of `terms`, and all others in any text."""
    shutil.copytree(model, folder)
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    weights["cls.predictions.bias"] += 30.0
    weights["cls.predictions.bias"][terms] = -1000.0
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


WORDS = ["the", "how", "do", "and", "of", "to", "in", "vaccines", "work", "virus", "immune", "system", "cell"]
WORDS += ["body", "train", "learns", "protect"]


@pytest.fixture(scope="session")
def training_set() -> TrainingSet:
    """24 queries and 40 passages of a small language; negatives, scores, a dense teacher, and groups."""
    draw = np.random.default_rng(0)
    passages = list(dict.fromkeys(" ".join(draw.choice(WORDS, 8)) for _ in range(40)))
    queries = [" ".join(passage.split()[:3]) for passage in passages[:24]]
    negatives = [
        np.array([i for i in draw.permutation(len(passages))[:3] if i != query], np.int32)
        for query in range(len(queries))
    ]
    vectors = draw.normal(size=(len(passages), 6)).astype(np.float16)
    return TrainingSet(
        queries=queries,
        passages=passages,
        positives=np.arange(len(queries), dtype=np.int32),
        negatives=negatives,
        scores=[
            np.concatenate([[5.0], draw.normal(size=len(others))]).astype(np.float32) for others in negatives
        ],
        teachers=[DenseTeacher("dense", "0", vectors[: len(queries)], vectors)],
        groups=np.array([query % 3 for query in range(len(queries))], np.int32),
    )


@pytest.fixture
def make_recipe() -> Callable[..., Recipe]:
    """A recipe of six steps, with changes by name."""

    def make(**changes: Any) -> Recipe:
        described = {
            "name": "small",
            "reproduces": "nothing",
            "batch": {"queries": 4, "negatives": 1, "max_query_length": 16, "max_passage_length": 24},
            "losses": [{"kind": "contrastive"}],
            "penalties": {"passages": {"kind": "flops", "strength": 1e-3, "ramp": 4}},
            "optimiser": {"learning_rate": 1e-3, "schedule": "constant"},
            "steps": 6,
            "evaluate_every": 3,
            **changes,
        }
        return Recipe.model_validate(described)

    return make

"""Losses are those of the formulas, written out query by query."""

from __future__ import annotations

import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from retrieval.training.losses import contrastive_loss, distillation_loss, listed_scores, margin_mse_loss


def drawn(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def softmax(values: list[float]) -> list[float]:
    exponents = [math.exp(value) for value in values]
    return [exponent / sum(exponents) for exponent in exponents]


@given(queries=st.integers(1, 4), extra=st.integers(0, 4), seed=st.integers(0, 50))
def test_contrastive_loss_leaves_out_other_positives(queries: int, extra: int, seed: int) -> None:
    passages = queries + extra
    scores = drawn(seed, queries, passages)
    known = drawn(seed + 1, queries, passages) > 0.8
    expected = 0.0
    for query in range(queries):
        kept = [passage for passage in range(passages) if passage == query or not known[query, passage]]
        shares = softmax([scores[query, passage].item() / 0.5 for passage in kept])
        expected -= math.log(shares[kept.index(query)]) / queries
    found = contrastive_loss(scores, torch.arange(queries), known, 0.5)
    assert math.isclose(found.item(), expected, rel_tol=1e-4, abs_tol=1e-5)


@given(queries=st.integers(1, 4), negatives=st.integers(0, 4), seed=st.integers(0, 50))
def test_margin_mse_and_distillation_pass_over_missing_negatives(
    queries: int, negatives: int, seed: int
) -> None:
    student, teacher = drawn(seed, queries, 1 + negatives), drawn(seed + 1, queries, 1 + negatives)
    known = drawn(seed + 2, queries, 1 + negatives) > 0
    known[:, 0] = True
    squares, divergence = [], 0.0
    for row in range(queries):
        s, t = student[row].tolist(), teacher[row].tolist()
        kept = [i for i in range(1 + negatives) if known[row, i]]
        squares += [((s[0] - s[i]) - (t[0] - t[i])) ** 2 for i in kept[1:]]
        target, given_ = softmax([3 * t[i] for i in kept]), softmax([s[i] / 2 for i in kept])
        divergence += sum(p * math.log(p / q) for p, q in zip(target, given_, strict=True)) / queries
    expected = sum(squares) / max(len(squares), 1)
    assert math.isclose(margin_mse_loss(student, teacher, known).item(), expected, rel_tol=1e-4, abs_tol=1e-6)
    found = distillation_loss(student, teacher, known, 2.0, 3.0)
    assert math.isclose(found.item(), divergence, rel_tol=1e-4, abs_tol=1e-5)


def test_listed_scores_say_which_are_missing() -> None:
    scores = torch.tensor([[1.0, 2, 3], [4, 5, 6]])
    found, known = listed_scores(scores, torch.tensor([[2, 0], [1, -1]]))
    assert found[known].tolist() == [3, 1, 5]
    assert known.tolist() == [[True, True], [True, False]]

from __future__ import annotations

import pytest
import torch

from moe.routing.router import Tokens
from moe.routing.task_aware import TaskAwareRouter


def test_a_gate_by_task_alone_gives_every_token_of_a_task_the_same_experts_and_weights() -> None:
    router = TaskAwareRouter(6, 8, num_tasks=5, task_only=True)
    tasks = torch.randint(5, (60,))
    rows = router(Tokens(torch.randn(60, 6), tasks=tasks)).gates.to_dense()
    for task in range(5):
        assert len(rows[tasks == task].unique(dim=0)) == 1
    assert len(rows.unique(dim=0)) == 5


def test_a_gate_by_token_and_task_depends_on_both() -> None:
    router = TaskAwareRouter(6, 8, num_tasks=2, task_width=4)
    with torch.no_grad():
        router.embedding.mul_(50)
    same = torch.randn(1, 6).expand(2, 6)
    by_task = router(Tokens(same, tasks=torch.tensor([0, 1]))).scores
    by_token = router(Tokens(torch.randn(2, 6), tasks=torch.tensor([0, 0]))).scores
    assert not torch.allclose(by_task[0], by_task[1])
    assert not torch.allclose(by_token[0], by_token[1])


def test_logits_are_those_of_token_and_embedding_side_by_side() -> None:
    router = TaskAwareRouter(3, 4, num_tasks=2, task_width=2, top_k=4, renormalise=False)
    hidden, tasks = torch.randn(5, 3), torch.tensor([0, 1, 1, 0, 1])
    weight = router.gate.weight
    logits = hidden @ weight[:, :3].T + router.embedding[tasks] @ weight[:, 3:].T
    routing = router(Tokens(hidden, tasks=tasks))
    torch.testing.assert_close(routing.scores, logits.softmax(1))
    torch.testing.assert_close(routing.gates.to_dense(), logits.softmax(1))


def test_weights_are_renormalised_or_not() -> None:
    tokens = Tokens(torch.randn(5, 3), tasks=torch.zeros(5, dtype=torch.int64))
    whole = TaskAwareRouter(3, 4, num_tasks=1)(tokens).gates.to_dense()
    torch.testing.assert_close(whole.sum(1), torch.ones(5))
    part = TaskAwareRouter(3, 4, num_tasks=1, renormalise=False)(tokens).gates.to_dense()
    assert (part.sum(1) < 0.9).all()


def test_load_balance_is_one_when_tasks_are_spread_evenly() -> None:
    router = TaskAwareRouter(3, 4, num_tasks=4, task_width=4, task_only=True, top_k=1)
    with torch.no_grad():
        router.embedding.copy_(torch.eye(4))
        router.gate.weight.copy_(3 * torch.eye(4))
    routing = router(Tokens(torch.randn(8, 3), tasks=torch.arange(8) % 4))
    assert routing.losses["load_balance"].item() == pytest.approx(1.0)

from __future__ import annotations

import pytest
import torch

from moe.routing.per_sequence import PerSequenceRouter
from moe.routing.router import Tokens
from runtime.errors import UsageError

LENGTHS = torch.tensor([3, 1, 5, 2])
SEQUENCES = torch.arange(4).repeat_interleave(LENGTHS)


def test_all_tokens_of_a_sequence_have_the_experts_of_its_mean() -> None:
    router = PerSequenceRouter(6, 4, top_k=2)
    hidden = torch.randn(11, 6)
    routing = router(Tokens(hidden, SEQUENCES))
    for sequence in range(4):
        scores = (hidden[sequence == SEQUENCES].mean(0) @ router.gate.weight.T).softmax(0)
        kept = torch.zeros(4).index_put((scores.topk(2).indices,), scores.topk(2).values)
        rows = routing.gates.to_dense()[sequence == SEQUENCES]
        torch.testing.assert_close(rows, kept.expand_as(rows))
        assert len(rows.unique(dim=0)) == 1


def test_permuting_the_tokens_of_a_sequence_changes_nothing() -> None:
    router = PerSequenceRouter(6, 4)
    hidden = torch.randn(11, 6)
    # Noise and then the sequence as the key: tokens change places within their sequence only.
    order = torch.argsort(SEQUENCES + torch.rand(11) * 0.9)
    assert order.tolist() != list(range(11))
    before, after = router(Tokens(hidden, SEQUENCES)), router(Tokens(hidden[order], SEQUENCES))
    assert before.gates.units.tolist() == after.gates.units.tolist()
    assert before.gates.weights.tolist() == after.gates.weights.tolist()


def test_a_sequence_is_routed_as_if_it_were_alone_whatever_its_number() -> None:
    router = PerSequenceRouter(6, 4)
    hidden = torch.randn(11, 6)
    together = router(Tokens(hidden, 3 * SEQUENCES + 2)).gates.to_dense()
    alone = [router(Tokens(hidden[s == SEQUENCES], SEQUENCES[s == SEQUENCES])) for s in range(4)]
    torch.testing.assert_close(together, torch.cat([routing.gates.to_dense() for routing in alone]))


def test_losses_count_sequences_and_not_tokens() -> None:
    router = PerSequenceRouter(4, 4)
    with torch.no_grad():
        router.gate.weight.copy_(torch.eye(4))
    hidden = (2 * torch.eye(4))[SEQUENCES]
    assert router(Tokens(hidden, SEQUENCES)).losses["load_balance"].item() == pytest.approx(1.0)


def test_the_super_class_loss_is_the_cross_entropy_of_the_sequences_whose_class_is_known() -> None:
    router = PerSequenceRouter(6, 4)
    hidden, classes = torch.randn(11, 6), torch.tensor([2, -100, 0, 3])
    loss = router(Tokens(hidden, SEQUENCES, classes=classes[SEQUENCES])).losses["super_class"]
    known = [
        torch.nn.functional.cross_entropy(hidden[s == SEQUENCES].mean(0) @ router.gate.weight.T, classes[s])
        for s in (0, 2, 3)
    ]
    torch.testing.assert_close(loss, torch.stack(known).mean())
    unknown = router(Tokens(hidden, SEQUENCES, classes=torch.full((11,), -100)))
    assert unknown.losses["super_class"].item() == 0.0
    assert "super_class" not in router(Tokens(hidden, SEQUENCES)).losses


def test_learning_super_classes_sends_each_class_to_the_expert_of_its_number() -> None:
    router = PerSequenceRouter(6, 3)
    classes = torch.arange(30) % 3
    hidden = torch.randn(30, 6) + 4 * torch.eye(6)[classes]
    tokens = Tokens(hidden, torch.arange(30), classes=classes)
    optimiser = torch.optim.Adam(router.parameters(), lr=0.05)
    for _ in range(40):
        optimiser.zero_grad()
        router(tokens).losses["super_class"].backward()
        optimiser.step()
    assert router(tokens).gates.units.tolist() == classes.tolist()


def test_classes_that_do_not_fit_are_usage_errors() -> None:
    router = PerSequenceRouter(6, 4)
    hidden = torch.randn(11, 6)
    with pytest.raises(UsageError, match="differs between tokens of one sequence"):
        router(Tokens(hidden, SEQUENCES, classes=torch.arange(11) % 4))
    with pytest.raises(UsageError, match="needs an expert of its own"):
        router(Tokens(hidden, SEQUENCES, classes=torch.full((11,), 4)))

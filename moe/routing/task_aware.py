"""Task-aware: the experts of a token depend on its task, alone or together with the token."""

from __future__ import annotations

import torch

from moe.routing.gate import INITIAL_STD, Gate
from moe.routing.router import Router, Routing, Tokens, of_tokens, renormalised, require_top_k
from runtime.activations import SparseActivations
from runtime.errors import UsageError
from runtime.regularizers import load_balance, z_loss
from runtime.select import TopK


class TaskAwareRouter(Router):
    """Top-k of ``softmax(W [x; e_task])``, or of ``softmax(W e_task)`` (Gupta et al. 2022; Kudugunta et al. 2021).

    From the task alone, all tokens of a task share their experts, and a model for one task needs no others.

    Attributes:
        task_only: whether the hidden state is left out.
        embedding: ``[tasks, task_width]``, learned.
        top_k: k.
        renormalise: whether the k weights are made to add up to 1.
    """

    def __init__(
        self,
        width: int,
        num_experts: int,
        *,
        num_tasks: int,
        task_width: int = 32,
        task_only: bool = False,
        top_k: int = 2,
        renormalise: bool = True,
    ) -> None:
        super().__init__(num_experts, width)
        if num_tasks < 1 or task_width < 1:
            raise UsageError(f"there are {num_tasks} tasks of width {task_width}, but both must be 1 or more")
        self.top_k = require_top_k(top_k, num_experts)
        self.task_only = task_only
        self.renormalise = renormalise
        self.embedding = torch.nn.Parameter(torch.empty(num_tasks, task_width))
        torch.nn.init.normal_(self.embedding, std=INITIAL_STD)
        self.gate = Gate(task_width if task_only else width + task_width, num_experts)

    def route(self, tokens: Tokens) -> Routing:
        tasks = of_tokens(tokens, "tasks", "task-aware routing")
        if len(tasks) and not 0 <= int(tasks.min()) <= int(tasks.max()) < len(self.embedding):
            raise UsageError(
                f"tasks run from {int(tasks.min())} to {int(tasks.max())}, "
                f"but the router knows {len(self.embedding)}"
            )
        if self.task_only:
            # Once a task and not once a token: equal rows of a product need not be equal to the last bit.
            logits = self.gate(self.embedding)[tasks]
        else:
            logits = self.gate(torch.cat([tokens.hidden.float(), self.embedding.float()[tasks]], 1))
        scores = logits.softmax(1)
        units = TopK(self.top_k)(logits.detach()).units.reshape(-1, self.top_k)
        weights = scores.gather(1, units.long())
        weights = renormalised(weights) if self.renormalise else weights
        gates = SparseActivations.from_topk(units, weights, self.num_experts)
        return Routing(gates, scores, {"load_balance": load_balance(gates, scores), "z": z_loss(logits)})

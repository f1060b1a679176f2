"""What a training is asked for."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import get_args

from moe.language_model_folder import Objective
from moe.seed import require_seed
from moe.training.balance_schedule import LinearSchedule
from runtime.errors import UsageError

SCHEDULES = ("cosine", "linear", "constant")
PRECISIONS = ("float32", "bfloat16")


@dataclass(frozen=True, slots=True)
class TrainingSettings:
    """Options of `moe.training.training.train`; a training is gone on with by the same ones.

    Attributes:
        objective: ``"causal"`` predicts the next token, ``"masked"`` masked ones; the model decides which it can.
        steps: of the optimiser.
        batch_size: blocks that run through the model at once, in each process.
        accumulate: batches of one step, in each process.
        block: tokens of a block; None takes the model's positions, 512 at most.
        learning_rate: at its highest.
        warmup: steps in which the learning rate rises from 0.
        schedule: what it does then: fall to 0 by half a ``"cosine"`` or ``"linear"``, or stay ``"constant"``.
        weight_decay: of AdamW.
        balance: coefficient of the load-balance loss of each layer, which is 1 when even, at the first step.
        balance_end: that at the last step, with a straight line between; None stays at `balance`.
        z: coefficient of the z-loss of each layer's router.
        held_out: share of the blocks, the last ones of the text, that is kept for evaluation.
        eval_blocks: most of the held-out blocks that an evaluation takes, evenly spread.
        eval_every: steps between evaluations; None evaluates ten times. The first is before the first step, the
            last after the last.
        save_every: steps between checkpoints; None saves with each evaluation.
        keep: checkpoints that stay.
        max_tokens: of the text; the rest is not read. None reads all.
        seed: of the order of blocks, of masks and of dropout; 0 to 2³² - 1.
        precision: of the products, ``"float32"`` or ``"bfloat16"``; weights, the optimiser, routers and losses are
            float32 in either.
        checkpointing: whether activations are computed again in the backward pass in place of being kept: more time,
            and less memory.
    """

    objective: Objective = "causal"
    steps: int = 1000
    batch_size: int = 8
    accumulate: int = 1
    block: int | None = None
    learning_rate: float = 1e-4
    warmup: int = 0
    schedule: str = "cosine"
    weight_decay: float = 0.0
    balance: float = 0.01
    balance_end: float | None = None
    z: float = 0.001
    held_out: float = 0.05
    eval_blocks: int = 256
    eval_every: int | None = None
    save_every: int | None = None
    keep: int = 2
    max_tokens: int | None = None
    seed: int = 0
    precision: str = "float32"
    checkpointing: bool = False

    def __post_init__(self) -> None:
        counts = {
            "steps": 1, "batch_size": 1, "accumulate": 1, "block": 2, "warmup": 0, "eval_blocks": 1,
            "eval_every": 1, "save_every": 1, "keep": 1, "max_tokens": 1,
        }  # fmt: skip
        for name, least in counts.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise UsageError(f"{name} is {value}, but must be {least} or more")
        for name in ("learning_rate", "weight_decay", "balance", "balance_end", "z"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise UsageError(f"{name} is {value}, but must be 0 or more")
        require_seed(self.seed)
        if not 0 < self.held_out < 1:
            raise UsageError(f"held_out is {self.held_out}, but must be a share above 0 and below 1")
        if self.warmup >= self.steps:
            raise UsageError(f"warmup takes {self.warmup} steps, but there are {self.steps}; shorten it")
        if self.schedule not in SCHEDULES:
            raise UsageError(f"there is no schedule {self.schedule!r}; choose from {', '.join(SCHEDULES)}")
        if self.precision not in PRECISIONS:
            raise UsageError(f"there is no precision {self.precision!r}; choose from {', '.join(PRECISIONS)}")
        if self.objective not in get_args(Objective):
            raise UsageError(
                f"there is no objective {self.objective!r}; choose from {', '.join(get_args(Objective))}"
            )

    @property
    def blocks_per_step(self) -> int:
        """In each process."""
        return self.batch_size * self.accumulate

    @property
    def eval_interval(self) -> int:
        return self.eval_every or max(1, self.steps // 10)

    @property
    def save_interval(self) -> int:
        return self.save_every or self.eval_interval

    @property
    def balance_schedule(self) -> LinearSchedule:
        end = self.balance if self.balance_end is None else self.balance_end
        return LinearSchedule(self.balance, end, self.steps)

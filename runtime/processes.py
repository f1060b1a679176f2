"""The processes that train one model together: data parallel, as torchrun starts them."""

from __future__ import annotations

import atexit
import os
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
from torch import Tensor

from runtime.errors import LexpertError, UsageError
from runtime.progress import Advance, progress

T = TypeVar("T")
PATIENCE = timedelta(hours=12)
"""How long processes wait for each other: for as long as the one that leads may evaluate."""


@dataclass(frozen=True, slots=True)
class Processes:
    """All of them, and which one this is.

    Attributes:
        count: how many there are; 1 without torchrun.
        rank: of this one, from 0.
        device: of this one, for torch; each process of a machine has a GPU of its own.
    """

    count: int
    rank: int
    device: str

    @property
    def leads(self) -> bool:
        """Whether this is the one that writes the folder of the training."""
        return self.rank == 0

    def wait(self) -> None:
        """Until all processes are here.

        Raises:
            LexpertError: one of them has ended.
        """
        if self.count > 1:
            try:
                torch.distributed.barrier()
            except RuntimeError as error:
                raise LexpertError(
                    "another process of this training has ended; see its message, and start all of them again"
                ) from error

    def progress(self, description: str, total: int, unit: str) -> AbstractContextManager[Advance]:
        """As `runtime.progress.progress`, shown by the process that leads alone."""
        return progress(description, total, unit) if self.leads else nullcontext(lambda _: None)

    def add_up(self, numbers: Tensor) -> None:
        """Sum a tensor over all processes, in place."""
        if self.count > 1:
            torch.distributed.all_reduce(numbers)

    def from_leader(self, value: T) -> T:
        """What the process that leads gives; any value that can be pickled."""
        return self.gather(value)[0]

    def gather(self, value: T) -> list[T]:
        """What each process gives, in the order of their ranks; any value that can be pickled."""
        if self.count == 1:
            return [value]
        values: list[T] = [value] * self.count
        torch.distributed.all_gather_object(values, value)
        return values

    def average_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Mean of each parameter's gradient over all processes, in place; no gradient counts as zeros, but where no
        process has one it stays away.
        """
        if self.count == 1:
            return
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        if not trained:
            return
        there = torch.tensor([float(parameter.grad is not None) for parameter in trained], device=self.device)
        self.add_up(there)
        for parameter, known in zip(trained, there.tolist(), strict=True):
            if known:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                self.add_up(parameter.grad)
                parameter.grad /= self.count


ALONE = Processes(1, 0, "cpu")
"""One process."""


@contextmanager
def joined_processes(device: str | None) -> Iterator[Processes]:
    """Find the others by the variables that torchrun sets; they part where the ``with`` block ends in an error, or at
    the end of the process.

    Args:
        device: ``"cpu"`` or ``"cuda"``; None takes GPUs where there are any.

    Raises:
        UsageError: torch has no such device here, there are more processes than GPUs, a device with a number is named
            for several, or torchrun's variables are not whole.
    """
    count = _count()
    kind = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if count == 1:
        _require_usable(kind)
        yield Processes(1, 0, kind)
        return
    if ":" in kind:
        raise UsageError(f"{count} processes cannot share {kind}; name the device without a number")
    place = int(os.environ["LOCAL_RANK"])
    if kind == "cuda":
        if place >= torch.cuda.device_count():
            raise UsageError(
                f"process {place} of this machine has no GPU of its own, for there are {torch.cuda.device_count()}; "
                "start as many processes as there are GPUs"
            )
        torch.cuda.set_device(place)
        kind = f"cuda:{place}"
    _require_usable(kind)
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group("nccl" if kind.startswith("cuda") else "gloo", timeout=PATIENCE)
        # Not at the end of the block: processes that have parted do not find each other again.
        atexit.register(_part)
    try:
        yield Processes(count, torch.distributed.get_rank(), kind)
    except BaseException:
        _part()  # so that the others do not wait for this one
        raise


def _part() -> None:
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _require_usable(device: str) -> None:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # the latter from builds without CUDA
        raise UsageError(
            f"torch cannot use the device {device} ({str(error).splitlines()[0][:80]}); use cpu, or cuda where there "
            "is a GPU"
        ) from None


def _count() -> int:
    """Number of processes by torchrun's variables; 1 without them."""
    given = os.environ.get("WORLD_SIZE", "1")
    if not given.isdecimal() or int(given) < 1:
        raise UsageError(
            f"WORLD_SIZE is {given!r}, not a number of processes; unset it, or start with torchrun"
        )
    missing = [
        name for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ
    ]
    if int(given) > 1 and missing:  # schedulers set some of them for programs of any kind
        raise UsageError(
            f"WORLD_SIZE says {given} processes, but {missing[0]} is not set; start them with torchrun, or unset "
            "WORLD_SIZE"
        )
    return int(given)

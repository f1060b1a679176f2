"""One process of two: penalties of its part of a batch, through data parallelism; run by test_processes.py."""

from __future__ import annotations

import torch

from retrieval.training.penalties import make_penalty

KINDS = ("flops", "l1", "idf_flops")


def penalties_of(rank: int, world: int) -> dict[str, list[torch.Tensor]]:
    """Value and gradients of each penalty on the part that process `rank` of `world` has of one batch."""
    draw = torch.Generator().manual_seed(0)
    inputs, idf = torch.randn(12, 4, generator=draw), torch.rand(7, generator=draw) + 0.1
    model = torch.nn.Linear(4, 7)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draw))
    parallel = model if world == 1 else torch.nn.parallel.DistributedDataParallel(model)
    # Parts of different sizes: the mean is over rows and not over processes.
    part = inputs if world == 1 else (inputs[:8] if rank == 0 else inputs[8:])
    results = {}
    for kind in KINDS:
        model.zero_grad()
        value = make_penalty(kind, idf if kind == "idf_flops" else None, free_terms=1)(parallel(part).relu())
        value.backward()
        results[kind] = [value.detach(), *(parameter.grad.clone() for parameter in model.parameters())]
    return results


def main(folder: str) -> None:
    torch.distributed.init_process_group("gloo")
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    torch.save(penalties_of(rank, world), f"{folder}/{rank}.pt")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()

"""Noise: copies that start a little apart, so that they need not wait for the router to tell them apart."""

from __future__ import annotations

import torch

from moe.upcycle.methods.method import Block, Method, generator


class NoiseMethod(Method):
    """The dense block plus ``N(0, (noise · std)²)``, std being that of each weight matrix; biases stay."""

    def expert(self, block: Block, layer: int, expert: int) -> Block:
        if self.plan.noise == 0:
            return block
        draw = generator(self.plan.seed, layer, 1 + expert)
        noisy = dict(block)
        for name in ("gate", "up", "down"):
            if name in block:
                weight = block[name].float()
                noise = torch.randn(weight.shape, generator=draw)
                noisy[name] = noise.mul_(self.plan.noise * weight.std()).add_(weight).to(block[name].dtype)
        return noisy

    def is_exact(self, dtype: torch.dtype) -> bool:  # noqa: ARG002 - in every one
        return self.plan.noise == 0

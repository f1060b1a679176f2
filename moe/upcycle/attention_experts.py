"""Attention projections as experts: copies of the query and output projections (Zhang et al. 2022, "MoA")."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from moe.upcycle.checkpoint_folder import CheckpointFolder, widest
from moe.upcycle.methods.method import generator, scaled_weight
from moe.upcycle.plan import UpcyclePlan
from moe.upcycle.router_init.random import random_rows
from moe.upcycle.rules import AttentionExperts, AttentionProjections
from moe.upcycle.shard_writer import Output
from moe.upcycle.targets.decoder import query_groups


class AttentionTranslation:
    """The attention tensors of a sparse checkpoint.

    An expert has one query head for each key head. A dense model with G query heads for each key is cut into G
    slices: expert i has the ``i mod G``-th query head of every key, a run of G experts is the whole attention,
    and a factor G in the output projection makes up for the gates of the run, which are equal because its router
    rows are. So whole attentions are selected where top-k is a multiple of G, and with one query head a key
    every expert is a copy of all.

    Attributes:
        groups: G.
        expert_parameters: parameters of one expert of one layer.
    """

    def __init__(
        self,
        folder: CheckpointFolder,
        config: Any,
        projections: AttentionProjections,
        names: AttentionExperts,
        plan: UpcyclePlan,
    ) -> None:
        self._folder, self._projections, self._names, self._plan = folder, projections, names, plan
        self.groups = query_groups(config)
        self._keys = config.num_key_value_heads
        query = folder.entries[projections.query.format(layer=0)]
        self.expert_parameters = 2 * math.prod(query.shape) // self.groups

    def outputs(self, layer: int) -> Iterator[Output]:
        """What to write of a layer."""
        entries = {name: self._folder.entries[name] for name in self._projections.sources(layer)}
        query, key, _, _ = entries.values()
        width, heads = query.shape[1], query.shape[0] // self.groups
        experts = self._plan.experts
        names = self._names
        for name, shape, pieces in (
            (names.router, (experts, width), self._router),
            (names.query, (experts, heads, width), self._queries),
            (names.output, (experts, width, heads), self._output_projections),
            (names.key_value, (2 * key.shape[0], width), self._keys_and_values),
        ):
            yield Output(name.format(layer=layer), shape, self.dtype(layer), partial(pieces, layer))

    def dtype(self, layer: int) -> torch.dtype:
        """Of all that is written of a layer: the widest of its projections, so that none is rounded."""
        return widest(self._folder, self._projections.sources(layer))

    def _router(self, layer: int) -> Iterator[Tensor]:
        width = self._folder.entries[self._projections.query.format(layer=layer)].shape[1]
        rows = random_rows(self._plan.experts // self.groups, width, generator(self._plan.seed, layer, 0, 1))
        yield rows.repeat_interleave(self.groups, 0)

    def _queries(self, layer: int) -> Iterator[Tensor]:
        query = self._folder.read(self._projections.query.format(layer=layer))
        of_heads = query.reshape(self._keys, self.groups, -1, query.shape[1])
        for expert in range(self._plan.experts):
            yield of_heads[:, expert % self.groups]

    def _output_projections(self, layer: int) -> Iterator[Tensor]:
        output = self._folder.read(self._projections.output.format(layer=layer)).to(self.dtype(layer))
        scaled = scaled_weight(output, self.groups)
        of_heads = scaled.reshape(output.shape[0], self._keys, self.groups, -1)
        for expert in range(self._plan.experts):
            yield of_heads[:, :, expert % self.groups]

    def _keys_and_values(self, layer: int) -> Iterator[Tensor]:
        for name in (self._projections.key, self._projections.value):
            yield self._folder.read(name.format(layer=layer))

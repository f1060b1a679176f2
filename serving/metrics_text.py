"""Metrics in Prometheus' text format."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from runtime.errors import LexpertError
from runtime.histogram import Histogram
from serving.catalogue import Catalogue, ServedIndex
from serving.errors import ApiError
from serving.generation import Generator
from serving.metrics import Metrics
from serving.state import ServerState
from serving.text_batcher import TextBatcher

if TYPE_CHECKING:
    from prometheus_client.core import Metric

    from moe.generation.engine.engine import EngineState
    from runtime.meter import ActivityMeter

logger = logging.getLogger("serving")

ASKED_S = 2.0
"""How long other processes, that write or hold models, are waited for; what they would say is left out then."""

INDEX_GAUGES = {
    "documents": "Documents of an index, without deleted ones.",
    "deleted": "Deleted documents that its segments still hold.",
    "segments": "Segments of an index.",
    "postings": "Postings of an index.",
    "bytes": "Size of an index on disk.",
    "generation": "Commit of an index that searches see.",
}
"""Parts of `SparseIndex.stats` that are given, and what they are."""

ENGINE_GAUGES = {
    "running": "Sequences that are computed.",
    "waiting": "Sequences that wait for their turn.",
    "blocks": "Blocks of the key-value cache.",
    "held_blocks": "Blocks of the key-value cache that sequences use.",
}

ROUTED_S = 60.0
"""How far back the load of experts is looked at."""

ENGINE_COUNTERS = {
    "prompt_tokens": "Tokens of prompts, with those that were found in the cache.",
    "cached_tokens": "Tokens of prompts that were found in the cache.",
    "generated_tokens": "Tokens generated.",
    "preempted": "Times that a sequence gave its memory to others.",
    "steps": "Steps computed.",
}

ENGINE_HISTOGRAMS = {
    "step_seconds": "Of a step, of one token for every running sequence.",
    "step_sequences": "Sequences for which a step computed one token.",
    "step_prompt_tokens": "Tokens that a step computed beside, of prompts.",
}


async def metrics_text(state: ServerState, version: str) -> bytes:
    """All there is to say at this moment."""
    from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest

    registry = CollectorRegistry(auto_describe=False)
    ProcessCollector(registry=registry)
    indexes = await index_sizes(state)
    engines, loads = await asyncio.gather(engine_states(state.generators), expert_loads(state.generators))
    families = [
        *server_families(state, version),
        *request_families(state.metrics),
        *encoding_families(batchers(state.catalogue) if state.is_ready else {}),
        *index_families(indexes),
        *engine_families(engines),
        *expert_families(loads),
    ]
    registry.register(Collected(families))
    return generate_latest(registry)


class Collected:
    """What a registry takes: families that are there already."""

    def __init__(self, families: Sequence[Metric]) -> None:
        self._families = families

    def collect(self) -> Sequence[Metric]:
        return self._families


def server_families(state: ServerState, version: str) -> Iterator[Metric]:
    from prometheus_client.core import GaugeMetricFamily

    yield gauge("lexpert_info", "The software.", ("version",), {(version,): 1})
    yield GaugeMetricFamily("lexpert_uptime_seconds", "Since the server started.", state.metrics.uptime_s)
    yield GaugeMetricFamily("lexpert_ready", "Whether all indexes are open.", float(state.is_ready))
    yield GaugeMetricFamily(
        "lexpert_requests_in_flight", "Requests not answered to the end.", state.metrics.in_flight
    )


def request_families(metrics: Metrics) -> Iterator[Metric]:
    yield histogram(
        "lexpert_request_seconds",
        "From the header section of a request to the end of its answer.",
        ("method", "route", "status"),
        metrics.requests,
    )
    yield histogram(
        "lexpert_stage_seconds", "Spent in a stage of a request's work.", ("route", "stage"), metrics.stages
    )
    yield histogram(
        "lexpert_query_terms", "Terms of a query that weigh anything.", ("index",), metrics.query_terms
    )
    yield counter(
        "lexpert_requests_refused",
        "Requests that the server did not take.",
        ("status", "code"),
        metrics.refused,
    )


async def index_sizes(state: ServerState) -> dict[str, dict[str, float]]:
    """Sizes of each open index; what waits to be committed too, where the writer says it."""
    if not state.is_ready:
        return {}
    served = state.catalogue.indexes.values()
    return dict(await asyncio.gather(*(index_size(state, one) for one in served)))


async def index_size(state: ServerState, served: ServedIndex) -> tuple[str, dict[str, float]]:
    stats = await asyncio.to_thread(served.index.stats)
    sizes: dict[str, float] = {name: stats[name] for name in INDEX_GAUGES}
    if served.is_writable:
        try:
            async with asyncio.timeout(ASKED_S):
                pending = await state.writing.pending(served.name, served.uid)
            sizes |= {f"pending_{name}": size for name, size in pending.items()}
        except (ApiError, LexpertError, TimeoutError) as error:
            logger.debug("no pending writes of %s in the metrics: %s", served.name, error)
    return served.name, sizes


def index_families(indexes: Mapping[str, Mapping[str, float]]) -> Iterator[Metric]:
    told = {
        **INDEX_GAUGES,
        "pending_documents": "Documents written and not in a commit.",
        "pending_bytes": "Bytes written and not applied.",
    }
    for name, documentation in told.items():
        values = {(index,): sizes[name] for index, sizes in indexes.items() if name in sizes}
        shown = "version" if name == "generation" else name
        yield gauge(f"lexpert_index_{shown}", documentation, ("index",), values)


async def engine_states(generators: Mapping[str, Generator]) -> dict[str, EngineState | None]:
    """What each engine does; None for one that does not say."""

    async def asked(generator: Generator) -> EngineState | None:
        try:
            async with asyncio.timeout(ASKED_S):
                return await generator.state()
        except Exception as error:  # of whatever carries the question to another process
            logger.debug("no state of model %s in the metrics: %s", generator.name, error)
            return None

    return dict(zip(generators, await asyncio.gather(*map(asked, generators.values())), strict=True))


def engine_families(engines: Mapping[str, EngineState | None]) -> Iterator[Metric]:
    label = ("model",)
    up = {(name,): float(state is not None) for name, state in engines.items()}
    yield gauge("lexpert_generation_up", "Whether the engine of a model answers.", label, up)
    states = {(name,): state for name, state in engines.items() if state is not None}
    for field, documentation in ENGINE_GAUGES.items():
        values = {labels: getattr(state, field) for labels, state in states.items()}
        yield gauge(f"lexpert_generation_{field}", documentation, label, values)
    for field, documentation in ENGINE_COUNTERS.items():
        values = {labels: getattr(state, field) for labels, state in states.items()}
        yield counter(f"lexpert_generation_{field}", documentation, label, values)
    for field, documentation in ENGINE_HISTOGRAMS.items():
        counts = {labels: getattr(state, field) for labels, state in states.items()}
        yield histogram(f"lexpert_generation_{field}", documentation, label, counts)


async def expert_loads(generators: Mapping[str, Generator]) -> dict[tuple[str, str], ActivityMeter]:
    """By model and layer, what the experts did lately; nothing of a model that does not say."""

    async def asked(generator: Generator) -> Mapping[str, ActivityMeter]:
        try:
            async with asyncio.timeout(ASKED_S):
                return await generator.routing(ROUTED_S)
        except Exception as error:  # of whatever carries the question to another process
            logger.debug("no load of the experts of %s in the metrics: %s", generator.name, error)
            return {}

    found = await asyncio.gather(*map(asked, generators.values()))
    return {
        (name, layer): meter
        for name, meters in zip(generators, found, strict=True)
        for layer, meter in meters.items()
    }


def expert_families(loads: Mapping[tuple[str, str], ActivityMeter]) -> Iterator[Metric]:
    shares = {
        (*labels, str(expert)): share
        for labels, meter in loads.items()
        for expert, share in enumerate((meter.load / max(int(meter.load.sum()), 1)).tolist())
    }
    yield gauge(
        "lexpert_expert_load",
        "Share of a layer's tokens that an expert had in the last minute.",
        ("model", "layer", "expert"),
        shares,
    )
    yield gauge(
        "lexpert_expert_entropy",
        "Of the load of a layer's experts in the last minute, in nats.",
        ("model", "layer"),
        {labels: meter.report().entropy for labels, meter in loads.items()},
    )


def batchers(catalogue: Catalogue) -> dict[str, TextBatcher[Any]]:
    """The queues of encoders that have been used, by the index that has them; tables have no need of one."""
    every: dict[str, TextBatcher[Any]] = {
        name: index.encoder.batcher for name, index in catalogue.indexes.items()
    }
    every |= {name: dense.batcher for name, dense in catalogue.dense.items()}
    return {name: batcher for name, batcher in every.items() if any(batcher.batch_texts.counts)}


def encoding_families(batchers: Mapping[str, TextBatcher[Any]]) -> Iterator[Metric]:
    label = ("index",)
    waiting = {(name,): float(batcher.waiting) for name, batcher in batchers.items()}
    yield gauge("lexpert_encode_waiting", "Requests whose texts wait to be encoded.", label, waiting)
    texts = {(name,): batcher.batch_texts for name, batcher in batchers.items()}
    yield histogram("lexpert_encode_batch_texts", "Texts that were encoded together.", label, texts)
    tokens = {(name,): batcher.batch_tokens for name, batcher in batchers.items()}
    yield histogram("lexpert_encode_batch_tokens", "Tokens that were encoded together.", label, tokens)


def gauge(name: str, documentation: str, labels: Sequence[str], values: Mapping[Any, float]) -> Metric:
    from prometheus_client.core import GaugeMetricFamily

    family = GaugeMetricFamily(name, documentation, labels=labels)
    for key, value in values.items():
        family.add_metric(key, value)
    return family


def counter(name: str, documentation: str, labels: Sequence[str], values: Mapping[Any, float]) -> Metric:
    """Prometheus adds ``_total`` to the name."""
    from prometheus_client.core import CounterMetricFamily

    family = CounterMetricFamily(name, documentation, labels=labels)
    for key, value in values.items():
        family.add_metric(key, value)
    return family


def histogram(
    name: str, documentation: str, labels: Sequence[str], values: Mapping[Any, Histogram]
) -> Metric:
    from prometheus_client.core import HistogramMetricFamily

    family = HistogramMetricFamily(name, documentation, labels=labels)
    for key, times in values.items():
        family.add_metric(key, times.cumulative(), sum_value=times.sum)
    return family

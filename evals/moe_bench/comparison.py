"""Times layers of experts in turns: in each round every execution runs once, on other tokens than the ones before it.

Before each run a buffer larger than the caches is read, so that weights come from memory as they do in a model of many
layers, and the speed of that reading is the bandwidth that runs are held against.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import torch

from evals.moe_bench.layer import OURS, PEERS, QUANTISED, Layer
from evals.moe_bench.machine import Machine, OtherWork
from runtime.progress import progress

AS_IT_COMES = "highest"
"""torch's own setting of float32_matmul_precision."""

PRECISIONS = {torch.float32: ("medium", AS_IT_COMES), torch.bfloat16: (AS_IT_COMES,)}
"""Settings at which peers run. float32 products of few rows are faster through the library that medium chooses."""

HOPELESS = 3.0
"""A peer that takes so many times the best one's time in the first round is not run again."""

GATHER_LIMIT = 3 << 30
"""Bytes of weights up to which batched_mm is run; it copies those of each pair of token and expert."""

PATIENCE_S = 60.0
"""After so long, a case begins no further round once it has three; large batches vary little."""

FEW_TOKENS = 16
"""Up to here, weights of few bits are measured."""


@dataclass(frozen=True, slots=True)
class Case:
    """One row of the table."""

    tokens: int
    num_experts: int
    top_k: int
    dtype: str


@dataclass(slots=True)
class Timing:
    """How one execution did on one case.

    Attributes:
        name: of the execution; for peers with the precision behind it, ``"eager/medium"``.
        seconds: of all its runs but the first, in order of round.
        bound_s: the least that memory and arithmetic allow: the larger of bytes over bandwidth and operations over
            the speed of a large matrix product, both measured in this case.
        limit: which of the two.
        bytes: of weights that a run needs, mean.
    """

    name: str
    seconds: list[float] = field(default_factory=list)
    bound_s: float = 0.0
    limit: str = ""
    bytes: float = 0.0

    @property
    def median_s(self) -> float:
        return statistics.median(self.seconds)

    @property
    def least_s(self) -> float:
        """The fastest run: where other work disturbs most of them, it says more than the median."""
        return min(self.seconds)

    @property
    def of_bound(self) -> float:
        """Share of the attainable speed."""
        return self.bound_s / self.median_s


@dataclass(slots=True)
class Result:
    """Everything measured on one case.

    Attributes:
        bandwidth: bytes a second of a streaming read, median.
        operations: float32 operations a second of a large product, median.
        best_bandwidth, best_operations: the same at their best.
        work: float operations of the case.
        others: share of the cores that other processes had meanwhile.
        routing_share: of routing, dispatch and combine in the whole layer.
        left_out: peers that were not run, and why.
    """

    case: Case
    timings: list[Timing] = field(default_factory=list)
    bandwidth: float = 0.0
    operations: float = 0.0
    best_bandwidth: float = 0.0
    best_operations: float = 0.0
    work: int = 0
    others: float | None = None
    routing_share: float | None = None
    left_out: list[str] = field(default_factory=list)

    def timing(self, name: str) -> Timing | None:
        return next((timing for timing in self.timings if timing.name == name), None)

    def peers(self, precision: str) -> list[Timing]:
        return [timing for timing in self.timings if timing.name.endswith(f"/{precision}")]

    def best_peer(self, precision: str) -> Timing | None:
        return min(self.peers(precision), key=lambda timing: timing.median_s, default=None)

    def ratio(self, precision: str) -> float | None:
        """The best peer's time over ours, at one precision; above 1 we are faster."""
        ours, best = self.timing(OURS), self.best_peer(precision)
        return best.median_s / ours.median_s if ours and best else None

    @property
    def ratio_of_least(self) -> float | None:
        """`ratio` of fastest runs, at the precision at which peers are best off."""
        ours, peers = self.timing(OURS), self.peers(self.same_precision)
        return min(peer.least_s for peer in peers) / ours.least_s if ours and peers else None

    @property
    def of_bound_at_best(self) -> float | None:
        """Share that our fastest run has of what the fastest reading and the fastest product allow."""
        ours = self.timing(OURS)
        if ours is None:
            return None
        bound = max(ours.bytes / self.best_bandwidth, self.work / self.best_operations)
        return bound / ours.least_s

    @property
    def same_precision(self) -> str:
        """The precision at which peers are best off."""
        return PRECISIONS[getattr(torch, self.case.dtype)][0]


@dataclass(slots=True)
class Found:
    """The whole run."""

    width: int
    inner: int
    threads: int
    rounds: int
    results: list[Result] = field(default_factory=list)

    def geometric_mean(self, *, as_it_comes: bool = False) -> float | None:
        """Of all ratios to the best peer."""
        ratios = [
            result.ratio(AS_IT_COMES if as_it_comes else result.same_precision) for result in self.results
        ]
        logs = [math.log(ratio) for ratio in ratios if ratio]
        return math.exp(sum(logs) / len(logs)) if logs else None

    def to_json(self) -> dict[str, Any]:
        return {
            **{name: getattr(self, name) for name in ("width", "inner", "threads", "rounds")},
            "geometric_mean": self.geometric_mean(),
            "geometric_mean_as_it_comes": self.geometric_mean(as_it_comes=True),
            "results": [
                {
                    **asdict(result),
                    "ratio": result.ratio(result.same_precision),
                    "ratio_as_it_comes": result.ratio(AS_IT_COMES),
                    "ratio_of_least": result.ratio_of_least,
                    "of_bound_at_best": result.of_bound_at_best,
                    "timings": [
                        {**asdict(timing), "median_s": timing.median_s, "of_bound": timing.of_bound}
                        for timing in result.timings
                    ],
                }
                for result in self.results
            ],
        }


def compare_layers(
    cases: Sequence[Case], *, width: int, inner: int, rounds: int, machine: Machine | None = None
) -> Found:
    """Measure all cases; those of one layer follow each other, so that its weights are made once."""
    machine = machine or Machine()
    found = Found(width, inner, torch.get_num_threads(), rounds)
    layer = None
    with progress("measuring", len(cases), "cases") as advance, torch.inference_mode():
        for case in sorted(cases, key=lambda case: (case.dtype, case.num_experts, case.top_k, case.tokens)):
            dtype = getattr(torch, case.dtype)
            shape = (case.num_experts, case.top_k, dtype)
            if layer is None or (layer.num_experts, layer.top_k, layer.dtype) != shape:
                layer = None  # gives its memory back before the next one takes as much
                layer = Layer(case.num_experts, case.top_k, width, inner, dtype)
            found.results.append(_measure(layer, case, rounds, machine))
            advance(1)
    return found


def _measure(layer: Layer, case: Case, rounds: int, machine: Machine) -> Result:
    result = Result(case)
    contenders = _contenders(layer, case, result)
    other_work = OtherWork()
    bandwidths: list[float] = []
    speeds: list[float] = []
    timings = {name: Timing(name) for name in contenders}
    needed: dict[str, list[int]] = {name: [] for name in contenders}
    before = torch.get_float32_matmul_precision()
    try:
        started = time.perf_counter()
        for turn in range(rounds + 1):
            if turn > 3 and time.perf_counter() - started > PATIENCE_S:
                break
            speeds.append(machine.multiply())
            for place, (name, (execution, precision)) in enumerate(contenders.items()):
                hidden, experts, weights = layer.draw(case.tokens, seed=turn + place)
                torch.set_float32_matmul_precision(precision)
                layer.choose(execution)
                bandwidths.append(machine.read())
                seconds = _timed(partial(layer.run, execution, hidden, experts, weights))
                timings[name].seconds.append(seconds)
                needed[name].append(layer.bytes_read(experts, execution))
            if turn == 0:
                contenders = _without_hopeless(contenders, timings)
        result.routing_share = _routing_share(layer, case, rounds, machine)
    finally:
        torch.set_float32_matmul_precision(before)
    result.bandwidth, result.operations = statistics.median(bandwidths), statistics.median(speeds)
    result.best_bandwidth, result.best_operations = max(bandwidths), max(speeds)
    result.work = layer.operations(case.tokens)
    result.others = other_work.share()
    for name, timing in timings.items():
        # The first run compiles, and finds its memory unmapped.
        timing.seconds = timing.seconds[1:] or timing.seconds
        timing.bytes = statistics.fmean(needed[name])
        to_read, to_compute = (
            timing.bytes / result.bandwidth,
            result.work / result.operations,
        )
        timing.bound_s, timing.limit = max((to_read, "bytes"), (to_compute, "operations"))
    result.timings = list(timings.values())
    return result


def _contenders(layer: Layer, case: Case, result: Result) -> dict[str, tuple[str, str]]:
    """Name to execution and precision, ours first."""
    found = {OURS: (OURS, AS_IT_COMES)}
    if case.dtype == "bfloat16" and case.tokens <= FEW_TOKENS:
        found |= {name: (name, AS_IT_COMES) for name in QUANTISED}
    for peer in PEERS:
        size = layer.gathered_bytes(case.tokens)
        if peer == "batched_mm" and size > GATHER_LIMIT:
            result.left_out.append(f"batched_mm, which would copy {size / 2**30:.0f} GiB of weights")
            continue
        for precision in PRECISIONS[layer.dtype]:
            found[f"{peer}/{precision}"] = (peer, precision)
    return found


def _without_hopeless(
    contenders: dict[str, tuple[str, str]], timings: dict[str, Timing]
) -> dict[str, tuple[str, str]]:
    best = min(
        (timings[name].seconds[0] for name, (execution, _) in contenders.items() if execution in PEERS),
        default=math.inf,
    )
    return {
        name: contender
        for name, contender in contenders.items()
        if contender[0] not in PEERS or timings[name].seconds[0] <= HOPELESS * best
    }


def _routing_share(layer: Layer, case: Case, rounds: int, machine: Machine) -> float:
    hidden, _, _ = layer.draw(case.tokens, seed=0)
    router = torch.randn(layer.num_experts, layer.width, generator=torch.Generator().manual_seed(1))
    steps = layer.steps(hidden, router)
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            machine.read()
            seconds[name].append(_timed(step))
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    return medians["routing"] / sum(medians.values())


def _timed(run: Callable[[], Any]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started

"""Times an engine with many clients beside the same engine with one, in turns, on random weights."""

from __future__ import annotations

import random
import statistics
import threading
import time
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any

import torch

from evals.moe_bench.generation import Shape, random_model
from evals.moe_bench.machine import OtherWork
from moe.generation.engine import Engine, EngineSettings, Request
from runtime.progress import progress

SHAPE = Shape(layers=16, width=256, inner=128)
"""An eighth of OLMoE's width, with its 16 layers, and 8 of 64 experts: 130 million parameters, half as many of them
in experts' first matrices."""


@dataclass(frozen=True, slots=True)
class Load:
    """What each client asks for, one request after the other.

    Attributes:
        requests: of each client.
        prompt_tokens: of a request, drawn from half of it to as many again.
        new_tokens: of a request, drawn in the same way.
    """

    requests: int = 2
    prompt_tokens: int = 64
    new_tokens: int = 48


@dataclass(slots=True)
class Clients:
    """How the engine did for so many clients at once.

    Attributes:
        tokens: that were generated, in all rounds.
        seconds: of all rounds.
        cpu_s: that this process had of the cores meanwhile, which other work hardly changes.
        between_s: from a token of a request to its next one.
        first_s: from a request to its first token.
    """

    tokens: int = 0
    seconds: float = 0.0
    cpu_s: float = 0.0
    between_s: list[float] = field(default_factory=list)
    first_s: list[float] = field(default_factory=list)

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds

    @property
    def tokens_per_cpu_second(self) -> float:
        return self.tokens / self.cpu_s

    def between(self, quantile: float) -> float:
        """Seconds between two tokens that so many of all do not exceed."""
        ordered = sorted(self.between_s)
        return ordered[min(int(quantile * len(ordered)), len(ordered) - 1)]


@dataclass(slots=True)
class Concurrency:
    """What was found.

    Attributes:
        clients: by their number.
        others: share of all cores' time that other processes had meanwhile; None where it cannot be told.
    """

    shape: Shape
    load: Load
    parameters: int
    dtype: str
    threads: int
    rounds: int
    clients: dict[int, Clients]
    others: float | None

    def to_json(self) -> dict[str, Any]:
        found = {}
        for number, of in self.clients.items():
            found[number] = {
                "tokens": of.tokens,
                "seconds": of.seconds,
                "tokens_per_second": of.tokens_per_second,
                "tokens_per_cpu_second": of.tokens_per_cpu_second,
                "between_median_s": statistics.median(of.between_s),
                "between_p99_s": of.between(0.99),
                "first_median_s": statistics.median(of.first_s),
            }
        most = max(self.clients)
        return {
            **asdict(self),
            "clients": found,
            "ratio": self.clients[most].tokens_per_second / self.clients[1].tokens_per_second,
            "cpu_ratio": self.clients[most].tokens_per_cpu_second / self.clients[1].tokens_per_cpu_second,
        }


def compare_concurrency(
    shape: Shape,
    load: Load,
    *,
    clients: int,
    rounds: int,
    dtype: torch.dtype = torch.float32,
    settings: EngineSettings | None = None,
) -> Concurrency:
    """One client and `clients` of them in each round, with requests that differ in everything but their lengths."""
    from moe.generation.bfloat16_linear import use_bfloat16_linear

    model = random_model(shape, dtype)
    model.set_experts_implementation("lexpert")
    use_bfloat16_linear(model)
    found = {1: Clients(), clients: Clients()}
    others = OtherWork()
    with Engine(model, NoText(), settings) as engine, progress("generating", rounds + 1, "rounds") as advance:
        for number in range(rounds + 1):
            for count, of in found.items():
                one_round(engine, load, count, of if number else Clients(), seed=number)
            advance(1)
    return Concurrency(
        shape=shape,
        load=load,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        dtype=str(dtype).removeprefix("torch."),
        threads=torch.get_num_threads(),
        rounds=rounds,
        clients=found,
        others=others.share(),
    )


def one_round(engine: Engine, load: Load, clients: int, found: Clients, seed: int) -> None:
    """All clients at once, each with a thread of its own."""

    def work(client: int) -> None:
        draw = random.Random(1000 * seed + client)
        for _ in range(load.requests):
            prompt, new = (
                draw.randint(size // 2, size + size // 2) for size in (load.prompt_tokens, load.new_tokens)
            )
            ids = [draw.randrange(2, engine.vocabulary) for _ in range(prompt)]
            submitted = engine.submit(Request(ids, max(new, 2), ignore_end=True))
            times = [event.at for event in submitted]
            with lock:
                found.tokens += len(times)
                found.first_s.append(times[0] - submitted.timings.submitted)
                found.between_s += [after - before for before, after in pairwise(times)]

    lock = threading.Lock()
    threads = [threading.Thread(target=work, args=(client,)) for client in range(clients)]
    started, had = time.perf_counter(), time.process_time()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found.seconds += time.perf_counter() - started
    found.cpu_s += time.process_time() - had


class NoText:
    """A tokenizer for ids that stand for nothing: a letter each."""

    def decode(self, ids: list[int], **_: Any) -> str:
        return "".join(chr(0x4E00 + token % 20000) for token in ids)

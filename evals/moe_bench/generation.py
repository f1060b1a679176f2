"""Times generation on our implementation beside transformers' own, in turns, on one set of random weights."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any

import torch

from evals.moe_bench.machine import OtherWork
from runtime.progress import progress

DEFAULT = "transformers"
EXPERTS = "transformers with our experts"
OURS = "lexpert"

VOCABULARY = 50304
HEAD_WIDTH = 64


@dataclass(frozen=True, slots=True)
class Shape:
    """A decoder shaped as OLMoE (Muennighoff et al. 2024); as it stands, of 1.05 billion parameters.

    Attributes:
        width: of hidden states, a multiple of 64.
        inner: of one expert's hidden layer.
        num_experts: in each layer.
        top_k: of them that a token goes to.
    """

    layers: int = 9
    width: int = 1024
    inner: int = 512
    num_experts: int = 64
    top_k: int = 8
    vocabulary: int = VOCABULARY


@dataclass(slots=True)
class Generation:
    """How one implementation did.

    Attributes:
        prompt_s: from the start to the first token, of each round.
        token_s: of each later token, of all rounds.
        total_s: of each round.
        tokens: ids of the last round.
    """

    prompt_s: list[float] = field(default_factory=list)
    token_s: list[float] = field(default_factory=list)
    total_s: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)


@dataclass(slots=True)
class Comparison:
    """What was found.

    Attributes:
        generations: by name of the implementation.
        others: share of all cores' time that other processes had meanwhile; None where it cannot be told.
    """

    shape: Shape
    parameters: int
    dtype: str
    threads: int
    prompt_tokens: int
    new_tokens: int
    rounds: int
    generations: dict[str, Generation]
    others: float | None

    def ratio(self, name: str, part: str) -> float:
        """How many times as fast as transformers as it comes, by medians of ``"prompt_s"``, ``"token_s"`` or
        ``"total_s"``.
        """
        medians = [statistics.median(getattr(self.generations[which], part)) for which in (DEFAULT, name)]
        return medians[0] / medians[1]

    @property
    def same_tokens(self) -> float:
        """Share of tokens before the first that ours chose otherwise; roundings differ, so few may be equal."""
        ours, default = self.generations[OURS].tokens, self.generations[DEFAULT].tokens
        differing = [
            place for place, pair in enumerate(zip(ours, default, strict=True)) if pair[0] != pair[1]
        ]
        return (differing[0] if differing else len(ours)) / len(ours)

    def to_json(self) -> dict[str, Any]:
        parts = ("prompt_s", "token_s", "total_s")
        return {
            **asdict(self),
            "same_tokens": self.same_tokens,
            "ratios": {name: {part: self.ratio(name, part) for part in parts} for name in self.generations},
        }


def compare_generation(
    shape: Shape, *, prompt_tokens: int, new_tokens: int, rounds: int, dtype: torch.dtype = torch.bfloat16
) -> Comparison:
    """Generate greedily from a random prompt with each implementation in each round.

    The default is `generate` of the model as transformers loads it on this machine; ours is
    `moe.generation.generate_tokens` on the model as `moe.generation.DecoderFolder` loads it. All share their weights.

    Args:
        new_tokens: at least 3.
    """
    from moe.generation.bfloat16_linear import use_bfloat16_linear
    from moe.generation.tokens import generate_tokens

    default = random_model(shape, dtype)
    with_experts, ours = _sharing_weights(default), _sharing_weights(default)
    for model in (with_experts, ours):
        model.set_experts_implementation("lexpert")
    use_bfloat16_linear(ours)
    prompt = torch.randint(
        2, shape.vocabulary, (prompt_tokens,), generator=torch.Generator().manual_seed(0)
    ).tolist()
    runs: dict[str, Callable[[], list[tuple[float, int]]]] = {
        DEFAULT: lambda: _generate(default, prompt, new_tokens),
        EXPERTS: lambda: _generate(with_experts, prompt, new_tokens),
        OURS: lambda: [
            (time.perf_counter(), token) for token in generate_tokens(ours, prompt, max_tokens=new_tokens)
        ],
    }
    found = {name: Generation() for name in runs}
    others = OtherWork()
    with progress("generating", rounds + 1, "rounds") as advance:
        for number in range(rounds + 1):
            for name, run in runs.items():
                started = time.perf_counter()
                times, tokens = zip(*run(), strict=True)
                if number:  # the first compiles and allocates
                    found[name].prompt_s.append(times[0] - started)
                    found[name].token_s += [after - before for before, after in pairwise(times)]
                    found[name].total_s.append(times[-1] - started)
                    found[name].tokens = list(tokens)
            advance(1)
    return Comparison(
        shape=shape,
        parameters=sum(parameter.numel() for parameter in default.parameters()),
        dtype=str(dtype).removeprefix("torch."),
        threads=torch.get_num_threads(),
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
        rounds=rounds,
        generations=found,
        others=others.share(),
    )


def random_model(shape: Shape, dtype: torch.dtype) -> Any:
    """An OLMoE of transformers with random weights, as it comes from there."""
    import transformers

    import moe  # noqa: F401 - registers our experts

    config = transformers.OlmoeConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.width // HEAD_WIDTH,
        num_key_value_heads=shape.width // HEAD_WIDTH,
        num_experts=shape.num_experts,
        num_experts_per_tok=shape.top_k,
        eos_token_id=None,
        bos_token_id=None,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(config, dtype=dtype).eval()


def _sharing_weights(model: Any) -> Any:
    tensors = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})


def _generate(model: Any, prompt: list[int], new_tokens: int) -> list[tuple[float, int]]:
    streamer = _Times()
    ids = torch.tensor([prompt])
    model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=new_tokens,
        do_sample=False,
        streamer=streamer,
    )
    return streamer.tokens[1:]  # the prompt comes first


class _Times:
    """What `generate` hands its tokens to."""

    def __init__(self) -> None:
        self.tokens: list[tuple[float, int]] = []

    def put(self, ids: torch.Tensor) -> None:
        self.tokens.append((time.perf_counter(), int(ids.reshape(-1)[0])))

    def end(self) -> None:
        """Nothing is left to hand out."""

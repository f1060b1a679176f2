"""Is a training step with the fused head faster and smaller than with the plain formula?

    python bench/training_head.py [--rows 16] [--length 128] [--rounds 5] [--question step]

The model has the shape of MiniLM-L6 (6 layers of 384, vocabulary of 30,522) with random weights. Two questions:

- *head*: decoder, maximum and activation alone, there and back, from hidden states that are there already;
- *step*: a whole step of a document encoder: token ids to term weights, FLOPS and a loss, gradients, AdamW.

A *step* has a third variant, ``parts``: the fused head, `PART` texts at a time, and gradients taken through the model
in a second pass (``batch.part`` of a recipe).

Every variant runs in a process of its own, and rounds take turns. Time is the median of rounds, on the clock and in
processor time. Memory is the highest resident size during a step less the size before the first one, so that for a
*step* it has the gradients and AdamW's moments, which both variants need. ``density`` is the share of term weights
that are above 0: what the fused head's way back depends on. ``--rows-of fused=64`` gives a variant another batch, to
find the batch that fits the same memory.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from retrieval.encoders.masked_language_model import DecoderInput
from retrieval.training.gradient_cache import backward_in_parts
from retrieval.training.penalties import make_penalty
from retrieval.training.training_head import max_pooled_terms, plain_max_terms

WIDTH, TERMS = 384, 30522
BIAS = -2.0
"""Of the decoder: as in an encoder some way into its training, most logits are below 0."""

PART = 8
"""Texts of a part."""


def terms_of(variant: str, hidden: Tensor, rows: int, weight: Tensor, bias: Tensor) -> Tensor:
    length = len(hidden) // rows
    if variant != "plain":
        return max_pooled_terms(hidden, [length] * rows, weight, bias, "relu")
    mask = torch.ones(rows, length, dtype=torch.bool)
    return plain_max_terms(hidden.view(rows, length, -1), mask, weight, bias, "relu")


def head_work(variant: str, rows: int, length: int) -> Callable[[], float]:
    draw = torch.Generator().manual_seed(0)
    hidden = torch.randn(rows * length, WIDTH, generator=draw).requires_grad_()
    weight = (torch.randn(TERMS, WIDTH, generator=draw) * 0.04).requires_grad_()
    bias = torch.full((TERMS,), BIAS).requires_grad_()

    def work() -> float:
        for leaf in (hidden, weight, bias):
            leaf.grad = None
        terms = terms_of(variant, hidden, rows, weight, bias)
        terms.sum().backward()
        return float((terms > 0).float().mean())

    return work


def step_work(variant: str, rows: int, length: int) -> Callable[[], float]:
    from transformers import BertConfig, BertForMaskedLM

    torch.manual_seed(0)
    config = BertConfig(
        hidden_size=WIDTH, intermediate_size=4 * WIDTH, num_hidden_layers=6, num_attention_heads=12,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    model = BertForMaskedLM(config).train()
    decoder = model.get_output_embeddings()
    with torch.no_grad():
        decoder.weight.normal_(0.0, 0.04)
        decoder.bias.fill_(BIAS)
    model.set_submodule("cls.predictions.decoder", DecoderInput(decoder))
    optimiser = torch.optim.AdamW(model.parameters(), 2e-5)
    ids = torch.randint(1000, TERMS, (rows, length), generator=torch.Generator().manual_seed(0))
    penalty = make_penalty("flops")

    def encode(given: Tensor) -> Tensor:
        hidden = model(input_ids=given, attention_mask=torch.ones_like(given)).logits.flatten(0, 1)
        return terms_of(variant, hidden, len(given), decoder.weight, decoder.bias)

    density = 0.0

    def loss_of(parts: list[Tensor]) -> Tensor:
        nonlocal density
        terms = torch.cat(parts) if len(parts) > 1 else parts[0]
        density = float((terms > 0).float().mean())
        scores = terms @ terms.t()
        return torch.nn.functional.cross_entropy(scores, torch.arange(rows)) + 1e-3 * penalty(terms)

    def work() -> float:
        optimiser.zero_grad()
        if variant == "parts":
            backward_in_parts([partial(encode, part) for part in ids.split(PART)], loss_of)
        else:
            loss_of([encode(ids)]).backward()
        optimiser.step()
        return density

    return work


def resident_bytes(field: str) -> int:
    for line in Path("/proc/self/status").read_text("ascii").splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise SystemExit("this system does not tell the resident size of a process")


def serve(question: str, variant: str, rows: int, length: int) -> None:
    """Child process: measure memory once, then run one timed round for every line on standard input."""
    make = head_work if question == "head" else step_work
    # Kernels are compiled and libraries set up before the baseline is taken.
    terms_of(
        variant, torch.randn(8, 4).requires_grad_(), 2, torch.randn(6, 4), torch.zeros(6)
    ).sum().backward()
    work = make(variant, rows, length)
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts again from the present size
    before = resident_bytes("VmRSS")
    density = work()
    print(json.dumps([resident_bytes("VmHWM") - before, density]), flush=True)
    for _ in sys.stdin:
        started, processor_started = time.perf_counter(), time.process_time()
        work()
        print(
            json.dumps([time.perf_counter() - started, time.process_time() - processor_started]), flush=True
        )


def measure(question: str, rows_of: dict[str, int], length: int, rounds: int) -> None:
    children, memory, density = {}, {}, {}
    for variant, rows in rows_of.items():
        child = subprocess.Popen(
            [sys.executable, __file__, "--serve", question, variant, str(rows), str(length)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert child.stdin is not None
        assert child.stdout is not None
        line = child.stdout.readline()
        if not line:
            raise SystemExit(f"{question} {variant} ended with status {child.wait()} (out of memory?)")
        memory[variant], density[variant] = json.loads(line)
        children[variant] = (child, child.stdin, child.stdout)
    times: dict[str, list[list[float]]] = {variant: [] for variant in rows_of}
    for _ in range(rounds):
        for variant, (_, stdin, stdout) in children.items():
            stdin.write("again\n")
            stdin.flush()
            times[variant].append(json.loads(stdout.readline()))
    for child, stdin, _ in children.values():
        stdin.close()
        child.wait()
    for variant, rows in rows_of.items():
        result: dict[str, object] = {
            "question": question,
            "variant": variant,
            "rows": rows,
            "length": length,
            "density": round(density[variant], 4),
            "peak_mib": round(memory[variant] / 2**20),
            "plain_to_this_memory": round(memory["plain"] / memory[variant], 2),
        }
        if rounds:
            for at, name in enumerate(("clock", "processor")):
                mine, plain = (
                    statistics.median(taken[at] for taken in times[which]) / rows_of[which]
                    for which in (variant, "plain")
                )
                result |= {
                    f"{name}_ms_a_row": round(mine * 1e3, 1),
                    f"{name}_speedup": round(plain / mine, 2),
                }
        print(json.dumps(result), flush=True)


def main() -> None:
    if sys.argv[1:2] == ["--serve"]:
        question, variant, rows, length = sys.argv[2:]
        serve(question, variant, int(rows), int(length))
        return
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--question", choices=["head", "step", "both"], default="both")
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--rows-of", action="append", default=[], metavar="VARIANT=ROWS")
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5, help="0 measures memory alone")
    arguments = parser.parse_args()
    rows_of = dict.fromkeys(("plain", "fused", "parts"), arguments.rows)
    for given in arguments.rows_of:
        variant, _, rows = given.partition("=")
        if variant not in rows_of or not rows.isdigit():
            parser.error(f"--rows-of takes plain=ROWS, fused=ROWS or parts=ROWS, not {given}")
        rows_of[variant] = int(rows)
    for question in ("head", "step") if arguments.question == "both" else (arguments.question,):
        chosen = {name: rows for name, rows in rows_of.items() if question == "step" or name != "parts"}
        measure(question, chosen, arguments.length, arguments.rounds)


if __name__ == "__main__":
    main()

"""Is the fused vocabulary head smaller and faster than the plain formula?

    python bench/vocabulary_head.py [--rows 32] [--length 512] [--rounds 5]

The model is BERT-base in shape (12 layers of 768, vocabulary of 30,522) with random weights. Two questions:

- *head*: decoder and pooling alone, from hidden states that are there already;
- *model*: the whole way from token ids to term weights.

Every variant runs in a process of its own. Memory is the highest resident size during the work less the size
just before it, read from the system (so allocator slack counts); time is the median of rounds in which the
variants take turns, on the clock and, for machines that are busy otherwise, in processor time.

The outputs are compared with the plain formula's on the same batch: ``largest_difference`` is the head's own
error, float32 rounding of weights of up to ``largest_weight``. ``alone_difference`` is how far the first row of
the batch is from the same row run alone, by the same variant: what the batch changes. All rows are of one
length here; padding changes the transformer's own output further, with either head (see
`MaskedLanguageModel.weigh`).

The plain formula is that of `plain_pooled_terms`: all logits, then activation, then pooling. With --peer,
sentence-transformers' SparseEncoder (Transformer and SpladePooling) runs the *model* question too.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from retrieval.encoders.vocabulary_head import plain_pooled_terms, pooled_terms

WIDTH, TERMS = 768, 30522


Work = Callable[[int, int], Tensor]
"""Term weights of so many rows, cut to so many tokens."""


def head_work(variant: str, rows: int, length: int, pooling: str) -> Work:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(rows * length, WIDTH, generator=generator)
    weight = torch.randn(TERMS, WIDTH, generator=generator) * 0.05
    bias = torch.randn(TERMS, generator=generator) * 0.1

    def fused(rows: int, length: int) -> Tensor:
        return pooled_terms(hidden[: rows * length], [length] * rows, weight, bias, pooling, "relu")

    def plain(rows: int, length: int) -> Tensor:
        tokens = hidden[: rows * length].view(rows, length, WIDTH)
        mask = torch.ones(rows, length, dtype=torch.int64)
        return plain_pooled_terms(torch.nn.functional.linear(tokens, weight, bias), mask, pooling, "relu")

    return fused if variant == "fused" else plain


def model_work(variant: str, rows: int, length: int, pooling: str, folder: Path) -> Work:
    ids = torch.randint(1000, TERMS, (rows, length), generator=torch.Generator().manual_seed(0))

    if variant == "peer":
        from sentence_transformers import SparseEncoder
        from sentence_transformers.sparse_encoder.modules import SpladePooling, Transformer

        transformer = Transformer(str(folder), transformer_task="fill-mask")
        peer = SparseEncoder(modules=[transformer, SpladePooling(pooling)], device="cpu").eval()

        def weigh(ids: Tensor) -> Tensor:
            features = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
            return peer(features)["sentence_embedding"]

    elif variant == "plain":
        from transformers import AutoModelForMaskedLM

        model = AutoModelForMaskedLM.from_pretrained(folder).eval()

        def weigh(ids: Tensor) -> Tensor:
            mask = torch.ones_like(ids)
            logits = model(input_ids=ids, attention_mask=mask).logits
            return plain_pooled_terms(logits, mask, pooling, "relu")

    else:
        from retrieval.encoders.masked_language_model import MaskedLanguageModel

        ours = MaskedLanguageModel(folder, device="cpu", dtype="float32")

        def weigh(ids: Tensor) -> Tensor:
            return ours.weigh({"input_ids": ids.tolist()}, pooling, "relu")

    return lambda rows, length: weigh(ids[:rows, :length])


def make_work(question: str, variant: str, rows: int, length: int, pooling: str, folder: Path) -> Work:
    if question == "head":
        return head_work(variant, rows, length, pooling)
    return model_work(variant, rows, length, pooling, folder)


def resident_bytes(field: str) -> int:
    """`VmRSS` or `VmHWM` (its highest so far) of this process."""
    for line in Path("/proc/self/status").read_text("ascii").splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise SystemExit("this system does not tell the resident size of a process")


def serve(question: str, variant: str, rows: int, length: int, pooling: str, folder: Path) -> None:
    """Child process: measure memory once, then run one timed round for every line on standard input."""
    with torch.inference_mode():
        work = make_work(question, variant, rows, length, pooling, folder)
        work(1, 8)  # weights are paged in and libraries set up before the baseline is taken
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # so that what loading freed does not count as the baseline
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts again from the present size
        before = resident_bytes("VmRSS")
        weights = work(rows, length)
        grown = resident_bytes("VmHWM") - before
        alone = (work(1, length)[0] - weights[0]).abs().max().item()
        torch.save(weights, folder / f"{question}-{variant}.pt")
        print(json.dumps([grown, alone]), flush=True)
        for _ in sys.stdin:
            started, processor_started = time.perf_counter(), time.process_time()
            work(rows, length)
            taken = time.perf_counter() - started, time.process_time() - processor_started
            print(json.dumps(taken), flush=True)


def measure(question: str, variants: list[str], arguments: argparse.Namespace, folder: Path) -> None:
    memory: dict[str, int] = {}
    alone: dict[str, float] = {}
    times: dict[str, list[tuple[float, float]]] = {variant: [] for variant in variants}
    shape = [str(arguments.rows), str(arguments.length), arguments.pooling, str(folder)]
    children = {}
    for variant in variants:
        child = subprocess.Popen(
            [sys.executable, __file__, "--serve", question, variant, *shape],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert child.stdin is not None
        assert child.stdout is not None
        line = child.stdout.readline()
        if not line:
            raise SystemExit(f"{question} {variant} ended with status {child.wait()} (out of memory?)")
        memory[variant], alone[variant] = json.loads(line)
        children[variant] = (child, child.stdin, child.stdout)
    for _ in range(arguments.rounds):
        for variant, (_, stdin, stdout) in children.items():
            stdin.write("again\n")
            stdin.flush()
            times[variant].append(json.loads(stdout.readline()))
    for child, stdin, _ in children.values():
        stdin.close()
        child.wait()
    vectors = {variant: torch.load(folder / f"{question}-{variant}.pt") for variant in variants}
    for variant in variants:
        apart = (vectors[variant] - vectors["plain"]).abs().max().item()
        result = {
            "question": question,
            "variant": variant,
            "pooling": arguments.pooling,
            "rows": arguments.rows,
            "length": arguments.length,
            "peak_mib": round(memory[variant] / 2**20),
            "memory_ratio": round(memory[variant] / memory["plain"], 3),
            "largest_difference": float(f"{apart:.2g}"),
            "largest_weight": round(vectors["plain"].max().item(), 2),
            "alone_difference": float(f"{alone[variant]:.2g}"),
        }
        if arguments.rounds:
            result |= compare_times(times[variant], times["plain"])
        print(json.dumps(result), flush=True)


def compare_times(taken: list[tuple[float, float]], plain: list[tuple[float, float]]) -> dict[str, object]:
    """Medians of ``(clock, processor)`` seconds, and their ratios to the plain formula's."""
    wall, processor = (statistics.median(values) for values in zip(*taken, strict=True))
    plain_wall, plain_processor = (statistics.median(values) for values in zip(*plain, strict=True))
    return {
        "seconds": round(wall, 2),
        "fastest_slowest": [round(min(taken)[0], 2), round(max(taken)[0], 2)],
        "time_ratio": round(wall / plain_wall, 3),
        "processor_seconds": round(processor, 2),
        "processor_ratio": round(processor / plain_processor, 3),
    }


def write_model(folder: Path) -> None:
    """BERT-base with random weights, and a tokenizer of placeholder tokens that loading it asks for."""
    from tokenizers import Tokenizer, models
    from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    BertForMaskedLM(BertConfig()).save_pretrained(folder)
    words = {"[PAD]": 0, "[UNK]": 1} | {f"token{unit}": unit for unit in range(2, TERMS)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]").save_pretrained(folder)


def main() -> None:
    if sys.argv[1:2] == ["--serve"]:
        question, variant, rows, length, pooling, folder = sys.argv[2:]
        serve(question, variant, int(rows), int(length), pooling, Path(folder))
        return
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--pooling", choices=["max", "sum"], default="max")
    parser.add_argument("--rounds", type=int, default=5, help="0 measures memory alone")
    parser.add_argument("--peer", action="store_true", help="sentence-transformers beside the two")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        measure("head", ["plain", "fused"], arguments, folder)
        write_model(folder)
        measure("model", ["plain", "fused"] + ["peer"] * arguments.peer, arguments, folder)


if __name__ == "__main__":
    main()

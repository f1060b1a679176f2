"""Encoding over HTTP beside encoding in this process: many requests beside batches, and one beside one."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from runtime.progress import progress
from serving.bench.load import http_request, run_load
from serving.bench.search import NAME, WARM_S, Side, measure
from serving.bench.server_process import serving

if TYPE_CHECKING:
    from retrieval import SparseEncoder

BATCHES = (1, 2, 4, 8, 16, 32, 64)
TOP_K = 128
"""Terms of a vector that are answered."""

WIDTH, LAYERS, VOCABULARY, WORDS = 384, 6, 30_522, 48
LIT = 128
"""Terms that a text lights up in the random encoder, about."""


@dataclass(slots=True)
class EncodeCost:
    """What was found.

    Attributes:
        many: with many connections.
        lone: with one.
        batch: the size of batches with which this process was fastest.
        rates: texts a second in batches of that size, and microseconds of the cores for each, of each round.
        alone_s: seconds of each text by itself in this process.
        tried: microseconds of the cores for a text by size of batches, in a first round.
        others: share of all cores' time that other work had meanwhile; None where it cannot be told.
    """

    connections: int
    rounds: int
    many: Side
    lone: Side
    batch: int
    rates: list[tuple[float, float]]
    alone_s: list[float]
    tried: dict[int, float]
    others: float | None = None

    @property
    def batch_rate(self) -> float:
        return statistics.median(rate for rate, _ in self.rates)

    @property
    def cpu_ratio(self) -> float:
        """The same for each second of the cores, the client's included."""
        return statistics.median(of for _, of in self.rates) / sum(self.many.cpu.values())

    @property
    def ratio(self) -> float:
        """Texts a second over HTTP over those of the best batches."""
        return self.many.rate / self.batch_rate

    @property
    def alone_ms(self) -> float:
        return 1e3 * statistics.median(self.alone_s)

    @property
    def lone_ratio(self) -> float:
        """The time of a lone request over that of a text in this process."""
        return self.lone.median_ms / self.alone_ms

    def to_json(self) -> dict[str, Any]:
        return {
            "rounds": self.rounds,
            "ratio": self.ratio,
            "cpu_ratio": self.cpu_ratio,
            "lone_ratio": self.lone_ratio,
            "best_batch": self.batch,
            "batch_rate": self.batch_rate,
            "cpu_us_by_batch": self.tried,
            "in_process_ms": self.alone_ms,
            "sides": [
                {"connections": self.connections, **self.many.to_json()},
                {"connections": 1, **self.lone.to_json()},
            ],
            "others": self.others,
        }


def measure_encode(
    encoder: Path, texts: Sequence[str], scratch: Path, *, connections: int, rounds: int, seconds: float
) -> EncodeCost:
    """Encode texts over HTTP with many connections and with one, and in this process, in turns.

    Args:
        encoder: its folder.
        scratch: for an index with that encoder, and the server's configuration and log.
        seconds: of each load.

    Raises:
        LexpertError: the server does not start, or answers anything but 200.
    """
    from evals.moe_bench.machine import OtherWork
    from retrieval import IndexWriter, SparseEncoder

    loaded = SparseEncoder.load(str(encoder))
    folder = scratch / "encoder-index"
    if not folder.exists():
        with IndexWriter.create(folder, encoder=loaded) as writer:
            writer.add([{"_id": "1", "text": texts[0]}])
    requests = [
        http_request("POST", "/v1/encode", orjson.dumps({"model": NAME, "input": [text], "top_k": TOP_K}))
        for text in texts
    ]
    encode_batches(loaded, texts, 1, WARM_S)
    tried = {size: encode_batches(loaded, texts, size, seconds / 2)[1] for size in BATCHES}
    best = min(tried, key=lambda size: tried[size])
    found = EncodeCost(connections, rounds, Side(), Side(), best, [], [], tried)
    with (
        serving({"indexes": {NAME: str(folder)}}, scratch / "encode") as server,
        progress("measuring", rounds + 1, "rounds") as advance,
    ):
        others = OtherWork()
        for number in range(rounds + 1):
            of_round = seconds if number else WARM_S
            for side, count in ((found.lone, 1), (found.many, connections)):
                if number:
                    measure(side, server, requests, count, of_round)
                else:  # an encoder that has just started may take less than it will
                    run_load(server.port, requests, count, seconds=of_round, pause_s=0.1)
            rate = encode_batches(loaded, texts, best, of_round)
            alone = encode_alone(loaded, texts, of_round)
            if number:
                found.rates.append(rate)
                found.alone_s += alone
            advance(1)
        found.others = others.share()
    return found


def encode_batches(
    encoder: SparseEncoder, texts: Sequence[str], size: int, seconds: float
) -> tuple[float, float]:
    """Texts a second in batches of one size, and microseconds of the cores for each."""
    began, had, done = time.perf_counter(), time.process_time(), 0
    while time.perf_counter() - began < seconds:
        start = done % max(1, len(texts) - size + 1)
        encoder.encode_documents(texts[start : start + size])
        done += size
    return done / (time.perf_counter() - began), 1e6 * (time.process_time() - had) / done


def encode_alone(encoder: SparseEncoder, texts: Sequence[str], seconds: float) -> list[float]:
    """Seconds of each text, one after the other."""
    taken: list[float] = []
    ends = time.perf_counter() + seconds
    while time.perf_counter() < ends:
        began = time.perf_counter()
        encoder.encode_documents([texts[len(taken) % len(texts)]])
        taken.append(time.perf_counter() - began)
    return taken


def generated_texts(count: int) -> list[str]:
    """Texts of words of the random encoder's vocabulary, about `WORDS` of them each."""
    draw = random.Random(0)
    return [
        " ".join(f"w{draw.randrange(5, VOCABULARY)}" for _ in range(draw.randint(WORDS // 2, WORDS * 3 // 2)))
        for _ in range(count)
    ]


def random_encoder(cache: Path) -> Path:
    """The folder of a SPLADE encoder of 6 layers of width 384 with random weights, made once and kept."""
    folder = cache / "random-encoder"
    if folder.exists():
        return folder
    from shutil import rmtree

    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast

    unfinished = folder.with_suffix(".new")
    rmtree(unfinished, ignore_errors=True)
    special = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    words = {word: number for number, word in enumerate(special)}
    words |= {f"w{number}": number for number in range(len(special), VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = dict(
        zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), special, strict=True)
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=512, **names)
    torch.manual_seed(0)
    model = BertForMaskedLM(
        BertConfig(
            vocab_size=VOCABULARY,
            hidden_size=WIDTH,
            intermediate_size=4 * WIDTH,
            num_hidden_layers=LAYERS,
            num_attention_heads=WIDTH // 32,
        )
    ).eval()
    with torch.no_grad():
        logits = model(**fast(generated_texts(4), return_tensors="pt", padding=True)).logits
        # So low that a text lights up as many terms as one does in an encoder that has learned to be sparse.
        model.cls.predictions.decoder.bias -= logits.amax(1).quantile(1 - LIT / VOCABULARY)
    model.save_pretrained(unfinished)
    fast.save_pretrained(unfinished)
    unfinished.rename(folder)
    return folder

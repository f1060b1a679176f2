"""Is it better to go on training a dense model, or to upcycle it and train that, for the same compute?

    python bench/upcycling.py MODEL TEXT... [--steps 500] [--out docs/upcycling-continued.png] [--work FOLDER]
    python bench/upcycling.py MODEL TEXT... --new 2000 --batch-size 64 --precision bfloat16 --work FOLDER

The comparison of Komatsuzaki et al. (2022) and Doubov et al. (2024), small: a dense decoder and what is made of it
(copied experts; experts half drawn anew, "drop") are trained on the same text with the same optimiser, learning rate
and blocks, and each is given the same floating-point operations, forward and backward. A token of a sparse model costs
more, so that it sees fewer. Perplexity is that of the held-out end of the text, the same blocks for all.

With ``--new STEPS`` the dense model is made first: a decoder drawn at random in the folder MODEL, if that is not there,
with a vocabulary of its own, is trained for so many steps on the same text, without the end that is held out. It has
20 to 60 million parameters, which needs a GPU, unless its sizes are given smaller.

Several texts are dealt into one, so that some of each is held out. Serving costs more too: the time of a forward pass
is measured beside, of all models in turns.

A training that is there (FOLDER) is not done again. MODEL can be made of a llama2.c checkpoint by
``lexpert moe import-llama2c``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.mixed_text import mix_texts
from bench.new_decoder import DecoderShape, draw_decoder
from moe.language_model_folder import LanguageModelFolder
from moe.token_stream import block_length
from moe.training import TrainingReport, TrainingSettings, train
from moe.training.flops import training_flops_per_token
from moe.training.settings import PRECISIONS
from moe.upcycle import upcycle
from runtime.step_log import read_records

EXPERTS, TOP_K = 8, 2
ROUTES = {
    "dense, continued": None,
    "upcycled by copy": {"method": "copy"},
    "upcycled by drop, r = .5": {"method": "drop", "drop": 0.5},
}
COLOURS = {
    "dense, continued": "#22282d", "upcycled by copy": "#2a6f97", "upcycled by drop, r = .5": "#d1663b",
}  # fmt: skip


def main(given: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("text", type=Path, nargs="+")
    parser.add_argument("--steps", type=int, default=500, help="of the dense model that is gone on with")
    parser.add_argument(
        "--new", type=int, metavar="STEPS", help="train MODEL first, drawn if it is not there"
    )
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--block", type=int, default=None)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--max-tokens", type=int, default=None)
    parser.add_argument("--precision", choices=PRECISIONS, default="float32")
    parser.add_argument("--seed", type=int, default=0)
    sizes = parser.add_argument_group("sizes of a model that is drawn")
    for field in fields(DecoderShape):
        sizes.add_argument(f"--{field.name}", type=int, default=field.default)
    parser.add_argument("--out", type=Path, default=Path("upcycling-continued.png"))
    parser.add_argument("--work", type=Path, help="keeps the trainings")
    arguments = parser.parse_args(given)
    with tempfile.TemporaryDirectory() as scratch:
        work = arguments.work or Path(scratch)
        work.mkdir(parents=True, exist_ok=True)
        text = one_text(arguments.text, work)
        dense = arguments.model if arguments.new is None else new_model(text, work, arguments)
        models = {name: make(dense, work, name) for name in ROUTES}
        costs = {name: cost(model, arguments.block) for name, model in models.items()}
        reports = {
            name: continued(model, name, text, work, costs, arguments) for name, model in models.items()
        }
        times = serving(models, arguments.block)
        draw(reports, work, arguments)
    for line in table(reports, times):
        print(line)


def one_text(texts: list[Path], work: Path) -> Path:
    if len(texts) == 1:
        return texts[0]
    out = work / "text.txt"
    if not out.exists():
        mix_texts(texts, out)
    return out


def new_model(text: Path, work: Path, arguments: argparse.Namespace) -> Path:
    """Draw a dense model, and train it as the comparison will; the folder of what that gives."""
    if not arguments.model.exists():
        sizes = {field.name: getattr(arguments, field.name) for field in fields(DecoderShape)}
        draw_decoder(arguments.model, text, DecoderShape(**sizes), arguments.seed)
    report = train(arguments.model, [text], work / "new", settings_of(arguments, arguments.new), resume=True)
    print(
        f"{report.parameters:,} parameters after {report.tokens:,} tokens: "
        f"perplexity {report.first_perplexity:.1f} → {report.last_perplexity:.3f}"
    )
    return Path(report.out) / "model"


def make(dense: Path, work: Path, name: str) -> Path:
    options: dict[str, Any] | None = ROUTES[name]
    if options is None:
        return dense
    out = work / options["method"]
    if not out.exists():
        upcycle(dense, out, experts=EXPERTS, top_k=TOP_K, **options)
    return out


def cost(model: Path, block: int | None) -> float:
    """Floating-point operations of training, by the number of tokens."""
    loaded = LanguageModelFolder.load(model).model
    ids = random_block(loaded, block)
    return training_flops_per_token(loaded, ids)


def continued(
    model: Path, name: str, text: Path, work: Path, costs: dict[str, float], arguments: argparse.Namespace
) -> TrainingReport:
    """Train for the operations that the dense model's steps take."""
    steps = round(arguments.steps * costs["dense, continued"] / costs[name])
    settings = settings_of(arguments, steps)
    return train(model, [text], folder_of(work, name), settings, resume=True)


def settings_of(arguments: argparse.Namespace, steps: int) -> TrainingSettings:
    """The same blocks are trained on and held out, whatever the number of steps."""
    return TrainingSettings(
        steps=steps,
        batch_size=arguments.batch_size,
        block=arguments.block,
        learning_rate=arguments.learning_rate,
        warmup=steps // 20,
        max_tokens=arguments.max_tokens,
        seed=arguments.seed,
        precision=arguments.precision,
        held_out=0.02,
        eval_blocks=64,
        eval_every=max(1, steps // 10),
        save_every=steps,
    )


def folder_of(work: Path, name: str) -> Path:
    options = ROUTES[name]
    return work / f"{'dense' if options is None else options['method']}-continued"


@torch.inference_mode()
def serving(models: dict[str, Path], block: int | None) -> dict[str, float]:
    """Median seconds of a forward pass over one block."""
    loaded = {name: LanguageModelFolder.load(model).model for name, model in models.items()}
    taken: dict[str, list[float]] = {name: [] for name in loaded}
    for _ in range(15):
        for name, model in loaded.items():
            ids = random_block(model, block)
            started = clock(model)
            model(input_ids=ids)
            taken[name].append(clock(model) - started)
    return {name: statistics.median(values[3:]) for name, values in taken.items()}


def random_block(model: Any, block: int | None) -> torch.Tensor:
    return torch.randint(3, model.config.vocab_size, (1, block_length(model, block)), device=model.device)


def clock(model: Any) -> float:
    """Seconds: of the processor, or on a GPU until it has done what it was told."""
    if model.device.type != "cuda":
        return time.process_time()
    torch.cuda.synchronize(model.device)
    return time.perf_counter()


def table(reports: dict[str, TrainingReport], times: dict[str, float]) -> list[str]:
    dense = next(iter(reports.values()))
    lines = [
        "| | parameters | MFLOP a token | tokens | TFLOP | perplexity before | after | forward pass |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, report in reports.items():
        lines.append(
            f"| {name} | {report.parameters:,} | {report.flops_per_token / 1e6:.2f} | {report.tokens:,} | "
            f"{report.flops / 1e12:.3f} | {report.first_perplexity:.3f} | {report.last_perplexity:.3f} | "
            f"{times[name] / times['dense, continued']:.2f}× |"
        )
    lines.append("")
    lines.append(
        json.dumps({"held_out_blocks": dense.held_out_blocks, "tokens_per_step": dense.tokens_per_step})
    )
    return lines


def draw(reports: dict[str, TrainingReport], work: Path, arguments: argparse.Namespace) -> None:
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

    figure = Figure(figsize=(9.6, 4.2), layout="constrained", dpi=130)
    figure.suptitle(
        f"{arguments.model.name}: going on dense, or upcycled to {EXPERTS} experts, {TOP_K} a token",
        x=0.01, ha="left", fontsize=12,
    )  # fmt: skip
    panels = figure.subplots(1, 2, sharey=True)
    for name, report in reports.items():
        records = read_records(folder_of(work, name) / "steps.jsonl")
        held_out = [record for record in records if "held_out_perplexity" in record]
        values = [record["held_out_perplexity"] for record in held_out]
        tokens = [record["step"] * report.tokens_per_step for record in held_out]
        flops = [count * report.flops_per_token / 1e12 for count in tokens]
        style = {"color": COLOURS[name], "marker": "o", "markersize": 3.5, "linewidth": 1.5}
        panels[0].plot(flops[1:], values[1:], label=f"{name}: {values[-1]:.2f}", **style)
        panels[1].plot([count / 1e6 for count in tokens[1:]], values[1:], label=name, **style)
    starts = ", ".join(f"{report.first_perplexity:.1f}" for report in reports.values())
    for axes, label in zip(panels, ("training, TFLOP", "training, million tokens"), strict=True):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 7)))
        axes.yaxis.set_major_formatter(ScalarFormatter())
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel(label)
        axes.grid(color="#e4e8eb", linewidth=0.6)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    panels[0].set_title(f"held-out perplexity; {starts} before", loc="left", fontsize=10)
    panels[1].set_title("the same by tokens seen", loc="left", fontsize=10)
    panels[0].legend(frameon=False, fontsize=9)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(arguments.out, format="png", facecolor="white")


if __name__ == "__main__":
    main()

"""Training: a model and a text in, a trained model and the figures of each step out."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from moe.language_model_folder import LanguageModelFolder, Objective, objective_of, without_progress_bars
from moe.stats.recorder import RoutingRecorder
from moe.token_stream import block_length, stream_tokens
from moe.training.blocks import TokenBlocks, split_blocks, spread, write_tokens
from moe.training.flops import training_flops_per_token
from moe.training.objective import Loss, causal_loss, masked_loss
from moe.training.settings import TrainingSettings
from runtime.errors import NotFoundError, UsageError
from runtime.output_folder import new_folder, require_room
from runtime.processes import Processes, joined_processes
from runtime.run_folder import DIGESTS, RunFolder, open_run, read_json, write_json
from runtime.step_log import StepLog, read_records


@dataclass(frozen=True, slots=True)
class TrainingReport:
    """What a training did.

    Attributes:
        model: the folder that it started from.
        out: the folder of the training; the trained model is in ``out/model``.
        model_type: of transformers.
        layers: modules of the routers; empty for a dense model.
        steps: of the optimiser.
        tokens: that training took, of them `tokens_per_step` in each step.
        parameters: of the model; tied ones count once.
        flops_per_token: of training, forward and backward; see `moe.training.flops`.
        flops: of all tokens.
        held_out_blocks: blocks of an evaluation.
        first_perplexity, last_perplexity: on the held-out blocks, before the first step and after the last.
        seconds: of this process; less than the whole where the training was gone on with.
    """

    model: str
    out: str
    model_type: str
    layers: list[str]
    steps: int
    tokens: int
    tokens_per_step: int
    parameters: int
    flops_per_token: float
    flops: float
    held_out_blocks: int
    first_perplexity: float
    last_perplexity: float
    seconds: float


def train(
    model: str | Path,
    text: Sequence[str | Path],
    out: str | Path,
    settings: TrainingSettings | None = None,
    *,
    resume: bool = False,
    device: str | None = None,
) -> TrainingReport:
    """Train a language model on text files: a dense one, or one with experts.

    The loss is that of the objective; with experts, each layer's load balance (1 when even) and z-loss are added,
    each times its coefficient. The auxiliary loss of transformers, which pools all layers, takes no part. Weights
    are float32, whatever the precision of the products.

    A training that was stopped, by a kill too, is gone on with from its last checkpoint, and ends with the weights
    that it would have had, to the bit on the same machine with the same number of threads.

    Started by torchrun, its processes train together, one for each device, each with `batch_size` blocks: the same as
    one process that accumulates as many batches more. Losses of routers are those of each batch by itself; what is
    written down is of all.

    Args:
        model: folder of a decoder or, with the objective ``"masked"``, an encoder, with its tokenizer.
        text: UTF-8 files, or such files compressed by gzip; blank lines separate documents.
        out: folder of the training; see `runtime.run_folder`.
        settings: `TrainingSettings`, with its defaults when None.
        resume: go on in `out`; where there is nothing to go on with, start. A training that is done is reported
            again.
        device: of torch; None takes a GPU where there is one, or one for each process.

    Raises:
        NotFoundError: the model, its tokenizer or a text is missing, or an optional package is.
        FormatError: the model cannot be loaded.
        InputError: the text is too short, or not UTF-8.
        UsageError: the objective does not fit the model, or `out` was started with other settings or another text.
        ConflictError: `out` exists and is not empty, without `resume`, or another process trains in it.
        LexpertError: the loss is no number.
    """
    _require_accelerate()
    settings = settings or TrainingSettings()
    model, out = Path(model), Path(out)
    if not text:
        raise UsageError("there is no text to train on; give at least one file")
    for path in map(Path, text):
        if not path.is_file():
            raise NotFoundError(f"{path} is missing or no file; give a text file")
    if (model / "config.json").is_file():
        _require_objective(model, settings.objective)
    with joined_processes(device) as processes:
        # Loaded first: a folder that holds no model must not leave a folder of a training behind.
        loaded = LanguageModelFolder.load(model, dtype="float32", device=processes.device)
        _require_checkpointing(model, loaded.model, settings)
        length = block_length(loaded.model, settings.block)
        loss = causal_loss if settings.objective == "causal" else masked_loss(loaded.tokenizer)
        request = {
            "model": str(model.resolve()),
            "text": [str(Path(path).resolve()) for path in text],
            DIGESTS: [_digest(Path(path)) for path in text],
            **asdict(settings),
            "block": length,
            "processes": processes.count,
        }
        with open_run(out, request, resume, processes.leads) as run:
            if processes.leads and not run.report.exists() and not run.tokens.exists():
                write_tokens(stream_tokens(text, loaded.tokenizer), run.tokens, settings.max_tokens)
            processes.wait()
            if run.report.exists():
                return TrainingReport(**read_json(run.report))
            training, held_out = split_blocks(
                run.tokens, length, settings.held_out, least=settings.blocks_per_step * processes.count
            )
            evaluation = spread(held_out, settings.eval_blocks)
            with without_progress_bars():
                return _run(model, loaded, settings, loss, training, evaluation, run, processes)


def _run(
    model: Path,
    loaded: LanguageModelFolder,
    settings: TrainingSettings,
    loss: Loss,
    training: TokenBlocks,
    evaluation: TokenBlocks,
    run: RunFolder,
    processes: Processes,
) -> TrainingReport:
    from moe.training.trainer import ExpertTrainer, perplexity

    started = time.perf_counter()
    trained: Any = loaded.model
    sample = training[0]["input_ids"][None].to(trained.device)
    flops_per_token = training_flops_per_token(trained, sample)
    parameters = sum(parameter.numel() for parameter in trained.parameters())
    # A checkpoint has the weights and AdamW's two moments; one more is there until an old one is removed.
    if processes.leads:
        require_room(run.checkpoints, parameters * 12 * (settings.keep + 1))
    start = run.last_step()
    if processes.leads and start is not None:
        run.verify(start)
    processes.wait()  # until all have seen where to start
    log = StepLog(run.log, run.tensorboard, start) if processes.leads else None
    try:
        with processes.progress("training", settings.steps - (start or 0), "steps") as advance:
            trainer = ExpertTrainer(
                trained,
                settings,
                loss,
                training,
                evaluation,
                run,
                log,
                advance,
                at_start=start is None,
                processes=processes,
            )
            if start == settings.steps:  # transformers would take one step more
                trainer._load_from_checkpoint(str(run.checkpoint(start)))
            else:
                trainer.train(resume_from_checkpoint=None if start is None else str(run.checkpoint(start)))
    finally:
        if log is not None:
            log.close()
    if not processes.leads:
        processes.wait()
        return TrainingReport(**read_json(run.report))
    records = read_records(run.log)
    held_out = [record["held_out_loss"] for record in records if "held_out_loss" in record]
    if not run.model.exists():
        with new_folder(run.model) as partial:
            trained.eval().save_pretrained(partial)
            loaded.tokenizer.save_pretrained(partial)
    tokens_per_step = settings.blocks_per_step * processes.count * training.ids.shape[1]
    tokens = settings.steps * tokens_per_step
    report = TrainingReport(
        model=str(model),
        out=str(run.out),
        model_type=trained.config.model_type,
        layers=RoutingRecorder(trained).layers,
        steps=settings.steps,
        tokens=tokens,
        tokens_per_step=tokens_per_step,
        parameters=parameters,
        flops_per_token=flops_per_token,
        flops=flops_per_token * tokens,
        held_out_blocks=len(evaluation),
        first_perplexity=perplexity(held_out[0]),
        last_perplexity=perplexity(held_out[-1]),
        seconds=time.perf_counter() - started,
    )
    _draw(run, records, report)
    write_json(run.report, asdict(report))
    processes.wait()
    return report


def _draw(run: RunFolder, records: list[dict[str, Any]], report: TrainingReport) -> None:
    from importlib.util import find_spec

    if find_spec("matplotlib") is None:
        return  # the log has all of it
    from moe.training.picture import plot_training

    plot_training(records, f"{Path(report.model).name}, {report.model_type}", run.picture)


def _require_checkpointing(folder: Path, model: Any, settings: TrainingSettings) -> None:
    if settings.checkpointing and not model.supports_gradient_checkpointing:
        raise UsageError(
            f"{folder} is of the architecture {model.config.model_type!r}, which cannot compute activations again "
            "in the backward pass; leave gradient checkpointing out"
        )


def _require_objective(folder: Path, objective: Objective) -> None:
    possible = objective_of(folder)
    if possible == "masked" and objective == "causal":
        raise UsageError(
            f"{folder} is no decoder but an encoder, which predicts masked tokens; train it with the objective mlm"
        )
    if possible == "causal" and objective == "masked":
        raise UsageError(f"{folder} is a decoder and predicts no masked tokens; leave the objective out")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()


def _require_accelerate() -> None:
    try:
        import accelerate  # noqa: F401 - the Trainer needs it, and says so in many words
        import transformers  # noqa: F401
    except ImportError as error:
        raise NotFoundError(
            f"training needs {error.name}, which is not installed; run: pip install 'lexpert[train]'"
        ) from None

"""The Trainer of transformers with the losses of routers, their statistics, and checkpoints that are whole."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import transformers
from torch import Tensor

from moe.routing.balance import BiasBalance, update_biases
from moe.stats.layer_activity import LayerActivity
from moe.stats.recorder import LayerRouting, RoutingRecorder
from moe.training.blocks import Batch, TokenBlocks, stack
from moe.training.objective import Loss
from moe.training.router_precision import keep_routers_in_float32
from moe.training.settings import TrainingSettings
from runtime.errors import FormatError, LexpertError, UsageError
from runtime.processes import ALONE, Processes
from runtime.progress import Advance
from runtime.run_folder import RunFolder
from runtime.step_log import Record, StepLog

Figures = tuple[list[float], int, dict[str, LayerActivity]]
"""Losses of the batches of a step, tokens, and activity by the name of the layer."""


class ExpertTrainer(transformers.Trainer):
    """Trains on blocks of tokens: the loss of the objective, and with it that of each layer's router.

    In evaluation the loss is that of the objective alone, so that dense and sparse models compare.

    Args:
        model: of transformers, dense or with experts.
        settings: what is asked for.
        loss: of the objective.
        training, evaluation: blocks.
        run: where checkpoints go.
        log: where the figures of each step go; None in a process that does not lead.
        advance: called with 1 after each step.
        at_start: whether to evaluate before the first step.
        processes: that train together.
    """

    def __init__(
        self,
        model: Any,
        settings: TrainingSettings,
        loss: Loss,
        training: TokenBlocks,
        evaluation: TokenBlocks,
        run: RunFolder,
        log: StepLog | None,
        advance: Advance,
        *,
        at_start: bool,
        processes: Processes = ALONE,
    ) -> None:
        super().__init__(
            model=model,
            args=_arguments(settings, run, model, at_start),
            data_collator=stack,
            train_dataset=training,
            eval_dataset=evaluation,
            callbacks=[_EachStep(advance, self._set_balance, processes)],
        )
        self.remove_callback(transformers.PrinterCallback)
        # The mean over a batch is the loss, and batches of a step are averaged.
        self.model_accepts_loss_kwargs = False
        self.balance_coefficient = settings.balance
        self._settings, self._loss, self._run, self._log = settings, loss, run, log
        self._model_config = model.config
        self._recorder = RoutingRecorder(model)
        if settings.precision == "bfloat16":
            keep_routers_in_float32(model)
        self._figures = _StepFigures()
        self._processes = processes
        if processes.rank:
            # The order of blocks has a generator of its own; masks and dropout are to differ.
            torch.manual_seed(settings.seed + processes.rank)

    def compute_loss(
        self,
        model: Any,
        inputs: Batch,
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Mean of the objective over a batch, plus the routers' losses; what transformers calls in training."""
        del num_items_in_batch
        with self._recorder:
            loss = self._loss(model, inputs["input_ids"], None)
            routings = self._recorder.take()
        self._figures.add(loss, routings, inputs["input_ids"].numel())
        # Losses that only some routers have keep the coefficients of the model's configuration.
        coefficients = dict(getattr(self._model_config, "router_losses", None) or {})
        coefficients |= {"load_balance": self.balance_coefficient, "z": self._settings.z}
        for routing in routings:
            if routing.unknown_scores and self.balance_coefficient:
                raise UsageError(
                    f"{routing.layer} weighs its experts by neither the softmax nor the sigmoids of its logits, for "
                    "which no balance loss is known; train with --balance 0"
                )
            for name, coefficient in coefficients.items():
                if name in routing.losses:
                    loss = loss + coefficient * routing.losses[name]
        return (loss, None) if return_outputs else loss

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        """Of all held-out blocks: what fills no batch is left out of a training's epoch alone."""
        self.args.dataloader_drop_last = False
        try:
            return super().get_eval_dataloader(eval_dataset)
        finally:
            self.args.dataloader_drop_last = True

    @torch.no_grad()
    def prediction_step(
        self,
        model: Any,
        inputs: Batch,
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """The objective over a batch of held-out blocks; masks are the same in each evaluation."""
        del prediction_loss_only, ignore_keys
        ids = self._prepare_inputs(inputs)["input_ids"]
        return self._loss(model, ids, torch.Generator().manual_seed(self._settings.seed)), None, None

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:  # noqa: ARG002
        """Write the figures of a step, or of an evaluation; transformers calls this with its own figures."""
        step = self.state.global_step
        if "eval_loss" in logs:
            loss = logs["eval_loss"]
            record: Record = {"step": step, "held_out_loss": loss, "held_out_perplexity": perplexity(loss)}
        elif "loss" in logs:
            record = {"step": step, "loss": logs["loss"], **self._figures.take(self._processes)}
            record["balance_coefficient"] = self.balance_coefficient
            record |= {name: logs[name] for name in ("learning_rate", "grad_norm") if name in logs}
            if not math.isfinite(logs["loss"]):
                raise LexpertError(
                    f"the loss is {logs['loss']} at step {step}; train anew with a lower learning rate, or a "
                    "warmup"
                )
        else:
            return
        if self._log is not None:
            self._log.add(record)
        super().log({name: value for name, value in record.items() if name not in ("step", "layers")})

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        self._processes.wait()  # each has written its random state
        if self._log is None:
            return
        self._log.flush()
        self._run.finish_checkpoint(self.state.global_step, self._settings.keep)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        # transformers' own way passes over the names that experts have on disk, warns, and leaves them as they are.
        model = model or self.model
        saved, report = type(model).from_pretrained(
            resume_from_checkpoint, dtype=torch.float32, local_files_only=True, output_loading_info=True
        )
        missing = sorted(map(str, report["missing_keys"]))
        if missing:
            raise FormatError(
                f"{resume_from_checkpoint} has no {missing[0]}; remove it to go on from an earlier one"
            )
        model.load_state_dict(saved.state_dict())

    def _set_balance(self, step: int) -> None:
        self.balance_coefficient = self._settings.balance_schedule(step)


def perplexity(loss: float) -> float:
    """``exp`` of a mean cross-entropy; infinite where that has no number."""
    return math.exp(loss) if loss < 700 else math.inf


class _EachStep(transformers.TrainerCallback):
    """What happens around each step: schedule, balancing biases, progress, and a last evaluation."""

    def __init__(
        self,
        advance: Advance,
        set_balance: Callable[[int], None],
        processes: Processes,
    ) -> None:
        self._advance = advance
        self._set_balance = set_balance
        self._processes = processes

    def on_step_begin(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        del args, control, rest
        self._set_balance(state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        del args
        model = rest["model"]
        for module in model.modules():
            if isinstance(module, BiasBalance):
                self._processes.add_up(module.load)
        update_biases(model)
        if state.global_step >= state.max_steps:
            control.should_evaluate = control.should_save = True
        self._advance(1)


class _StepFigures:
    """Figures of the batches of one step."""

    def __init__(self) -> None:
        self._start_anew()

    def _start_anew(self) -> None:
        self._losses: list[float] = []
        self._tokens = 0
        self._layers: dict[str, LayerActivity] = {}

    def add(self, loss: Tensor, routings: list[LayerRouting], tokens: int) -> None:
        self._losses.append(float(loss.detach()))
        self._tokens += tokens
        for routing in routings:
            activity = self._layers.setdefault(
                routing.layer, LayerActivity(routing.layer, routing.gates.num_units)
            )
            activity.update(routing)

    def take(self, processes: Processes) -> Record:
        """All of them, of all processes, and start anew."""
        for losses, tokens, layers_of in _others(processes, (self._losses, self._tokens, self._layers)):
            self._losses += losses
            self._tokens += tokens
            for name, activity in layers_of.items():
                self._layers[name].merge(activity)
        loss = sum(self._losses) / len(self._losses)
        record: Record = {"objective_loss": loss, "perplexity": perplexity(loss), "tokens": self._tokens}
        layers = [_figures_of(activity) for activity in self._layers.values()]
        if layers:
            for name, mean_of in (("balance", "load_balance"), ("z", "z"), ("evenness", "evenness")):
                values = [layer[mean_of] for layer in layers if mean_of in layer]
                if values:
                    record[name] = sum(values) / len(values)
            record["dead"] = sum(layer["dead"] for layer in layers)
            record["dropped"] = sum(layer["dropped"] for layer in layers)
            record["layers"] = layers
        self._start_anew()
        return record


def _figures_of(activity: LayerActivity) -> Record:
    report = activity.report
    return {
        "layer": activity.layer,
        **activity.losses,
        "load": activity.load.round(6).tolist(),
        "entropy": report.entropy,
        "evenness": activity.evenness,
        "dead": report.dead_units,
        "dropped": activity.dropped,
    }


def _others(processes: Processes, figures: Figures) -> list[Figures]:
    gathered = processes.gather(figures)
    return gathered[: processes.rank] + gathered[processes.rank + 1 :]


def _arguments(
    settings: TrainingSettings, run: RunFolder, model: Any, at_start: bool
) -> transformers.TrainingArguments:
    arguments = transformers.TrainingArguments(
        output_dir=str(run.checkpoints),
        max_steps=settings.steps,
        per_device_train_batch_size=settings.batch_size,
        per_device_eval_batch_size=settings.batch_size,
        gradient_accumulation_steps=settings.accumulate,
        learning_rate=settings.learning_rate,
        warmup_steps=settings.warmup,
        lr_scheduler_type="constant_with_warmup" if settings.schedule == "constant" else settings.schedule,
        weight_decay=settings.weight_decay,
        logging_steps=1,
        logging_nan_inf_filter=False,
        eval_strategy="steps",
        eval_steps=settings.eval_interval,
        eval_on_start=at_start,
        save_strategy="steps",
        save_steps=settings.save_interval,
        seed=settings.seed,
        data_seed=settings.seed,
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_drop_last=True,
        dataloader_pin_memory=model.device.type == "cuda",
        use_cpu=model.device.type == "cpu",
        bf16=settings.precision == "bfloat16",
        activation_checkpointing=settings.checkpointing,
        # the graph of a pass has to be there, for the losses of routers
        activation_checkpointing_kwargs={"use_reentrant": False},
        # each process counts the load of its own tokens
        ddp_broadcast_buffers=False,
    )
    # Without torchrun the Trainer would spread one process over several GPUs, where hooks see the last one's part.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments

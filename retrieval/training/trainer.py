"""The Trainer of transformers for sparse encoders: batches by number, rising penalties, checkpoints that are whole."""

from __future__ import annotations

import errno
import json
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from retrieval.encoders.token_inputs import Tokens, chosen
from retrieval.training.batches import TrainingBatch, TrainingBatches
from retrieval.training.gradient_cache import Encode, backward_in_parts
from retrieval.training.losses import contrastive_loss, distillation_loss, listed_scores, margin_mse_loss
from retrieval.training.penalties import Penalty, active_terms, make_penalty
from retrieval.training.recipe import PenaltySettings, Recipe
from retrieval.training.router_losses import RouterLosses
from retrieval.training.term_sample import TermSample, sample_terms
from retrieval.training.training_set import TrainingSet
from runtime.errors import FormatError, LexpertError
from runtime.processes import ALONE, Processes
from runtime.progress import Advance
from runtime.regularizers import Constant, QuadraticRamp
from runtime.run_folder import RunFolder
from runtime.step_log import Record, StepLog
from runtime.write_errors import naming_what_cannot_be_written

WEIGHTS = "weights.safetensors"
SIDES = ("queries", "passages")

TORCH_CANNOT_WRITE = ("PytorchStreamWriter failed", "inline_container.cc", "iostream error")
"""Of what torch says when a file cannot be written."""

EMPTY_BATCHES = 3
"""So many batches on end without an active term on a side are no chance: a few short queries may have none."""


class Numbers(torch.utils.data.Dataset[dict[str, Tensor]]):
    """Numbers of batches: what is in them is made when they are trained on."""

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        return {"number": torch.tensor([number])}


class EncoderTrainer(transformers.Trainer):
    """Trains an encoder by a recipe.

    Args:
        model: a module that is a `retrieval.training.sparse_model.TrainableEncoder`.
        recipe: what is asked for.
        data: texts.
        batches: of them.
        idf: positive ``[terms]``, for penalties that need it.
        run: where checkpoints go.
        log: where the figures of each step go; None in a process that does not lead.
        advance: called with 1 after each step.
        evaluate_now: called at each evaluation, with the step; returns its figures and whether to stop.
        routers: losses of the model's routers, where it has any and the recipe names them.
        processes: that train together: each takes every so-manyth batch, and gradients are averaged.
    """

    def __init__(
        self,
        model: Any,
        recipe: Recipe,
        data: TrainingSet,
        batches: TrainingBatches,
        idf: Tensor | None,
        run: RunFolder,
        log: StepLog | None,
        advance: Advance,
        evaluate_now: Callable[[int], tuple[Mapping[str, float], bool]],
        routers: RouterLosses | None = None,
        processes: Processes = ALONE,
    ) -> None:
        numbers = Numbers(recipe.steps * recipe.optimiser.accumulate * processes.count)
        super().__init__(
            model=model,
            args=_arguments(recipe, run, model.device),
            data_collator=lambda items: items[0],
            train_dataset=numbers,
            eval_dataset=numbers,
            callbacks=[_EachStep(advance, self._set_strengths)],
        )
        self.remove_callback(transformers.PrinterCallback)
        self.model_accepts_loss_kwargs = False
        self._numbers = numbers
        self._model: Any = model
        self._recipe, self._data, self._batches = recipe, data, batches
        self._run, self._log, self._evaluate_now, self._routers = run, log, evaluate_now, routers
        settings = {side: getattr(recipe.penalties, side) for side in SIDES}
        self._schedules = {side: _schedule(given) for side, given in settings.items() if given}
        self._penalties: dict[str, Penalty] = {
            side: make_penalty(given.kind, idf if given.kind == "idf_flops" else None, given.free_terms)
            for side, given in settings.items()
            if given
        }
        self.strengths: dict[str, float] = {}
        self._figures: list[Record] = []
        self._empty_batches = dict.fromkeys(SIDES, 0)
        self._processes = processes
        if processes.rank:
            torch.manual_seed(recipe.seed + processes.rank)  # dropout is to differ

    # What transformers calls

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:  # noqa: ARG002 - the order is that of the numbers
        return torch.utils.data.SequentialSampler(self._numbers)

    def create_optimizer(self, model: Any = None) -> Any:  # noqa: ARG002
        """AdamW: no weight decay of vectors, and for a query table a rate of its own."""
        if self.optimizer is None:
            settings = self._recipe.optimiser
            groups: dict[tuple[float, float], list[Tensor]] = {}
            for name, parameter in self._model.named_parameters():
                if not parameter.requires_grad:
                    continue
                table = name == "queries.weight"
                rate = (settings.table_learning_rate or 0.0) if table else settings.learning_rate
                decay = settings.weight_decay if parameter.ndim > 1 else 0.0
                groups.setdefault((rate, decay), []).append(parameter)
            self.optimizer = torch.optim.AdamW(
                [
                    {"params": parameters, "lr": rate, "weight_decay": decay}
                    for (rate, decay), parameters in groups.items()
                ]
            )
        return self.optimizer

    def training_step(
        self, model: Any, inputs: Mapping[str, Tensor], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Gradients of one batch, added to the parameters'; after the last of a step, their mean over processes."""
        del num_items_in_batch
        model = self._model  # without what transformers puts around it: gradients are averaged here
        model.train()
        batch = self._batches[int(inputs["number"])]
        queries = model.tokenize_queries([self._data.queries[i] for i in batch.queries])
        passages = model.tokenize_passages([self._data.passages[i] for i in batch.passages])
        share = 1 / self._recipe.optimiser.accumulate
        part = self._recipe.batch.part
        sample = self._sample(int(inputs["number"]), queries, passages)
        loss_of = partial(self._loss, batch, None if sample is None else sample.counts)
        if part is None:
            only = {} if sample is None else {"terms": sample.terms}
            vectors, routers = self._watched(
                lambda: [
                    self._encode(partial(model.encode_queries, **only), queries),
                    self._encode(partial(model.encode_passages, **only), passages),
                ]
            )
            loss = loss_of(vectors)
            ((loss + routers) * share).backward()
        else:
            asked, answers = _parts(queries, part), _parts(passages, part)
            of_routers = share / (len(asked) + len(answers))
            encoders = [self._part(model.encode_queries, tokens, of_routers) for tokens in asked]
            encoders += [self._part(model.encode_passages, tokens, of_routers) for tokens in answers]

            def joined(found: list[Tensor]) -> Tensor:
                sides = [torch.cat(found[: len(asked)]), torch.cat(found[len(asked) :])]
                return loss_of(sides) * share

            loss = backward_in_parts(encoders, joined) / share
        if self.accelerator.sync_gradients:
            self._processes.average_gradients(model.parameters())
        return loss.detach() * share

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Evaluate, keep the best, and stop where it gets no better."""
        del eval_dataset, ignore_keys, metric_key_prefix
        step = self.state.global_step
        figures, stop = self._evaluate_now(step)
        if figures and self._log is not None:
            self._log.add({"step": step, **figures})
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, dict(figures))
        if stop:
            self.control.should_training_stop = True
        return dict(figures)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:  # noqa: ARG002
        """Write the figures of a step; transformers calls this with its own."""
        if "loss" not in logs:
            return
        record: Record = {"step": self.state.global_step, "loss": logs["loss"]}
        found = [figures for one in self._processes.gather(self._figures) for figures in one]
        for name in found[0]:
            record[name] = sum(figures[name] for figures in found) / len(found)
        self._figures = []
        record |= {f"lambda_{side}": strength for side, strength in self.strengths.items()}
        record |= {name: logs[name] for name in ("learning_rate", "grad_norm") if name in logs}
        if not math.isfinite(logs.get("grad_norm", 0.0)):
            raise LexpertError(
                f"a gradient is no number at step {record['step']}; train anew with a lower optimiser.learning_rate, "
                "or with precision: float32"
            )
        if self._log is not None:
            self._log.add(record)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        del state_dict
        from safetensors.torch import save_model

        folder = Path(str(output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        save_model(self._model, str(folder / WEIGHTS))

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        with writing(self._run.checkpoints):
            super()._save_checkpoint(model, trial)
            self._processes.wait()  # each has written its random state
            if self._log is None:
                return
            self._log.flush()
            self._run.finish_checkpoint(self.state.global_step, self._recipe.keep)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        from safetensors.torch import load_model

        path = Path(resume_from_checkpoint) / WEIGHTS
        try:
            load_model(model or self._model, str(path))
        except Exception as error:  # safetensors and torch raise a handful of types
            raise FormatError(
                f"{path} cannot be loaded ({str(error).splitlines()[0]}); remove its folder to go on from an earlier "
                "checkpoint"
            ) from error

    # Of a step

    def _set_strengths(self, step: int) -> None:
        self.strengths = {side: schedule(step) for side, schedule in self._schedules.items()}

    def _sample(self, number: int, *texts: Tokens) -> TermSample | None:
        """The terms of a step, where the recipe has no step compute all."""
        drawn = self._recipe.batch.sampled_terms
        if drawn is None:
            return None
        seed = [self._recipe.seed, 2, number]
        model = self._model
        return sample_terms(texts, model.passages.num_terms, drawn, seed, model.device, model.fixed_terms)

    def _encode(self, encode: Callable[[Tokens], Tensor], tokens: Tokens) -> Tensor:
        with self._autocast():
            return encode(tokens).float()

    def _part(self, encode: Callable[[Tokens], Tensor], tokens: Tokens, of_routers: float) -> Encode:
        """Encodes one part; with gradients, that share of its routers' losses is added at once."""

        def run() -> Tensor:
            if not torch.is_grad_enabled():
                return self._encode(encode, tokens)
            (vectors,), routers = self._watched(lambda: [self._encode(encode, tokens)])
            if routers.requires_grad:
                (routers * of_routers).backward(retain_graph=True)
            return vectors

        return run

    def _watched(self, encode: Callable[[], list[Tensor]]) -> tuple[list[Tensor], Tensor]:
        """Vectors, and the weighed losses of the routers on the way to them."""
        if self._routers is None or self._recipe.routers is None:
            return encode(), torch.zeros(())
        with self._routers:
            vectors = encode()
        losses = self._routers.take(
            {"load_balance": self._recipe.routers.balance, "z": self._recipe.routers.z}
        )
        return vectors, vectors[0].new_zeros(()) if losses is None else losses

    def _autocast(self) -> AbstractContextManager[Any]:
        if self._recipe.precision == "float32":
            return nullcontext()
        return torch.autocast(self._model.device.type, torch.bfloat16)

    def _loss(self, batch: TrainingBatch, counts: Tensor | None, vectors: list[Tensor]) -> Tensor:
        """The recipe's loss of one batch, from vectors of its queries and of its passages.

        `counts`: how many terms each stands for, float32 ``[terms]``; None for 1.
        """
        queries, passages = vectors
        scores = queries @ passages.t()
        total, figures = self._losses(batch, scores)
        for side, weights in zip(SIDES, vectors, strict=True):
            with torch.no_grad():
                active = active_terms(weights, counts)
                figures[f"active_{side}"] = active.mean().item()
            self._require_terms(side, weights, active)
            if side in self._penalties:
                penalty = self._penalties[side](weights, counts)
                figures[f"penalty_{side}"] = penalty.item()
                total = total + self.strengths[side] * penalty
        with torch.no_grad():  # expected products of a query with a passage (Paria et al. 2020, eq. 3)
            lit = [(weights > 0).float().mean(0) for weights in vectors]
            figures["flops"] = (lit[0] * lit[1]).sum().item()
        if not math.isfinite(total.item()):
            self._stop_at(batch, total.item(), scores)
        self._figures.append(figures)
        return total

    def _losses(self, batch: TrainingBatch, scores: Tensor) -> tuple[Tensor, Record]:
        total, figures = scores.new_zeros(()), Record()
        listed = torch.from_numpy(batch.listed).to(scores.device)
        for number, settings in enumerate(self._recipe.losses):
            if settings.kind == "contrastive":
                known = torch.from_numpy(batch.known).to(scores.device)
                loss = contrastive_loss(scores, listed[:, 0], known, settings.temperature)
            elif settings.kind == "kl" and settings.over == "batch":
                teacher = torch.from_numpy(batch.batch_scores).to(scores.device)
                loss = distillation_loss(scores, teacher, None, settings.temperature, settings.scale)
            else:
                own, known = listed_scores(scores, listed)
                teacher = torch.from_numpy(batch.listed_scores).to(scores.device)
                loss = (
                    margin_mse_loss(own / settings.temperature, teacher * settings.scale, known)
                    if settings.kind == "margin_mse"
                    else distillation_loss(own, teacher, known, settings.temperature, settings.scale)
                )
            figures[f"{settings.kind}_{number}"] = loss.item()
            total = total + settings.weight * loss
        return total, figures

    def _require_terms(self, side: str, weights: Tensor, active: Tensor) -> None:
        empty = not active.any() and not weights.isnan().any()
        self._empty_batches[side] = self._empty_batches[side] + 1 if empty else 0
        if self._empty_batches[side] == EMPTY_BATCHES:
            raise LexpertError(self._all_zero(side))

    def _all_zero(self, side: str) -> str:
        step = self.state.global_step + 1
        given: PenaltySettings | None = getattr(self._recipe.penalties, side)
        if given is None:
            return (
                f"at step {step} no term of any of the {side} is active any more, and nothing can bring them back; "
                f"there is no λ on {side}: lower optimiser.learning_rate"
            )
        return (
            f"at step {step} no term of any of the {side} is active any more, and nothing can bring them back; λ of "
            f"{side} ({self.strengths.get(side, 0.0):.3g}, penalties.{side}.strength {given.strength:g}) is too "
            f"strong: lower it, or lengthen penalties.{side}.ramp ({given.ramp} steps)"
        )

    def _stop_at(self, batch: TrainingBatch, loss: float, scores: Tensor) -> None:
        step = self.state.global_step + 1
        rank = self._processes.rank
        path = self._run.out / f"not-finite-step-{step}{f'-process-{rank}' if rank else ''}.json"
        described = {
            "step": step,
            "loss": str(loss),
            "queries": [self._data.queries[i] for i in batch.queries],
            "passages": [self._data.passages[i] for i in batch.passages],
            "listed": batch.listed.tolist(),
            "scores_that_are_numbers": bool(torch.isfinite(scores).all()),
        }
        with writing(path):
            partial_path = path.with_name(path.name + ".partial")
            partial_path.write_text(json.dumps(described, indent=1) + "\n", "utf-8")
            partial_path.rename(path)
        raise LexpertError(
            f"the loss is {loss} at step {step}, whose batch is in {path}; train anew with a lower "
            "optimiser.learning_rate or a longer warmup, or with precision: float32"
        )


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what cannot be written in the block into one sentence; libraries of tensors raise types of their own."""
    with naming_what_cannot_be_written(path):
        try:
            yield
        except (OSError, LexpertError):
            raise
        except Exception as error:
            # safetensors says the system's number in words, torch says no number
            number = re.search(r"os error (\d+)", str(error))
            if number is None and not any(part in str(error) for part in TORCH_CANNOT_WRITE):
                raise
            code = int(number[1]) if number else errno.ENOSPC
            raise OSError(code, os.strerror(code)) from error


class _EachStep(transformers.TrainerCallback):
    """Strengths before a step, and after the last one an evaluation and a checkpoint."""

    def __init__(self, advance: Advance, set_strengths: Callable[[int], None]) -> None:
        self._advance, self._set_strengths = advance, set_strengths

    def on_step_begin(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        del args, control, rest
        self._set_strengths(state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        del args, rest
        if state.global_step >= state.max_steps:
            control.should_evaluate = control.should_save = True
        self._advance(1)


def _parts(tokens: Tokens, size: int) -> list[Tokens]:
    count = len(tokens["input_ids"])
    return [chosen(tokens, range(start, min(start + size, count))) for start in range(0, count, size)]


def _schedule(settings: PenaltySettings) -> Callable[[int], float]:
    return QuadraticRamp(settings.strength, settings.ramp) if settings.ramp else Constant(settings.strength)


def _arguments(recipe: Recipe, run: RunFolder, device: torch.device) -> transformers.TrainingArguments:
    settings = recipe.optimiser
    arguments = transformers.TrainingArguments(
        output_dir=str(run.checkpoints),
        max_steps=recipe.steps,
        per_device_train_batch_size=1,  # an item is a batch
        gradient_accumulation_steps=settings.accumulate,
        learning_rate=settings.learning_rate,
        max_grad_norm=settings.max_grad_norm,
        warmup_steps=settings.warmup,
        lr_scheduler_type="constant_with_warmup" if settings.schedule == "constant" else settings.schedule,
        logging_steps=1,
        logging_nan_inf_filter=False,
        eval_strategy="steps",
        eval_steps=recipe.interval,
        save_strategy="steps",
        save_steps=recipe.interval,
        seed=recipe.seed,
        data_seed=recipe.seed,
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        use_cpu=device.type == "cpu",
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments

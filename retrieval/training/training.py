"""Training: a checkpoint, a training set and a recipe in; an encoder and the figures of each step out."""

from __future__ import annotations

import copy
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retrieval.encoders.encoder import SparseEncoder
from retrieval.training import DEFAULT_CACHE
from retrieval.training.recipe import ExpansionSettings, Recipe
from retrieval.training.training_set import TrainingSet
from runtime.errors import FormatError, NotFoundError, UsageError
from runtime.output_folder import new_folder, require_room
from runtime.run_folder import RunFolder, open_run, read_json, write_json
from runtime.step_log import StepLog, read_records
from runtime.write_errors import naming_what_cannot_be_written

if TYPE_CHECKING:
    from torch import Tensor

    from retrieval.encoders.sentence_transformers_folder import SparseEncoderFolder, TableRoute
    from retrieval.training.router_losses import RouterWatch
    from runtime.processes import Processes

Evaluate = Callable[[SparseEncoder], Mapping[str, float]]
"""nDCG@10 of an encoder, by the name of the collection."""

SCORE = "ndcg@10"


@dataclass(frozen=True, slots=True)
class TrainingReport:
    """What a training did.

    Attributes:
        base: the folder that it started from.
        out: the folder of the training; the encoder is in ``out/model``.
        recipe, family: what it made, and how.
        queries, passages: of the training set.
        parameters: of the model; tied ones count once.
        steps: of the optimiser, that were taken.
        stopped_early: because evaluations got no better.
        chosen_step: the one whose encoder was kept; the last, unless evaluations said otherwise.
        score: mean nDCG@10 of that one; None without an evaluation.
        loss: of the last step.
        active_queries, active_passages: mean terms of a query and of a passage, in the last step's batch.
        seconds: of this process; less than the whole where the training was gone on with.
    """

    base: str
    out: str
    recipe: str
    family: str
    queries: int
    passages: int
    parameters: int
    steps: int
    stopped_early: bool
    chosen_step: int
    score: float | None
    loss: float
    active_queries: float
    active_passages: float
    seconds: float


def train(
    recipe: Recipe,
    base: str | Path,
    data: TrainingSet,
    out: str | Path,
    *,
    evaluate: Evaluate | None = None,
    evaluated_on: Sequence[str] = (),
    watch_routers: Callable[[Any], RouterWatch] | None = None,
    resume: bool = False,
    device: str | None = None,
    cache: str | Path = DEFAULT_CACHE,
) -> TrainingReport:
    """Train a sparse encoder.

    A training that was stopped, by a kill too, is gone on with from its last checkpoint, and ends with the weights
    that it would have had, to the bit on the same machine with the same number of threads.

    Started by torchrun, its processes train together, one for each device, each with batches of its own: the same as
    one process that accumulates as many batches more, but that penalties are of the rows of all batches together.

    Args:
        recipe: see `retrieval.training.recipe`.
        base: folder of a masked language model (of any transformer for uniCOIL and DeepImpact), or of an encoder,
            whose query table, query model or head of token weights is gone on from where the recipe has one too.
        data: what is trained on.
        out: folder of the training; see `runtime.run_folder`.
        evaluate: called with the encoder at each interval; the encoder with the best mean is kept. It must not depend
            on anything that changes from one call to the next.
        evaluated_on: what it evaluates on, by name; a training is gone on with on the same.
        watch_routers: makes a recorder of a model's routers, for recipes that name their losses.
        resume: go on in `out`; where there is nothing to go on with, start. A training that is done is reported again.
        device: of torch; None takes a GPU where there is one, or one for each process.
        cache: folder of what models that stay as they are made of texts.

    Raises:
        NotFoundError: the checkpoint is missing, or an optional package is.
        FormatError: the checkpoint cannot be loaded.
        UsageError: recipe, checkpoint and training set do not fit, or `out` was started with others.
        ConflictError: `out` exists and is not empty, without `resume`, or another process trains in it.
        LexpertError: the loss is no number, no term is active any more, or the disk is full.
    """
    _require_packages()
    import torch

    from retrieval.encoders.fingerprint import fingerprint
    from retrieval.encoders.sentence_transformers_folder import read_folder
    from retrieval.training.batches import TrainingBatches
    from runtime.processes import joined_processes

    base, out = Path(base), Path(out)
    described = read_folder(base)
    _require_no_expansion(base, described)
    batches = TrainingBatches(data, recipe)
    with joined_processes(device) as processes:
        if processes.count > 1 and recipe.batch.sampled_terms:
            raise UsageError(
                f"{processes.count} processes would each sample other terms, which penalties of all rows cannot be "
                "taken of; leave out batch.sampled_terms, or train in one process"
            )
        torch.manual_seed(recipe.seed)  # of a head that starts at random
        # Loaded first: a folder that holds no model must not leave a folder of a training behind.
        model, idf = _new_model(recipe, described, data, Path(cache), processes)
        request = {
            "base": str(base.resolve()),
            "base_weights": fingerprint({}, _files(described)),
            "training_set": data.digest,
            "evaluated": evaluate is not None,
            **({"evaluated_on": list(evaluated_on)} if evaluated_on else {}),
            "processes": processes.count,
            **_flat("recipe", recipe.model_dump()),
        }
        with open_run(out, request, resume, processes.leads) as run:
            processes.wait()
            if run.report.exists():
                return TrainingReport(**read_json(run.report))
            return _run(recipe, base, model, data, batches, idf, evaluate, watch_routers, run, processes)


def _run(
    recipe: Recipe,
    base: Path,
    model: Any,
    data: TrainingSet,
    batches: Any,
    idf: Tensor | None,
    evaluate: Evaluate | None,
    watch_routers: Callable[[Any], RouterWatch] | None,
    run: RunFolder,
    processes: Processes,
) -> TrainingReport:
    from retrieval.encoders.language_model_folder import quiet
    from retrieval.training.router_losses import RouterLosses
    from retrieval.training.trainer import EncoderTrainer

    started = time.perf_counter()
    parameters = sum(parameter.numel() for parameter in model.parameters())
    # A checkpoint has the weights and AdamW's two moments; one more is there until an old one is removed.
    if processes.leads:
        require_room(run.checkpoints, parameters * 12 * (recipe.keep + 1))
    start = run.last_step()
    if processes.leads and start is not None:
        run.verify(start)
    processes.wait()  # until all have seen where to start
    log = StepLog(run.log, run.tensorboard, start) if processes.leads else None
    processes.wait()  # until what comes after that is gone from the log
    evaluations = Evaluations(run, model, evaluate, recipe.patience)
    routers = RouterLosses(model, watch_routers) if watch_routers and recipe.routers else None

    def evaluate_at(step: int) -> tuple[dict[str, float], bool]:
        return processes.from_leader(evaluations.at(step) if processes.leads else ({}, False))

    try:
        with processes.progress("training", recipe.steps - (start or 0), "steps") as advance, quiet():
            trainer = EncoderTrainer(
                model, recipe, data, batches, idf, run, log, advance, evaluate_at, routers, processes
            )
            if start is not None and (start >= recipe.steps or evaluations.stop):
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
    last = [record for record in records if "loss" in record][-1]
    evaluations.keep_best()
    report = TrainingReport(
        base=str(base),
        out=str(run.out),
        recipe=recipe.name,
        family=recipe.encoder_family,
        queries=len(data.queries),
        passages=len(data.passages),
        parameters=parameters,
        steps=last["step"],
        stopped_early=last["step"] < recipe.steps,
        chosen_step=last["step"] if evaluations.best_step is None else evaluations.best_step,
        score=evaluations.best,
        loss=last["loss"],
        active_queries=last["active_queries"],
        active_passages=last["active_passages"],
        seconds=time.perf_counter() - started,
    )
    _draw(run, records, report)
    write_json(run.report, asdict(report))
    processes.wait()
    return report


class Evaluations:
    """Evaluates a model in training, and keeps the best encoder so far.

    Attributes:
        best, best_step: highest mean, and when; None before the first evaluation.
        stop: whether there was no better one for as many evaluations as `patience`.
    """

    def __init__(self, run: RunFolder, model: Any, evaluate: Evaluate | None, patience: int | None) -> None:
        self._run, self._model, self._evaluate, self._patience = run, model, evaluate, patience
        self.best: float | None = None
        self.best_step: int | None = None
        self.stop = False
        self._without_better = 0
        for record in read_records(run.log):
            if SCORE in record:
                self._count(record["step"], record[SCORE])

    def at(self, step: int) -> tuple[dict[str, float], bool]:
        """Evaluate the model as it is; its figures, and whether to stop. Nothing, without an evaluation."""
        if self._evaluate is None:
            return {}, False
        candidate = self._run.out / "candidate"
        shutil.rmtree(candidate, ignore_errors=True)
        self._save(candidate)
        device = str(self._model.device)
        found = dict(self._evaluate(SparseEncoder.load(candidate, device=device, dtype="float32")))
        mean = sum(found.values()) / len(found)
        if self._count(step, mean):
            shutil.rmtree(self._folder(step), ignore_errors=True)
            with naming_what_cannot_be_written(self._folder(step)):
                candidate.rename(self._folder(step))
            for old in self._run.out.glob("best-*"):
                if old != self._folder(step):
                    shutil.rmtree(old)
        shutil.rmtree(candidate, ignore_errors=True)
        return {SCORE: mean, **{f"{SCORE} {name}": value for name, value in found.items()}}, self.stop

    def keep_best(self) -> None:
        """Put the best encoder, or without an evaluation the last one, in the place of the trained model."""
        if self._run.model.exists():
            return
        if self.best_step is not None:
            self._folder(self.best_step).rename(self._run.model)
        else:
            self._save(self._run.model)

    def _count(self, step: int, score: float) -> bool:
        """Take a score into account; whether it is the best."""
        better = self.best is None or score > self.best
        if better:
            self.best, self.best_step, self._without_better = score, step, 0
        else:
            self._without_better += 1
        self.stop = self._patience is not None and self._without_better >= self._patience
        return better

    def _folder(self, step: int) -> Path:
        return self._run.out / f"best-{step}"

    def _save(self, folder: Path) -> None:
        from retrieval.training.trainer import writing

        with writing(folder), new_folder(folder) as partial:
            self._model.save(partial)


def _require_no_expansion(base: Path, described: SparseEncoderFolder) -> None:
    """Refuse what would be lost, or would not fit the model any more."""
    from retrieval.encoders.sentence_transformers_folder import SpladeRoute

    routes = (described.documents, described.queries)
    if any(isinstance(route, SpladeRoute) and route.expansion is not None for route in routes):
        raise UsageError(
            f"{base} has a term expansion, which cannot be trained further; "
            "start from the encoder that it was trained for"
        )


def _files(base: SparseEncoderFolder) -> dict[str, Path]:
    """All that a training takes from a folder, by name."""
    from retrieval.encoders.fingerprint import model_files
    from retrieval.encoders.sentence_transformers_folder import TableRoute
    from retrieval.encoders.token_weight_model import HEAD_FILE, WORDS_FILE

    folder, queries = base.documents.folder, base.queries
    files = model_files(folder)
    files |= {name: folder / name for name in (HEAD_FILE, WORDS_FILE) if (folder / name).is_file()}
    if isinstance(queries, TableRoute):
        files["query table"] = queries.weights
    elif queries.folder != folder:
        files |= {f"queries/{name}": path for name, path in model_files(queries.folder).items()}
    return files


def _new_model(
    recipe: Recipe, base: SparseEncoderFolder, data: TrainingSet, cache: Path, processes: Processes
) -> tuple[Any, Tensor | None]:
    """The module to train, and the idf of its terms for penalties, where there is a query table."""
    import torch

    from retrieval.encoders.sentence_transformers_folder import TableRoute
    from retrieval.training.sparse_model import (
        ExpandedQueries,
        QueryWeights,
        SparseModel,
        TermModel,
        inverse_document_frequency,
    )

    batch, idf, device = recipe.batch, None, torch.device(processes.device)
    model: Any
    if recipe.family != "splade":
        from retrieval.encoders.token_weight_model import TokenWeightSettings
        from retrieval.training.token_weights import start_token_weights

        settings = TokenWeightSettings(
            recipe.family, batch.max_passage_length, max_query_length=batch.max_query_length
        )
        model = start_token_weights(base.documents.folder, settings, data.passages, device)
    else:
        passages: Any = (
            TermModel(base.documents.folder, recipe.activation, device)
            if recipe.expansion is None
            else _expanded(recipe, recipe.expansion, base.documents.folder, data, cache, processes)
        )
        queries: Any = None
        if recipe.queries == "own":
            separate = (
                not isinstance(base.queries, TableRoute) and base.queries.folder != base.documents.folder
            )
            queries = (
                TermModel(base.queries.folder, recipe.activation, device)
                if separate
                else copy.deepcopy(passages)
            )
        elif recipe.queries == "table":
            frequency = inverse_document_frequency(passages.tokenizer, data.passages, passages.num_terms)
            rare = torch.from_numpy(frequency).to(device)
            idf = rare.clamp(min=recipe.idf_floor)
            table = _table(base.queries, passages.num_terms) if isinstance(base.queries, TableRoute) else None
            learned = recipe.optimiser.table_learning_rate is not None
            weights = rare if table is None else table.to(device)
            queries = (
                ExpandedQueries(
                    passages.tokenizer,
                    weights,
                    learned,
                    data.queries,
                    batch.max_query_length,
                    passages.query_meanings,
                )
                if recipe.expansion is not None and recipe.expansion.queries is not None
                else QueryWeights(passages.tokenizer, weights, learned)
            )
        if recipe.frozen_layers is not None:
            for side in (passages, queries):
                if isinstance(side, TermModel):
                    side.freeze(recipe.frozen_layers)
        model = SparseModel(passages, queries, batch.max_query_length, batch.max_passage_length)
    if recipe.dropout is not None:
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = recipe.dropout
            elif isinstance(getattr(module, "dropout_prob", None), float):
                module.dropout_prob = recipe.dropout
    return model, idf


def _expanded(
    recipe: Recipe,
    settings: ExpansionSettings,
    folder: Path,
    data: TrainingSet,
    cache: Path,
    processes: Processes,
) -> Any:
    """The frozen model with its expansion. One process encodes the passages, the others take them from the cache."""
    import torch

    from retrieval.training.expanded_terms import ExpandedTerms

    if not processes.leads:
        processes.wait()
    queries = data.queries if settings.queries is not None else []
    with processes.progress("encoding texts", len(data.passages) + len(queries), "texts") as advance:
        found = ExpandedTerms(
            folder,
            settings,
            recipe.activation,
            data.passages,
            recipe.batch.max_passage_length,
            cache,
            torch.device(processes.device),
            advance,
            queries,
        )
    if processes.leads:
        processes.wait()
    return found


def _table(route: TableRoute, num_terms: int) -> Tensor:
    import torch

    from retrieval.encoders.query_table import read_query_table

    weights = read_query_table(route.folder, route.weights).weights
    if len(weights) != num_terms:
        raise FormatError(
            f"the query table {route.weights} has {len(weights)} terms, but the model has {num_terms}; both must share "
            "one vocabulary"
        )
    return torch.tensor(weights, dtype=torch.float32)


def _flat(path: str, value: Any) -> dict[str, Any]:
    """Settings by their path, so that what differs can be named."""
    if not isinstance(value, dict):
        return {path: value}
    return {
        name: inner for key, part in value.items() for name, inner in _flat(f"{path}.{key}", part).items()
    }


def _draw(run: RunFolder, records: list[dict[str, Any]], report: TrainingReport) -> None:
    from importlib.util import find_spec

    if find_spec("matplotlib") is None:
        return  # the log has all of it
    from retrieval.training.picture import plot_training

    plot_training(records, f"{report.recipe}, from {Path(report.base).name}", run.picture)


def _require_packages() -> None:
    try:
        import accelerate  # noqa: F401 - the Trainer needs it, and says so in many words
        import transformers  # noqa: F401
        import yaml  # noqa: F401
    except ImportError as error:
        raise NotFoundError(
            f"training needs {error.name}, which is not installed; run: pip install 'lexpert[train]'"
        ) from None

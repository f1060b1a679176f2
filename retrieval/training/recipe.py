"""Recipes: everything that a training depends on beside its checkpoint and its training set, as a YAML file.

Those of the field are in ``recipes/``; each says what it reproduces.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from runtime.errors import FormatError, NotFoundError, UsageError

RECIPES = Path(__file__).with_name("recipes")

Positive = Annotated[int, Field(ge=1)]
Whole = Annotated[int, Field(ge=0)]
Strength = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Scale = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Batch(_Part):
    """What a step sees.

    Attributes:
        queries: of a step, each with its positive.
        negatives: listed ones of each query, drawn anew each time; fewer where a query has fewer.
        negatives_from: how many of a query's listed negatives, the hardest first, are drawn from; None for all.
        topics: of how many topics of the training set a batch is, with as many queries of each (Hofstätter et al.
            2021, TAS); 0 mixes them all.
        part: passages, or queries, that go through the model at once with their gradients kept: the rest of a larger
            batch is cached (Gao et al. 2021, GradCache), at the price of a second pass. None keeps all at once.
        sampled_terms: terms whose weights are computed in a step beside those that its texts are made of, drawn anew
            for each; penalties count each for as many as were left out. All others rest. None computes all, a
            quarter of the products of a step in a model like MiniLM.
        max_query_length, max_passage_length: tokens, special ones included.
    """

    queries: Positive = 32
    negatives: Whole = 1
    negatives_from: Positive | None = None
    topics: Whole = 0
    part: Positive | None = None
    sampled_terms: Positive | None = None
    max_query_length: Positive = 64
    max_passage_length: Positive = 256


class Loss(_Part):
    """One term of the loss.

    Attributes:
        kind: see `retrieval.training.losses`.
        over: candidates of a distillation: each query's own ``listed`` passages, with the scores of the training
            set, or every passage of the ``batch``, which the set's bi-encoder teachers score together.
        weight: what it is multiplied by.
        temperature: what the student's scores are divided by.
        scale: what the teacher's are multiplied by.
    """

    kind: Literal["contrastive", "margin_mse", "kl"]
    over: Literal["listed", "batch"] = "listed"
    weight: Scale = 1.0
    temperature: Scale = 1.0
    scale: Scale = 1.0


class PenaltySettings(_Part):
    """What keeps one side sparse; see `retrieval.training.penalties`.

    Attributes:
        strength: λ.
        ramp: steps in which it rises to that, as the square of the step; 0 has it from the start.
        free_terms: rows with so many terms or fewer are free (ℓ0 mask).
    """

    kind: Literal["flops", "l1", "idf_flops"] = "flops"
    strength: Strength
    ramp: Whole = 0
    free_terms: Whole = 0


class Penalties(_Part):
    queries: PenaltySettings | None = None
    passages: PenaltySettings | None = None


class Optimiser(_Part):
    """AdamW.

    Attributes:
        learning_rate: at its highest.
        table_learning_rate: that of a learned query table; None keeps the table as it starts: that of the encoder
            which is gone on from, or the IDF of tokens.
        warmup: steps in which the rate rises from 0.
        schedule: what it does then.
        max_grad_norm: gradients are scaled down to it.
        accumulate: batches of a step, each with its own in-batch negatives.
    """

    learning_rate: Scale = 2e-5
    table_learning_rate: Scale | None = None
    weight_decay: Strength = 0.01
    warmup: Whole = 0
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    max_grad_norm: Scale = 1.0
    accumulate: Positive = 1


class Routers(_Part):
    """Coefficients of the losses of routers, in models with experts."""

    balance: Strength = 0.01
    z: Strength = 0.001


class QueryExpansionSettings(_Part):
    """Queries that are expanded by directions of the dense vectors; see `retrieval.training.query_expansion`, where
    `scale`, `gain` and `limit` are explained. In training, passages keep as many of these terms as queries."""

    scale: Scale = 20.0
    gain: Scale = 0.4
    limit: Annotated[int, Field(ge=1)] = 64


class ExpansionSettings(_Part):
    """A term expansion that is learned beside a model that stays as it is; see `retrieval.training.expanded_terms`.

    Attributes:
        threshold: standard deviations of a term's similarity with texts at which it starts to be lit.
        gain: what the expansion is multiplied by at first.
        queries: None leaves queries to their table; with settings they are expanded from the first step on, so that
            words learn what the directions do not find.
    """

    threshold: Annotated[float, Field(allow_inf_nan=False)] = 2.0
    gain: Scale = 0.3
    queries: QueryExpansionSettings | None = None


class Recipe(_Part):
    """All of it.

    Attributes:
        name, reproduces: for people.
        family: of the encoder that comes out.
        queries: ``shared``: queries go through the passages' model; ``own``: through a copy that is trained apart;
            ``table``: each token has a weight, and there is no model (inference-free). Of SPLADE alone.
        activation: of logits; see `retrieval.encoders.vocabulary_head`.
        frozen_layers: of the transformer, the first ones, that stay as they are, and the embeddings with them (the
            decoder, where it is tied to them); no gradient goes through them. None trains everything.
        expansion: None trains the model itself; with settings the model and its head stay, and a term expansion over
            them is trained, with the query table. `optimiser.learning_rate` is the expansion's then.
        idf_floor: lowest IDF, for the penalty of the most frequent terms.
        routers: for models with experts.
        steps: of the optimiser.
        precision: of products; weights, losses and penalties are float32 in any case.
        dropout: of all of the model; None keeps the model's own.
        evaluate_every: steps between evaluations and checkpoints; None has ten.
        patience: evaluations without a better one, after which training stops early; None never stops.
        keep: checkpoints that stay.
        seed: of the order of queries, of negatives and of dropout.
    """

    name: str
    reproduces: str
    family: Literal["splade", "unicoil", "deepimpact"] = "splade"
    queries: Literal["shared", "own", "table"] = "shared"
    activation: Literal["relu", "log1p_relu"] = "relu"
    frozen_layers: Whole | None = None
    expansion: ExpansionSettings | None = None
    idf_floor: Scale = 0.1
    batch: Batch = Batch()
    losses: Annotated[list[Loss], Field(min_length=1)]
    penalties: Penalties = Penalties()
    routers: Routers | None = None
    optimiser: Optimiser = Optimiser()
    steps: Positive = 10_000
    precision: Literal["float32", "bfloat16"] = "float32"
    dropout: Annotated[float, Field(ge=0, lt=1)] | None = None
    evaluate_every: Positive | None = None
    patience: Positive | None = None
    keep: Positive = 2
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0

    @property
    def encoder_family(self) -> str:
        """The family of the encoders that it makes."""
        if self.expansion is not None and self.expansion.queries is not None:
            return "expanded_queries"
        return "inference_free" if self.queries == "table" else self.family

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.queries != "table":
            if self.optimiser.table_learning_rate is not None:
                raise ValueError("table_learning_rate is of a query table; say queries: table")
            if any(
                side and side.kind == "idf_flops"
                for side in (self.penalties.queries, self.penalties.passages)
            ):
                raise ValueError("the penalty idf_flops needs the idf of a query table; say queries: table")
        if self.family != "splade" and (self.queries, self.activation) != ("shared", "relu"):
            raise ValueError(f"queries and activation are choices of the family splade, not of {self.family}")
        if self.batch.sampled_terms and (self.family != "splade" or self.batch.part):
            raise ValueError(
                "batch.sampled_terms is of the family splade, and of batches that are not in parts"
            )
        if self.frozen_layers is not None and self.family != "splade":
            raise ValueError(f"frozen_layers is of the family splade, not of {self.family}")
        if self.expansion and (self.queries != "table" or self.frozen_layers is not None or self.batch.part):
            raise ValueError(
                "an expansion is of queries: table, over a model that stays as it is; leave out frozen_layers and "
                "batch.part"
            )
        if self.batch.topics and self.batch.queries % self.batch.topics:
            raise ValueError(
                f"{self.batch.queries} queries of a batch cannot be shared out among {self.batch.topics} topics"
            )
        if self.batch.queries == 1 and not self.batch.negatives:
            raise ValueError(
                "a batch of one query without negatives has nothing to compare its positive with; give batch.queries "
                "or batch.negatives"
            )
        if self.optimiser.warmup >= self.steps:
            raise ValueError(f"warmup takes {self.optimiser.warmup} steps, but there are {self.steps}")
        for loss in self.losses:
            if loss.kind != "kl" and loss.over == "batch":
                raise ValueError(f"the loss {loss.kind} has no choice of candidates; leave out over: batch")
            if loss.kind == "margin_mse" and not self.batch.negatives:
                raise ValueError("the loss margin_mse compares with listed negatives; give batch.negatives")
        return self

    @property
    def interval(self) -> int:
        """Steps between evaluations."""
        return self.evaluate_every or max(1, self.steps // 10)

    def changed(self, options: Mapping[str, Any]) -> Recipe:
        """This recipe with other values, by their path: ``{"batch.queries": 8, "losses.0.weight": 2}``.

        Raises:
            UsageError: there is no such setting, or it cannot have that value.
        """
        described: Any = self.model_dump()
        for path, value in options.items():
            *parents, last = path.split(".")
            into = described
            try:
                for name in parents:
                    into = into[int(name)] if isinstance(into, list) else into[name]
                if isinstance(into, list):
                    into[int(last)] = value
                else:
                    into[last] = value
            except (KeyError, IndexError, ValueError, TypeError):
                raise UsageError(
                    f"the recipe {self.name} has no setting {path}; see: lexpert train show"
                ) from None
        return _validated(described, f"the recipe {self.name}", UsageError)


def load_recipe(name: str | Path) -> Recipe:
    """A recipe of the project by its name, or one in a YAML file.

    Raises:
        NotFoundError: there is neither.
        FormatError: the file is not valid; says which setting and why.
    """
    import yaml

    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        path = RECIPES / f"{name}.yaml"
        if not path.is_file():
            raise NotFoundError(
                f"there is no recipe {name}; choose from {', '.join(recipe_names())}, or give a .yaml file"
            )
    try:
        described = yaml.safe_load(path.read_text("utf-8"))
    except FileNotFoundError:
        raise NotFoundError(f"there is no recipe file {path}") from None
    except IsADirectoryError:
        raise FormatError(f"{path} is a folder; give a recipe file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise FormatError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(described, dict):
        raise FormatError(
            f"{path} must hold the settings of a recipe by name; see: lexpert train show splade-max"
        )
    return _validated(described, str(path), FormatError)


def recipe_names() -> list[str]:
    """Names of the project's recipes."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def parse_option(text: str) -> tuple[str, Any]:
    """``PATH=VALUE`` of a command line, the value as YAML has it."""
    import yaml

    path, equals, value = text.partition("=")
    if not equals or not path:
        raise UsageError(f"{text!r} is no PATH=VALUE, such as batch.queries=8")
    try:
        parsed = yaml.safe_load(value)
    except yaml.YAMLError:
        raise UsageError(f"{value!r}, for {path}, is not a value as YAML has it") from None
    if isinstance(parsed, str):
        with suppress(ValueError):  # YAML 1.1 wants 2.0e-5 where people write 2e-5
            parsed = float(parsed)
    return path, parsed


def _validated(described: Any, where: str, error_class: type[Exception]) -> Recipe:
    try:
        return Recipe.model_validate(described)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        problem = first["msg"].removeprefix("Value error, ")
        if first["type"] == "extra_forbidden":
            problem = "there is no such setting"
        raise error_class(f"{where}: {place + ': ' if place else ''}{problem}") from None

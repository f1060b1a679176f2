"""Which models generate, and what their routers do."""

from __future__ import annotations

import math
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from serving.answer_models import ModelBody, ModelList, RoutingBody
from serving.asgi import Request, Response, Route
from serving.description import Description, Parameter
from serving.errors import from_validation
from serving.generation import Generator
from serving.state import ServerState


class RoutingQuery(BaseModel):
    """The parameters in the URL of a question for routing."""

    model_config = ConfigDict(extra="forbid")

    window_s: float = Field(default=60.0, gt=0, le=600, allow_inf_nan=False)


WINDOW = Parameter(
    "window_s",
    "how many seconds back",
    {"type": "number", "exclusiveMinimum": 0, "maximum": 600, "default": 60},
)


async def describe(generator: Generator) -> dict[str, Any]:
    """As OpenAI describes a model, and its context."""
    created, context = await generator.about()
    return {
        "id": generator.name,
        "object": "model",
        "created": created,
        "owned_by": "lexpert",
        "context": context,
    }


async def list_models(state: ServerState, request: Request) -> Response:
    request.refuse_query_parameters()
    generators = state.generators
    data = [await describe(generators[name]) for name in sorted(generators)]
    return Response.json({"object": "list", "data": data})


async def describe_model(state: ServerState, request: Request) -> Response:
    request.refuse_query_parameters()
    return Response.json(await describe(state.generators.named(request.path_parameters["model"])))


async def routing(state: ServerState, request: Request) -> Response:
    """Load and entropy of the experts of each layer over the last seconds; no layers for a dense model."""
    try:
        query = RoutingQuery.model_validate(request.query_parameters("window_s"))
    except ValidationError as error:
        raise from_validation(error) from None
    generator = state.generators.named(request.path_parameters["model"])
    layers = []
    for name, meter in (await generator.routing(query.window_s)).items():
        report = meter.report()
        layers.append(
            {
                "layer": name,
                "tokens": report.rows,
                "experts": report.units,
                "load": meter.load.tolist(),
                "entropy": report.entropy,
                "evenness": report.entropy / math.log(report.units) if report.units > 1 else 1.0,
                "dead": report.dead_units,
                "dropped": 0,
            }
        )
    return Response.json({"model": generator.name, "window_s": query.window_s, "layers": layers})


ROUTES = (
    Route("GET", "/v1/models", list_models, "read", Description("Models that generate", {200: (ModelList,)})),
    Route(
        "GET",
        "/v1/models/{model}",
        describe_model,
        "read",
        Description("A model that generates", {200: (ModelBody,)}),
    ),
    Route(
        "GET",
        "/v1/models/{model}/routing",
        routing,
        "read",
        Description(
            "What the experts of a model did lately",
            {200: (RoutingBody,)},
            parameters=(WINDOW,),
            errors=(422,),
        ),
    ),
)

"""OpenAPI 3.1 of the routes."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable
from http import HTTPStatus
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import JsonSchemaMode, models_json_schema

from serving.answer_models import ErrorBody
from serving.asgi import Route
from serving.description import Content, Description, error_statuses

SCHEMAS = "#/components/schemas/"

PATH_PARAMETERS = {
    "name": "name of an index, or of an alias",
    "id": "of a document, slashes and all",
    "model": "name of a model",
    "file": "of the page",
}

RETRY_AFTER = {
    "Retry-After": {"description": "seconds after which to try again", "schema": {"type": "integer"}}
}


def openapi(routes: Iterable[Route[Any]], version: str) -> dict[str, Any]:
    """The document for all routes that describe themselves."""
    described = [(route, route.description) for route in routes if route.description is not None]
    models: dict[type[BaseModel], JsonSchemaMode] = {ErrorBody: "serialization"}
    for _, description in described:
        if description.body is not None:
            models[description.body] = "validation"
        for contents in description.answers.values():
            models.update({each: "serialization" for each in contents if not isinstance(each, str)})
    names, schemas = models_json_schema(list(models.items()), ref_template=SCHEMAS + "{model}")
    refs = {model: names[model, mode] for model, mode in models.items()}
    paths: dict[str, dict[str, Any]] = {}
    for route, description in described:
        path = route.path.replace("*}", "}")
        paths.setdefault(path, {})[route.method.lower()] = operation(route, description, refs)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "lexpert",
            "version": version,
            "description": "Learned sparse retrieval over HTTP.",
        },
        "paths": paths,
        "components": {
            "schemas": schemas.get("$defs", {}),
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
            },
        },
    }


def operation(
    route: Route[Any], description: Description, refs: dict[type[BaseModel], dict[str, Any]]
) -> dict[str, Any]:
    """One method of a path."""
    needs_key = route.scope != "open"
    made: dict[str, Any] = {
        "operationId": route.handler.__name__,
        "summary": description.summary,
        "tags": [route.handler.__module__.rpartition(".")[2]],
        "parameters": parameters(route, description),
        "responses": responses(route, description, refs, needs_key),
        # A server that has no keys asks for none.
        "security": [{"bearer": []}, {"header": []}, {}] if needs_key else [],
    }
    if about := inspect.getdoc(route.handler):
        made["description"] = about
    if description.body is not None:
        content: dict[str, Any] = {"application/json": {"schema": refs[description.body]}}
        for media_type in description.lines:
            content[media_type] = {"schema": {"type": "string", "description": "a JSON object on each line"}}
        made["requestBody"] = {"required": True, "content": content}
    if needs_key:
        made["x-scope"] = route.scope
    return made


def parameters(route: Route[Any], description: Description) -> list[dict[str, Any]]:
    """Those of the path, then the others."""
    in_path = [
        {
            "name": name,
            "in": "path",
            "required": True,
            "description": PATH_PARAMETERS[name],
            "schema": {"type": "string"},
        }
        for name in re.findall(r"{(\w+)\*?}", route.path)
    ]
    others = [
        {"name": each.name, "in": each.place, "description": each.about, "schema": dict(each.schema)}
        for each in description.parameters
    ]
    return in_path + others


def responses(
    route: Route[Any], description: Description, refs: dict[type[BaseModel], dict[str, Any]], needs_key: bool
) -> dict[str, Any]:
    """Answers and errors by status."""
    made: dict[str, Any] = {}
    for status, contents in description.answers.items():
        made[str(status)] = {
            "description": HTTPStatus(status).phrase,
            "content": dict(media(content, refs) for content in contents),
        }
    for status in error_statuses(description, route.path, needs_key):
        made[str(status)] = {
            "description": HTTPStatus(status).phrase,
            "content": {"application/json": {"schema": refs[ErrorBody]}},
            **({"headers": RETRY_AFTER} if status in (429, 503) else {}),
        }
    return made


def media(content: Content, refs: dict[type[BaseModel], dict[str, Any]]) -> tuple[str, dict[str, Any]]:
    if isinstance(content, str):
        return content, {"schema": {"type": "string"}}
    return "application/json", {"schema": refs[content]}

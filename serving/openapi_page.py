"""The OpenAPI document as a page to read: no script, and nothing from elsewhere."""

from __future__ import annotations

from html import escape
from typing import Any

STYLE = """
:root { color-scheme: light dark; --line: #d0d0d8; --soft: #f3f3f7; --mark: #0b57a4; }
@media (prefers-color-scheme: dark) { :root { --line: #44444e; --soft: #25252c; --mark: #8fc1ff; } }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; } h3 { font-size: 1rem; margin-bottom: .3rem; }
code { font: .9em ui-monospace, monospace; overflow-wrap: anywhere; }
a { color: var(--mark); }
details { border: 1px solid var(--line); border-radius: .4rem; margin: .5rem 0; }
summary { padding: .5rem .7rem; cursor: pointer; } details[open] > summary { background: var(--soft); }
summary b { color: var(--mark); } .inside { padding: 0 .8rem .8rem; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; vertical-align: top; padding: .25rem .6rem .25rem 0; border-bottom: 1px solid var(--line); }
"""


def openapi_page(document: dict[str, Any]) -> str:
    """HTML of an OpenAPI document, as `serving.openapi.openapi` makes it."""
    groups: dict[str, list[str]] = {}
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            groups.setdefault(operation["tags"][0], []).append(operation_part(method, path, operation))
    info = document["info"]
    parts = [f"<h2>{escape(tag)}</h2>{''.join(operations)}" for tag, operations in groups.items()]
    schemas = [
        # The id is inside, because browsers unfold what a link leads into.
        f"<details><summary><code>{escape(name)}</code></summary>"
        f'<div class="inside" id="{escape(name)}">{schema_part(schema)}</div></details>'
        for name, schema in sorted(document["components"]["schemas"].items())
    ]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(info['title'])} HTTP API</title><style>{STYLE}</style></head><body>"
        f"<h1>{escape(info['title'])} {escape(info['version'])}: HTTP API</h1>"
        '<p>For programs: <a href="openapi.json">openapi.json</a>.</p>'
        f"<main>{''.join(parts)}<h2>Bodies</h2>{''.join(schemas)}</main></body></html>"
    )


def operation_part(method: str, path: str, operation: dict[str, Any]) -> str:
    """One route, folded."""
    scope = operation.get("x-scope")
    told = [f"<p>{escape(operation['description'])}</p>"] if "description" in operation else []
    if scope is not None:
        told.append(f"<p>Where the server has keys: one that allows <code>{escape(scope)}</code>.</p>")
    if operation["parameters"]:
        rows = "".join(
            row(code(each["name"]), f"{each['in']}: {type_of(each['schema'])}", escape(each["description"]))
            for each in operation["parameters"]
        )
        told.append(f"<h3>Parameters</h3><table>{rows}</table>")
    if "requestBody" in operation:
        rows = "".join(
            row(code(kind), type_of(content["schema"]))
            for kind, content in operation["requestBody"]["content"].items()
        )
        told.append(f"<h3>Body</h3><table>{rows}</table>")
    rows = "".join(
        row(code(status), escape(answer["description"]), kinds(answer))
        for status, answer in operation["responses"].items()
    )
    told.append(f"<h3>Answers</h3><table>{rows}</table>")
    return (
        f"<details><summary><b>{method.upper()}</b> {code(path)} {escape(operation['summary'])}</summary>"
        f'<div class="inside">{"".join(told)}</div></details>'
    )


def schema_part(schema: dict[str, Any]) -> str:
    """The fields of a body, or what it is a list of."""
    if schema.get("type") == "array":
        return f"<p>{escape(schema.get('description', ''))} {type_of(schema)}</p>"
    required = schema.get("required", ())
    rows = "".join(
        row(
            code(name),
            type_of(field),
            "required" if name in required else default_of(field),
            escape(field.get("description", "")),
        )
        for name, field in schema.get("properties", {}).items()
    )
    return f"<p>{escape(schema.get('description', ''))}</p><table>{rows}</table>"


def kinds(answer: dict[str, Any]) -> str:
    return ", ".join(
        type_of(content["schema"]) if "$ref" in content["schema"] else code(kind)
        for kind, content in answer["content"].items()
    )


def type_of(schema: dict[str, Any]) -> str:
    """The type that a schema stands for, as HTML with links."""
    if "$ref" in schema:
        name = escape(schema["$ref"].rpartition("/")[2])
        return f'<a href="#{name}"><code>{name}</code></a>'
    if "anyOf" in schema:
        return " or ".join(type_of(each) for each in schema["anyOf"])
    if "enum" in schema:
        return " or ".join(code(repr(each)) for each in schema["enum"])
    if "const" in schema:
        return code(repr(schema["const"]))
    kind = schema.get("type", "anything")
    if kind == "array":
        return f"list of {type_of(schema.get('items', {}))}"
    values = schema.get("additionalProperties")
    if kind == "object" and isinstance(values, dict) and values:
        return f"object of {type_of(values)}"
    return escape(kind)


def default_of(field: dict[str, Any]) -> str:
    default = field.get("default")
    return "" if default is None else f"default {code(str(default))}"


def row(*cells: str) -> str:
    return f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"


def code(text: str) -> str:
    return f"<code>{escape(text)}</code>"

"""A server's configuration as a YAML or JSON file."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from runtime.errors import FormatError, NotFoundError, UsageError
from serving.configuration import CommitPolicy, Limits, ServerConfiguration, ShardPlacement, Traces
from serving.key_file import parse

SECTIONS: Mapping[str, type[BaseModel]] = {
    "limits": Limits,
    "commits": CommitPolicy,
    "shards": ShardPlacement,
    "traces": Traces,
}
FOLDERS_BY_NAME = ("indexes", "models")
PATHS = ("data", "keys_file")


def read_configuration(path: Path) -> ServerConfiguration:
    """What a file says: the fields of `ServerConfiguration`, with paths relative to the file's folder.

    Raises:
        NotFoundError: there is no such file.
        UsageError: it cannot be read.
        FormatError: it is not YAML or JSON, or a setting is wrong; says which one and what would be right.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise NotFoundError(f"there is no file {path}") from None
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None
    settings = parse(path, content)
    if not isinstance(settings, dict):
        raise FormatError(f"{path} must hold settings by name, for example indexes: {{docs: ./docs-index}}")
    if "keys" in settings:
        raise FormatError(f"{path}: keys: keys stand in a file of their own; name it with keys_file")
    try:
        return ServerConfiguration.model_validate(beside(path.absolute().parent, settings))
    except ValidationError as error:
        raise FormatError(f"{path}: {fault_of(error)}") from None


def beside(folder: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with absolute paths; what is no path is left for validation to find."""
    placed = dict(settings)
    for name in PATHS:
        if isinstance(placed.get(name), str):
            placed[name] = folder / placed[name]
    for name in FOLDERS_BY_NAME:
        if isinstance(placed.get(name), dict):
            placed[name] = {
                key: folder / value if isinstance(value, str) else value
                for key, value in placed[name].items()
            }
    if isinstance(placed.get("traces"), dict) and isinstance(placed["traces"].get("file"), str):
        placed["traces"] = {**placed["traces"], "file": folder / placed["traces"]["file"]}
    if isinstance(placed.get("encoders"), dict):
        # The folder of one, or the name of one elsewhere.
        placed["encoders"] = {
            key: str(folder / value) if isinstance(value, str) and (folder / value).exists() else value
            for key, value in placed["encoders"].items()
        }
    return placed


def fault_of(error: ValidationError) -> str:
    """What is wrong first, and the path of its setting."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    location = [str(part) for part in first["loc"] if part != "[key]"]
    message = first["msg"].removeprefix("Value error, ")
    place = ".".join(location)
    if first["type"] == "extra_forbidden":
        return f"{place}: there is no such setting{guess(location)}"
    if first["loc"][-1:] == ("[key]",):
        message = (
            "a name must be 1 to 64 letters, digits, dots, dashes or underscores, with a letter or digit first, "
            "and in quotes if it is a number"
        )
    return f"{place}: {message[:1].lower()}{message[1:]}" if place else message


def guess(location: list[str]) -> str:
    """Which setting may have been meant, as the end of a sentence."""
    model = SECTIONS.get(location[0], ServerConfiguration) if len(location) > 1 else ServerConfiguration
    known = [name for name in model.model_fields if name != "keys"]
    near = get_close_matches(location[-1], known, n=1)
    return f"; did you mean {near[0]}?" if near else f"; there are {', '.join(known)}"

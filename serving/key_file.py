"""A file of keys that only its owner can read.

Keys are given to a server in a file, and never on a command line, which every user of the machine can read.
"""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from runtime.errors import FormatError, NotFoundError, UsageError
from serving.configuration import ServerConfiguration
from serving.keys import Key, require_distinct

LONGEST = 1 << 20


class KeyFile(BaseModel):
    """What stands in the file."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    keys: tuple[Key, ...] = Field(min_length=1, max_length=1024)


def with_keys(configuration: ServerConfiguration) -> ServerConfiguration:
    """The configuration with the keys of its file, if it names one.

    Raises:
        NotFoundError, UsageError, FormatError: as `read_keys`.
    """
    if configuration.keys_file is None:
        return configuration
    return configuration.model_copy(update={"keys": read_keys(configuration.keys_file), "keys_file": None})


def read_keys(path: Path) -> tuple[Key, ...]:
    """The keys of a YAML or JSON file, ``keys:`` with a list of them. No error shows anything of a key.

    Raises:
        NotFoundError: there is no such file.
        UsageError: it cannot be read, or others than its owner can read it.
        FormatError: it is not YAML or JSON, or has no usable keys; says which one is at fault.
    """
    parsed = parse(path, read_private(path))
    try:
        keys = KeyFile.model_validate(parsed).keys
        require_distinct(keys)
    except ValidationError as error:
        raise FormatError(f"{path}: {fault_of(error)}") from None
    except ValueError as error:
        raise FormatError(f"{path}: {error}") from None
    return keys


def read_private(path: Path) -> bytes:
    """The bytes of a file with secrets, as long as nobody but its owner can read it.

    Raises:
        NotFoundError, UsageError, FormatError: as `read_keys`.
    """
    try:
        with path.open("rb") as file:
            about = os.fstat(file.fileno())
            if os.name == "posix":
                require_private(path, about)
            content = file.read(LONGEST + 1)
    except FileNotFoundError:
        raise NotFoundError(f"there is no file {path}") from None
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None
    if len(content) > LONGEST:
        raise FormatError(f"{path} is longer than {LONGEST:,} bytes, so it is no file of keys")
    return content


def require_private(path: Path, about: os.stat_result) -> None:
    """Raise UsageError for an open file that belongs to, or can be read by, others than this user and root."""
    mode = stat.S_IMODE(about.st_mode)
    if mode & 0o077:
        raise UsageError(f"{path} can be read by others (mode {mode:04o}); run: chmod 600 {path}")
    if about.st_uid not in (0, os.geteuid()):
        raise UsageError(f"{path} belongs to another user; copy it into a file of your own")


def parse(path: Path, content: bytes) -> Any:
    """The values in a file; FormatError, without any of its text, if it is neither JSON nor YAML."""
    if path.suffix == ".json":
        try:
            return json.loads(content)
        except ValueError as error:
            raise FormatError(f"{path} is not JSON{place_of(getattr(error, 'lineno', None))}") from None
    try:
        import yaml
    except ModuleNotFoundError:
        raise NotFoundError(f"{path} needs PyYAML; run: pip install pyyaml, or write it as .json") from None
    try:
        return yaml.safe_load(content)
    except (yaml.YAMLError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        raise FormatError(
            f"{path} is not YAML{place_of(mark.line + 1 if mark is not None else None)}"
        ) from None


def place_of(line: int | None) -> str:
    return f" (line {line})" if line is not None else ""


def fault_of(error: ValidationError) -> str:
    """What is wrong first, and where; never the name of an unknown field, which may be a misplaced key."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    location, message = first["loc"], first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        location, message = location[:-1], "there is an unknown field"
    if not location and first["type"] != "extra_forbidden":
        return "the file must be an object with keys, a list"
    place = ".".join(str(part) for part in location)
    return f"{place}: {message}" if place else message

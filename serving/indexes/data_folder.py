"""The folder of the indexes that are made over HTTP.

    DATA/
      write.lock                locked by the process that writes
      aliases.json              {"version": 1, "aliases": {ALIAS: NAME}}
      indexes/NAME/             the folder of an index, with
        made.json               what it was made with
        log/                    what no commit has yet
      snapshots/NAME/VERSION-…  copies of commits, each the folder of an index
      making/  removing/        indexes that are not there yet, and not any more

An index, an alias and a snapshot each come and go by one rename. Names hold no slash and begin with a letter or digit,
so nothing leaves the folder.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Literal
from uuid import uuid4

from pydantic import BaseModel, ConfigDict, ValidationError

from retrieval.index.arrays import disk_errors, sync_folder
from runtime.errors import FormatError
from serving.configuration import INDEX_NAME

MADE_FILE = "made.json"


class Made(BaseModel):
    """What an index was made with.

    Attributes:
        uid: tells it from an index of the same name before or after it.
        encoder: as the request named it.
        units: of vectors without an encoder.
        fields: kinds of the fields.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: Literal[1] = 1
    uid: str
    encoder: str
    units: int | None = None
    fields: dict[str, str]


class Aliases(BaseModel):
    """Further names of indexes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: Literal[1] = 1
    aliases: dict[str, str] = {}


class DataFolder:
    """Where things are, and how they come and go; the caller holds the lock for all but reading."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.indexes = path / "indexes"
        self.aliases_file = path / "aliases.json"

    def prepare(self) -> None:
        """Make the folder, and remove what a killed process left half-made or half-removed."""
        for name in ("indexes", "snapshots", "making", "removing"):
            (self.path / name).mkdir(parents=True, exist_ok=True)
        for name in ("making", "removing"):
            for left in (self.path / name).iterdir():
                shutil.rmtree(left)

    def names(self) -> list[str]:
        """The indexes that are there."""
        if not self.indexes.is_dir():
            return []
        return sorted(entry.name for entry in self.indexes.iterdir() if re.fullmatch(INDEX_NAME, entry.name))

    def index(self, name: str) -> Path:
        """The folder of an index, there or not.

        Raises:
            ValueError: the name could leave the folder; whoever calls has checked it before.
        """
        if not re.fullmatch(INDEX_NAME, name):
            raise ValueError(f"{name!r} is no name of an index")
        return self.indexes / name

    def made(self, name: str) -> Made | None:
        """What an index was made with; None where there is none.

        Raises:
            FormatError: the file that says so is damaged.
        """
        return read_made(self.index(name))

    def aliases(self) -> dict[str, str]:
        """The index that each alias stands for.

        Raises:
            FormatError: the file is damaged.
        """
        try:
            return Aliases.model_validate_json(self.aliases_file.read_bytes()).aliases
        except FileNotFoundError:
            return {}
        except ValidationError as error:
            raise FormatError(f"{self.aliases_file} is damaged; restore it from a copy") from error

    def set_aliases(self, aliases: Mapping[str, str]) -> None:
        """Replace all aliases at once."""
        replace_file(self.aliases_file, Aliases(aliases=dict(aliases)).model_dump_json().encode())

    def new_folder(self) -> Path:
        """A folder to make something in, which does not exist yet."""
        return self.path / "making" / uuid4().hex

    def publish(self, made: Path, place: Path) -> None:
        """Let a folder that is complete and durable appear at its place."""
        place.parent.mkdir(parents=True, exist_ok=True)
        with disk_errors(place):
            made.rename(place)
            sync_folder(place.parent)

    def snapshots(self, name: str) -> Path:
        """The folder of the snapshots of an index."""
        return self.path / "snapshots" / self.index(name).name

    def withdraw(self, name: str) -> Path:
        """Let an index disappear; returns where its files are, for `shutil.rmtree`."""
        withdrawn = self.path / "removing" / uuid4().hex
        self.index(name).rename(withdrawn)
        sync_folder(self.indexes)
        return withdrawn


def read_made(folder: Path) -> Made | None:
    """What the index of a folder was made with; None unless it was made over HTTP."""
    path = folder / MADE_FILE
    try:
        return Made.model_validate_json(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValidationError as error:
        raise FormatError(f"{path} is damaged; restore it from a copy") from error


def write_made(folder: Path, made: Made) -> None:
    replace_file(folder / MADE_FILE, made.model_dump_json().encode())


def replace_file(path: Path, content: bytes) -> None:
    """Replace a small file atomically and durably."""
    temporary = path.with_name(f"{path.name}.tmp")
    with disk_errors(path):
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)

"""The models of a server that generate, by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from runtime.errors import NotFoundError
from serving.errors import RETRY, ApiError
from serving.generation import Generator, LocalGenerator


def check_models(folders: Mapping[str, Path]) -> None:
    """Look for every model, so that a wrong folder is found before anything is started.

    Raises:
        NotFoundError: a folder holds no model.
    """
    for name, folder in folders.items():
        if not (folder / "config.json").is_file():
            raise NotFoundError(
                f"{folder} has no config.json; give --model {name}=DIR the folder of a model as transformers saves it"
            )


class Generators(Mapping[str, Generator]):
    """Opened by `open`, ready until `close`; 503 before and after.

    Args:
        folders: of each model, by its name.
        open_one: makes a generator of a name and a folder.
    """

    def __init__(
        self, folders: Mapping[str, Path], open_one: Callable[[str, Path], Generator] = LocalGenerator.open
    ) -> None:
        self._folders = dict(folders)
        self._open_one = open_one
        self._opened: dict[str, Generator] = {}
        self._is_open = not self._folders

    def open(self) -> None:
        """Load all models, or none (blocking).

        Raises:
            NotFoundError, FormatError, UsageError: a folder is missing, damaged, or no model that can be batched.
        """
        try:
            for name, folder in self._folders.items():
                self._opened[name] = self._open_one(name, folder)
        except BaseException:
            self.close()
            raise
        self._is_open = True

    def close(self) -> None:
        """End what is generated (blocking)."""
        self._is_open = not self._folders
        while self._opened:
            self._opened.popitem()[1].close()

    def named(self, name: str) -> Generator:
        """The model of that name; 404 if there is none."""
        if name not in self._folders:
            raise ApiError(404, "model_not_found", f"there is no model {name!r} that generates", "model")
        if not self._is_open:
            raise ApiError(
                503,
                "not_ready",
                "the server is loading its models, or stopping; try again shortly",
                headers=RETRY,
            )
        return self._opened[name]

    def __getitem__(self, name: str) -> Generator:
        return self._opened[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._opened)

    def __len__(self) -> int:
        return len(self._opened)

"""What the bench asks of an engine."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from runtime.activations import SparseActivations

Options = Mapping[str, Any]
"""Options of a build, or the settings of a search; JSON values."""

Hits = tuple[NDArray[np.int64], NDArray[np.float64]]
"""Numbers of documents, best first, and their scores as the engine gave them."""


class Engine(ABC):
    """One engine over one index folder, in a process of its own.

    A query is prepared once, outside the clock: into whatever the engine takes. `search` is what is timed, and may
    return anything; `hits` makes arrays of it, outside the clock again.
    """

    name: ClassVar[str]
    requires: ClassVar[tuple[str, ...]] = ()
    """Modules that must be installed; they come with the extra `peers`."""

    takes_weights: ClassVar[bool] = True
    """Whether query terms may have weights; else they are all taken as 1, in its exact answers too."""

    keeps_indexes: ClassVar[bool] = True
    """Whether an index that was built for an earlier run is used again."""

    def load(self) -> None:
        """Import what it needs, which takes no part in opening an index."""
        for module in self.requires:
            import_module(module)

    @abstractmethod
    def builds(self, vectors: SparseActivations) -> list[Options]:
        """The builds to compare for these documents, each a distinct index."""

    @abstractmethod
    def settings(self, build: Options, k: int) -> list[Options]:
        """The settings of a search that together draw its curve of recall and latency; one where it is exact."""

    def is_always_measured(self, setting: Options) -> bool:  # noqa: ARG002
        """Whether a setting is of interest by itself, and not only where it is the fastest."""
        return False

    @abstractmethod
    def build(self, vectors: SparseActivations, folder: Path, options: Options, scratch: Path) -> float:
        """Build an index into `folder`, which exists and is empty; `scratch` is removed afterwards.

        Returns:
            Seconds until the index could be opened; what turned the vectors into the engine's own input format is
            left out.
        """

    @abstractmethod
    def open(self, folder: Path, options: Options) -> None:
        """Open the index, ready to search."""

    @abstractmethod
    def prepare(self, units: NDArray[np.int32], weights: NDArray[np.float32]) -> Any:
        """A query in the engine's own form."""

    @abstractmethod
    def search(self, query: Any, k: int, setting: Options) -> Any:
        """The best `k` documents of one prepared query."""

    @abstractmethod
    def hits(self, found: Any) -> Hits:
        """What `search` returned, as arrays."""

    def work(self, queries: list[Any], k: int, setting: Options) -> dict[str, float] | None:  # noqa: ARG002
        """What the mean query touched, counted apart from any timing; None where the engine does not count."""
        return None


def seconds(call: Callable[[], object]) -> float:
    """How long a call takes."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started

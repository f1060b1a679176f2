"""Act on a module right after somebody imports it, without importing it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

Act = Callable[[ModuleType], None]


def when_imported(name: str, act: Act) -> None:
    """Call ``act(module)`` once the module `name` has been imported: at once if it has been, else then.

    The import itself goes the way that it always goes; the finder that waits for it leaves when it came.
    """
    module = sys.modules.get(name)
    if module is not None:
        act(module)
    elif _Awaited(name, act) not in sys.meta_path:
        sys.meta_path.insert(0, _Awaited(name, act))


class _Awaited(MetaPathFinder):
    def __init__(self, name: str, act: Act) -> None:
        self._name = name
        self._act = act

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Awaited) and (self._name, self._act) == (other._name, other._act)

    def __hash__(self) -> int:
        return hash((self._name, self._act))

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != self._name:
            return None
        for finder in sys.meta_path:
            spec = None if isinstance(finder, _Awaited) else finder.find_spec(fullname, path, target)
            if spec is not None:
                if spec.loader is not None:
                    spec.loader = _ThenAct(spec.loader, self, self._act)
                return spec
        return None


class _ThenAct(Loader):
    def __init__(self, loader: Loader, awaited: _Awaited, act: Act) -> None:
        self._loader = loader
        self._awaited = awaited
        self._act = act

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        # The module keeps its own loader, which knows its source; this one is done with it.
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        self._loader.exec_module(module)
        if self._awaited in sys.meta_path:
            sys.meta_path.remove(self._awaited)
        self._act(module)

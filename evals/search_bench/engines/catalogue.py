"""The engines by name."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec

from evals.search_bench.engines.engine import Engine
from runtime.errors import NotFoundError, UsageError

OURS = "lexpert"
ENGINES = {
    OURS: "evals.search_bench.engines.lexpert:Lexpert",
    "seismic": "evals.search_bench.engines.seismic:Seismic",
    "lucene": "evals.search_bench.engines.lucene:Lucene",
    "sindi": "evals.search_bench.engines.sindi:Sindi",
    "kannolo": "evals.search_bench.engines.kannolo:Kannolo",
    "bm25s": "evals.search_bench.engines.bm25s:Bm25s",
    "scipy": "evals.search_bench.engines.scipy_product:ScipyProduct",
}


def load_engine(name: str) -> Engine:
    """An engine that has no index open yet.

    Raises:
        UsageError: there is none of this name.
        NotFoundError: what it needs is not installed.
    """
    if name not in ENGINES:
        raise UsageError(f"there is no engine {name!r}; choose from {', '.join(ENGINES)}")
    module, _, kind = ENGINES[name].partition(":")
    engine: Engine = getattr(import_module(module), kind)()
    missing = [needed for needed in engine.requires if find_spec(needed) is None]
    if missing:
        raise NotFoundError(
            f"{name} needs {', '.join(missing)}, not installed here; run: pip install 'lexpert[peers]'"
        )
    return engine


def installed_engines() -> list[str]:
    """The names of those that can be loaded."""
    found = []
    for name in ENGINES:
        try:
            load_engine(name)
        except NotFoundError:
            continue
        found.append(name)
    return found

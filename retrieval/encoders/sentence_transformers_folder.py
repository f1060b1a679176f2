"""Folders of sentence-transformers' SparseEncoder: read in both generations, written so that both can read.

A folder lists its modules in ``modules.json`` as Python paths: ``sentence_transformers.models.Router``,
``sentence_transformers.sparse_encoder.models.SpladePooling`` and the like in version 5,
``sentence_transformers.base.modules.router.Router`` and the like since. Only the last part of such a path is
looked at, nothing is imported, and a path outside sentence_transformers is refused: it stands for code. The one
exception is `EXPANSION`.

A ``Router`` sends queries and documents through different modules, named in ``router_config.json``. A folder
without ``modules.json`` is a plain ``*ForMaskedLM`` model: SPLADE with maximum pooling.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retrieval.encoders.fingerprint import EXPANSION_FILE
from runtime.errors import FormatError, NotFoundError

TRANSFORMER_CONFIGS = tuple(
    f"sentence_{kind}_config.json"
    for kind in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
POOLINGS = ("max", "sum")
ACTIVATIONS = ("relu", "log1p_relu")
WEIGHTS = "model.safetensors"
V5_MODULES = "sentence_transformers.sparse_encoder.models"

EXPANSION = "lexpert.TermExpansion"
"""Of a module after the pooling; see `retrieval.encoders.expansion`. Nothing has that path, so that
sentence-transformers refuses the folder: without the module it would give other vectors."""

SHARED_TOKENIZER = "tokenizer"
"""In the config.json of a query table, where `shrink` wrote it: the module folder whose tokenizer it uses. Ours alone:
such a folder has rounded weights, which no other library reads."""


@dataclass(frozen=True)
class SpladeRoute:
    """A masked language model followed by SPLADE pooling; names as in `vocabulary_head`.

    Attributes:
        expansion: module folder of a term expansion that is added to what is pooled.
    """

    folder: Path
    pooling: str = "max"
    activation: str = "relu"
    max_length: int | None = None
    lower_case: bool = False
    prompt: str = ""
    expansion: Path | None = None


@dataclass(frozen=True)
class TableRoute:
    """Queries by table: a tokenizer in `folder`, and a weight per token in model.safetensors or a JSON object."""

    folder: Path
    weights: Path
    prompt: str = ""


Route = SpladeRoute | TableRoute


@dataclass(frozen=True)
class SparseEncoderFolder:
    """What a folder says about itself, with nothing loaded yet."""

    documents: SpladeRoute
    queries: Route
    max_active_dims: int | None = None


def read_folder(folder: Path) -> SparseEncoderFolder:
    """Read the description of a sparse encoder from its folder.

    Raises:
        NotFoundError: there is no such folder, or a file that the folder names is missing.
        FormatError: the folder holds something else than a SPLADE or inference-free encoder.
    """
    if not folder.is_dir():
        raise NotFoundError(f"there is no encoder folder {folder}")
    if not (folder / "modules.json").is_file():
        route = SpladeRoute(folder)
        return SparseEncoderFolder(route, route)
    described = folder / "config_sentence_transformers.json"
    settings = read_object(described)
    prompts = object_in(settings, "prompts", described)
    documents = _route(folder, "document", str(prompts.get("document") or ""))
    queries = _route(folder, "query", str(prompts.get("query") or ""))
    if isinstance(documents, TableRoute):
        raise FormatError(f"{folder} encodes documents by a table; only queries can be encoded so")
    return SparseEncoderFolder(documents, queries, length_in(settings, "max_active_dims", described))


def has_query_table(folder: Path) -> bool:
    """Whether the folder encodes queries by a table, that is, is an inference-free encoder."""
    return (folder / "modules.json").is_file() and any(
        kind == "SparseStaticEmbedding" for kind, _ in modules_of(folder, "query")
    )


def ends_in_autoencoder(folder: Path) -> bool:
    """Whether the folder's vectors are codes of an autoencoder over a dense encoder."""
    if not (folder / "modules.json").is_file():
        return False
    return [kind for kind, _ in modules_of(folder, "document")][-1:] == ["SparseAutoEncoder"]


def _route(folder: Path, task: str, prompt: str) -> Route:
    modules = modules_of(folder, task)
    kinds = [kind for kind, _ in modules]
    if kinds == ["SparseStaticEmbedding"]:
        return _table_route(folder, modules[0][1], prompt)
    starts = len(kinds) > 1 and kinds[0] in ("MLMTransformer", "Transformer") and kinds[1] == "SpladePooling"
    if not starts or kinds[2:] not in ([], [EXPANSION]):
        raise FormatError(
            f"{folder} encodes a {task} by {' + '.join(kinds) or 'nothing'}; known are a transformer with "
            f"SpladePooling, with {EXPANSION} after it, and, for queries, SparseStaticEmbedding"
        )
    (kind, transformer), (_, pooling), *last = modules
    expansion = last[0][1] if last else None
    if expansion is not None and not (expansion / EXPANSION_FILE).is_file():
        raise NotFoundError(f"the term expansion {expansion / EXPANSION_FILE} is missing")
    path, config = transformer_settings(transformer)
    if config.get("transformer_task", "fill-mask" if kind == "MLMTransformer" else None) != "fill-mask":
        raise FormatError(f"the transformer in {transformer} is not a masked language model (fill-mask)")
    pooled = read_object(pooling / "config.json")
    return SpladeRoute(
        transformer,
        _one_of(pooled.get("pooling_strategy", "max"), POOLINGS, pooling, "pooling_strategy"),
        _one_of(pooled.get("activation_function", "relu"), ACTIVATIONS, pooling, "activation_function"),
        max_length_in(config, task, path) if path else None,
        bool(config.get("do_lower_case", False)),
        prompt,
        expansion,
    )


def transformer_settings(transformer: Path) -> tuple[Path | None, dict[str, Any]]:
    """The settings that sentence-transformers keeps beside a transformer, and their file; none and empty without."""
    path = next((transformer / name for name in TRANSFORMER_CONFIGS if (transformer / name).is_file()), None)
    return path, read_object(path) if path else {}


def max_length_in(config: Mapping[str, Any], task: str, path: Path) -> int | None:
    """The most specific of the places where sentence-transformers keeps a limit of tokens."""
    processing = object_in(config, "processing_kwargs", path)
    for settings, key in (
        (config, f"{task}_length"),
        (object_in(processing, "text", path), "max_length"),
        (object_in(processing, "common", path), "max_length"),
        (config, "max_seq_length"),
    ):
        limit = length_in(settings, key, path)
        if limit is not None:
            return limit
    return None


def _table_route(folder: Path, module: Path, prompt: str) -> TableRoute:
    config = read_object(module / "config.json")
    named, shared = config.get("path"), config.get(SHARED_TOKENIZER)
    if named is None:
        weights = module / WEIGHTS
        if not weights.is_file() and (module / "pytorch_model.bin").is_file():
            raise FormatError(
                f"{module} has only pickled weights (pytorch_model.bin); convert them to safetensors, "
                "because opening a pickled file can run code"
            )
    else:
        places = [base / str(named) for base in (module, folder)]
        weights = next((place for place in places if place.is_file()), places[0])
    if not weights.is_file():
        raise NotFoundError(f"the query weights {weights} are missing")
    return TableRoute(module if shared is None else _inside(folder, str(shared)), weights, prompt)


def modules_of(folder: Path, task: str) -> list[tuple[str, Path]]:
    """Kind and folder of the modules that a text of this task passes through, routers resolved."""
    listed = _read_json(folder / "modules.json")
    if not isinstance(listed, list) or not all(isinstance(module, dict) for module in listed):
        raise FormatError(f"{folder / 'modules.json'} must hold a list of modules, each a JSON object")
    modules: list[tuple[str, Path]] = []
    for module in listed:
        path = _inside(folder, str(module.get("path", "")))
        kind = _kind(str(module.get("type")), folder)
        modules += _routed_modules(path, task) if kind in ("Router", "Asym") else [(kind, path)]
    return modules


def _routed_modules(router: Path, task: str) -> list[tuple[str, Path]]:
    name = "router_config.json"
    path = router / (name if (router / name).is_file() else "config.json")
    config = read_object(path)
    structure, types, parameters = (
        object_in(config, key, path) for key in ("structure", "types", "parameters")
    )
    route = _resolve_route(structure, parameters, object_in(parameters, "route_mappings", path), task)
    if route not in structure:
        raise FormatError(f"{path} has no route for a {task}; it has {', '.join(structure) or 'none'}")
    modules = structure[route]
    if not isinstance(modules, list) or not all(isinstance(module, str) for module in modules):
        raise FormatError(
            f"{path}: the route {route!r} must be a list of module folders, not {modules!r:.60}"
        )
    return [(_kind(str(types.get(module)), router), _inside(router, module)) for module in modules]


def _resolve_route(
    structure: Mapping[str, Any], parameters: Mapping[str, Any], mapped: Mapping[str, Any], task: str
) -> str | None:
    """The route of a text, in sentence-transformers' order: mapped, named after task or modality, default."""
    mappings = {}
    for key, route in mapped.items():
        try:
            mappings[ast.literal_eval(key)] = route  # tuples are kept as their Python spelling
        except (ValueError, SyntaxError, TypeError, RecursionError):
            continue  # skipped by sentence-transformers as well
    for mapping in ((task, "text"), (task, None), (None, "text"), (None, None)):
        if mapping in mappings:
            return str(mappings[mapping])
    for name in (task, "text", parameters.get("default_route")):
        if isinstance(name, str) and name in structure:
            return name
    return None


def write_config(
    folder: Path, prompts: Mapping[str, str], max_active_dims: int | None, similarity: str = "dot"
) -> None:
    """Write ``config_sentence_transformers.json``."""
    config: dict[str, Any] = {
        "model_type": "SparseEncoder",
        "__version__": {"sentence_transformers": "5.0.0"},
        "prompts": dict(prompts),
        "default_prompt_name": None,
        "similarity_fn_name": similarity,
    }
    if max_active_dims is not None:
        config["max_active_dims"] = max_active_dims
    write_json(folder / "config_sentence_transformers.json", config)


def splade_modules(route: SpladeRoute, task: str | None = None) -> list[str]:
    """Module folders that `route` is written to: in a router those of a task, without one the folder itself first."""
    kinds = ["MLMTransformer", "SpladePooling", *(["TermExpansion"] if route.expansion else [])]
    if task is None:
        return ["", *(f"{place}_{kind}" for place, kind in enumerate(kinds) if place)]
    return [f"{task}_{place}_{kind}" for place, kind in enumerate(kinds)]


def write_modules(folder: Path, names: Sequence[str] = ("", "1_SpladePooling")) -> None:
    """Write ``modules.json`` for a transformer in `folder` itself and the other modules of `splade_modules`."""
    modules = [(name, _type(name or "0_MLMTransformer", V5_MODULES)) for name in names]
    listed = [module_entry(i, path, kind) for i, (path, kind) in enumerate(modules)]
    write_json(folder / "modules.json", listed)


def module_entry(place: int, path: str, kind: str) -> dict[str, Any]:
    """One entry of ``modules.json``."""
    return {"idx": place, "name": str(place), "path": path, "type": kind}


def write_router(folder: Path, routes: Mapping[str, list[str]]) -> None:
    """Write ``modules.json`` and ``router_config.json``; a route's module folders end in their kinds."""
    kinds = {module: module.rsplit("_", 1)[1] for modules in routes.values() for module in modules}
    config = {
        "types": {module: _type(module, f"{V5_MODULES}.{kind}") for module, kind in kinds.items()},
        "structure": dict(routes),
        "parameters": {"default_route": "document", "allow_empty_key": True},
    }
    write_json(folder / "router_config.json", config)
    write_json(folder / "modules.json", [module_entry(0, "", "sentence_transformers.models.Router")])


def _type(module: str, package: str) -> str:
    """Python path of a module, by the name of its folder."""
    kind = module.rsplit("_", 1)[1]
    return EXPANSION if kind == "TermExpansion" else f"{package}.{kind}"


def write_splade_settings(route: SpladeRoute, transformer: Path, pooling: Path, num_terms: int) -> None:
    """Write the settings of `route` beside a transformer's files and into a pooling folder."""
    pooling.mkdir(parents=True, exist_ok=True)
    pooled = {"pooling_strategy": route.pooling, "activation_function": route.activation}
    write_json(pooling / "config.json", {**pooled, "word_embedding_dimension": num_terms})
    config = {"max_seq_length": route.max_length, "do_lower_case": route.lower_case}
    write_json(transformer / "sentence_bert_config.json", config)


def _kind(path: str, folder: Path) -> str:
    if path == EXPANSION:
        return path
    if not path.startswith("sentence_transformers."):
        raise FormatError(f"{folder} asks for the module {path}, which is code from outside; it is not run")
    return path.rsplit(".", 1)[1]


def _inside(folder: Path, relative: str) -> Path:
    if Path(relative).is_absolute() or ".." in Path(relative).parts:
        raise FormatError(f"{folder} names the module folder {relative!r}, which is outside of it")
    return folder / relative


def _one_of(value: Any, known: tuple[str, ...], folder: Path, key: str) -> str:
    if not isinstance(value, str) or value not in known:
        raise FormatError(f"{folder / 'config.json'}: {key} is {value!r}; known are {', '.join(known)}")
    return value


def length_in(settings: Mapping[str, Any], key: str, path: Path) -> int | None:
    """A number of tokens or terms; None where it is missing or null."""
    value = settings.get(key)
    if value is None:
        return None
    whole = isinstance(value, int | float) and not isinstance(value, bool) and value == value // 1
    if not whole or value < 1:
        raise FormatError(f"{path}: {key} must be a whole number of 1 or more, not {value!r:.60}")
    return int(value)


def object_in(settings: Mapping[str, Any], key: str, path: Path) -> dict[str, Any]:
    """A JSON object within another; empty where it is missing or null."""
    value = settings.get(key)
    if value is not None and not isinstance(value, dict):
        raise FormatError(f"{path}: {key} must be a JSON object, not {value!r:.60}")
    return value or {}


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object; empty where there is no such file. Raises FormatError for anything else in it."""
    value = _read_json(path) if path.is_file() else {}
    if not isinstance(value, dict):
        raise FormatError(f"{path} must hold a JSON object")
    return value


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise NotFoundError(f"{path} is missing") from None
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path} is not valid JSON ({error})") from None


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", "utf-8")

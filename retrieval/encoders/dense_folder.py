"""What a folder of a dense encoder says about itself: sentence-transformers' form, or a bare transformer."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retrieval.encoders import sentence_transformers_folder as st_folder
from retrieval.encoders.fingerprint import model_files
from runtime.errors import FormatError, NotFoundError

POOLINGS = ("cls", "max", "mean", "mean_sqrt_len_tokens", "lasttoken")
_LEGACY = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
"""How sentence-transformers wrote modes before version 6: one switch for each, in the order of their results."""

_MODULES = {"Identity": "linear"}
"""Where torch keeps those that are not in ``torch.nn.modules.activation``."""

ACTIVATIONS = ("Identity", "Tanh", "ReLU", "GELU", "SiLU", "Sigmoid")
"""Of ``torch.nn``; a folder that names another one asks for code from outside."""


@dataclass(frozen=True)
class Pooling:
    """Hidden states to one vector; with several modes, their vectors one behind the other."""

    modes: tuple[str, ...] = ("mean",)

    def settings(self) -> dict[str, Any]:
        return {"pooling": list(self.modes)}


@dataclass(frozen=True)
class LinearLayer:
    """A linear layer and an activation."""

    folder: Path
    inputs: int
    outputs: int
    bias: bool
    activation: str

    def settings(self) -> dict[str, Any]:
        return {"linear": [self.inputs, self.outputs, self.bias, self.activation]}

    def load(self, width: int) -> Any:
        """The torch module, in float32.

        Raises:
            FormatError: it does not take vectors of `width`, or its weights are damaged.
            NotFoundError: its weights are missing.
        """
        import torch
        from safetensors.torch import load_file

        path = self.folder / st_folder.WEIGHTS
        if self.inputs != width:
            raise FormatError(
                f"the layer in {self.folder} takes {self.inputs} values, but {width} come before it"
            )
        if not path.is_file():
            raise NotFoundError(f"{path} is missing; save the encoder with safetensors weights")
        linear = torch.nn.Linear(self.inputs, self.outputs, self.bias)
        try:
            weights = {name.removeprefix("linear."): tensor for name, tensor in load_file(path).items()}
            linear.load_state_dict(weights)
        except Exception as error:  # safetensors and torch raise a handful of types
            raise FormatError(
                f"the layer weights {path} cannot be read ({str(error).splitlines()[0]})"
            ) from None
        return torch.nn.Sequential(linear, getattr(torch.nn, self.activation)()).eval()


@dataclass(frozen=True)
class Normalize:
    """To length 1."""

    def settings(self) -> dict[str, Any]:
        return {"normalize": True}


Step = Pooling | LinearLayer | Normalize


@dataclass(frozen=True)
class DenseFolder:
    """A transformer and what follows it, with nothing loaded yet; the first of `steps` is the pooling."""

    folder: Path
    transformer: Path
    steps: tuple[Step, ...]
    max_length: int | None = None
    lower_case: bool = False
    query_prompt: str = ""
    document_prompt: str = ""


def read_dense_folder(folder: Path) -> DenseFolder:
    """Read the description of a dense encoder from its folder.

    Raises:
        NotFoundError: there is no such folder, or a file that the folder names is missing.
        FormatError: the folder holds something else than a dense encoder of text.
    """
    if not folder.is_dir():
        raise NotFoundError(f"there is no encoder folder {folder}")
    if not (folder / "modules.json").is_file():
        return DenseFolder(folder, folder, (Pooling(),))
    return dense_modules(folder, *modules_of_both(folder))


def modules_of_both(folder: Path) -> list[tuple[str, Path]]:
    """Kind and folder of the modules that queries and documents pass through.

    Raises:
        FormatError: they differ.
    """
    modules = st_folder.modules_of(folder, "document")
    if modules != st_folder.modules_of(folder, "query"):
        raise FormatError(
            f"{folder} encodes queries and documents by different modules; give one of the two alone"
        )
    return modules


def dense_modules(folder: Path, *modules: tuple[str, Path]) -> DenseFolder:
    """Read modules of `folder` that end in one vector for each text; see `read_dense_folder`."""
    kinds = [kind for kind, _ in modules]
    if kinds[:2] != ["Transformer", "Pooling"]:
        raise FormatError(
            f"{folder} encodes by {' + '.join(kinds) or 'nothing'}; known are a Transformer and Pooling, and "
            "after them Dense and Normalize"
        )
    (_, transformer), (_, pooling), *rest = modules
    steps: list[Step] = [_pooling(pooling / "config.json")]
    for kind, path in rest:
        if kind == "Dense":
            steps.append(_linear(path))
        elif kind == "Normalize":
            steps.append(Normalize())
        elif kind != "Dropout":  # which does nothing outside of training
            raise FormatError(f"{folder} has the module {kind}, which is not known after Pooling")
    beside, config = st_folder.transformer_settings(transformer)
    if config.get("transformer_task", "feature-extraction") != "feature-extraction":
        raise FormatError(
            f"the transformer in {transformer} does not give hidden states (feature-extraction)"
        )
    described = folder / "config_sentence_transformers.json"
    settings = st_folder.read_object(described)
    prompts = st_folder.object_in(settings, "prompts", described)
    return DenseFolder(
        folder,
        transformer,
        tuple(steps),
        st_folder.max_length_in(config, "document", beside) if beside else None,
        bool(config.get("do_lower_case", False)),
        str(prompts.get("query") or ""),
        str(prompts.get("document") or ""),
    )


def _pooling(path: Path) -> Pooling:
    config = st_folder.read_object(path)
    if config.get("include_prompt", True) is not True:
        raise FormatError(
            f"{path} leaves the prompt out of the pooling (include_prompt), which is not known here"
        )
    modes = config.get("pooling_mode")
    if modes is None:
        modes = [mode for key, mode in _LEGACY.items() if config.get(key)] or ["mean"]
    modes = [modes] if isinstance(modes, str) else modes
    if not isinstance(modes, list) or not modes or not all(mode in POOLINGS for mode in modes):
        raise FormatError(f"{path}: the pooling is {modes!r:.60}; known are {', '.join(POOLINGS)}")
    return Pooling(tuple(modes))


def _linear(folder: Path) -> LinearLayer:
    path = folder / "config.json"
    config = st_folder.read_object(path)
    if config.get("use_residual"):
        raise FormatError(f"{path}: a residual layer (use_residual) is not known here")
    return LinearLayer(
        folder,
        _width(config, "in_features", path),
        _width(config, "out_features", path),
        bool(config.get("bias", True)),
        _activation(config, path),
    )


def _width(config: Mapping[str, Any], key: str, path: Path) -> int:
    value = st_folder.length_in(config, key, path)
    if value is None:
        raise FormatError(f"{path} does not say {key}")
    return value


def _activation(config: Mapping[str, Any], path: Path) -> str:
    named = str(config.get("activation_function", "torch.nn.modules.activation.Tanh"))
    module, _, name = named.rpartition(".")
    if not module.startswith("torch.nn") or name not in ACTIVATIONS:
        raise FormatError(
            f"{path}: the activation is {named!r:.60}; known are {', '.join(ACTIVATIONS)} of torch.nn"
        )
    return name


def write_dense_folder(described: DenseFolder, folder: Path) -> list[dict[str, Any]]:
    """Copy an encoder into `folder`, each module in the form of sentence-transformers 5, and return their list.

    What ``modules.json`` is to hold is left to the caller, who may have more modules.
    """
    for name, path in model_files(described.transformer).items():
        shutil.copyfile(path, folder / name)
    settings = {"max_seq_length": described.max_length, "do_lower_case": described.lower_case}
    st_folder.write_json(folder / st_folder.TRANSFORMER_CONFIGS[0], settings)
    names, width = ["Transformer"], int(st_folder.read_object(folder / "config.json").get("hidden_size", 0))
    for step in described.steps:
        kind = "Dense" if isinstance(step, LinearLayer) else type(step).__name__
        module = folder / f"{len(names)}_{kind}"
        module.mkdir(exist_ok=True)
        if isinstance(step, Pooling):
            modes = {key: mode in step.modes for key, mode in _LEGACY.items()}
            st_folder.write_json(module / "config.json", {"word_embedding_dimension": width, **modes})
        elif isinstance(step, LinearLayer):
            shutil.copyfile(step.folder / st_folder.WEIGHTS, module / st_folder.WEIGHTS)
            config = {"in_features": step.inputs, "out_features": step.outputs, "bias": step.bias}
            activation = f"torch.nn.modules.{_MODULES.get(step.activation, 'activation')}.{step.activation}"
            st_folder.write_json(module / "config.json", {**config, "activation_function": activation})
        names.append(kind)
    return [
        st_folder.module_entry(
            place, "" if place == 0 else f"{place}_{kind}", f"sentence_transformers.models.{kind}"
        )
        for place, kind in enumerate(names)
    ]

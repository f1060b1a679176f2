"""JSON of a wrong shape in an encoder folder is a sentence that names the file, wherever it stands."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from retrieval.encoders.encoder import SparseEncoder
from retrieval.encoders.inference_free import InferenceFreeEncoder, inference_free_from
from retrieval.encoders.query_table import read_query_table, read_tokenizer
from retrieval.encoders.sentence_transformers_folder import SpladeRoute, TableRoute, read_folder
from retrieval.encoders.splade import SpladeEncoder
from runtime.errors import FormatError, LexpertError, NotFoundError

MakeModel = Callable[..., Path]
WRONG = ([1], {"a": 1}, 1, -1.5, "x", True, None, [{"path": 1}], {"query": 3, "document": [4]})


def places(value: Any) -> Iterator[list[Any]]:
    """The way to every value within a JSON value, itself first; of long ones only to the first few."""
    yield []
    children = list(value.items() if isinstance(value, dict) else enumerate(value))[:8] if value else []
    for key, child in children:
        for way in places(child) if isinstance(child, dict | list) else [[]]:
            yield [key, *way]


def replaced(value: Any, way: list[Any], by: Any) -> Any:
    if not way:
        return by
    copied: Any = dict(value) if isinstance(value, dict) else list(value)
    copied[way[0]] = replaced(value[way[0]], way[1:], by)
    return copied


def damages(path: Path) -> Iterator[str]:
    """Put a wrong value at every place of a JSON file in turn; yields what was done, and mends the file."""
    original = path.read_text("utf-8")
    for way in places(json.loads(original)):
        for wrong in WRONG:
            path.write_text(json.dumps(replaced(json.loads(original), way, wrong)), "utf-8")
            yield f"{path.name}: {way} = {wrong}"
    path.write_text(original, "utf-8")


def assert_loads_or_explains(load: Callable[[], object], path: Path) -> None:
    """Some values do not matter, or are right as well; an error has to be one sentence about the folder."""
    explained: dict[str, str] = {}
    for done in damages(path):
        try:
            load()
        except LexpertError as error:
            explained[done] = str(error)
        except Exception as error:
            raise AssertionError(done) from error
    assert explained
    assert [done for done, said in explained.items() if str(path.parent) not in said] == []


@pytest.fixture
def splade_folder(make_language_model: MakeModel, tmp_path: Path) -> Path:
    SpladeEncoder.from_folder(make_language_model(), max_length=12, max_active_dims=5).save(
        tmp_path / "splade"
    )
    return tmp_path / "splade"


@pytest.fixture
def router_folder(make_language_model: MakeModel, tmp_path: Path) -> Path:
    model = make_language_model()
    size = json.loads((model / "config.json").read_text())["vocab_size"]
    save_file({"weight": np.ones(size, np.float32)}, tmp_path / "weights.safetensors")
    table = TableRoute(model, tmp_path / "weights.safetensors")
    inference_free_from(SpladeRoute(model), table).save(tmp_path / "router")
    return tmp_path / "router"


@pytest.mark.parametrize(
    "name",
    [
        "modules.json",
        "config_sentence_transformers.json",
        "sentence_bert_config.json",
        "1_SpladePooling/config.json",
    ],
)
def test_a_wrong_value_in_a_splade_folder_is_explained(splade_folder: Path, name: str) -> None:
    path = splade_folder / name
    assert_loads_or_explains(lambda: read_folder(splade_folder), path)
    path.write_text("[1]")
    with pytest.raises(FormatError, match=str(path)):
        SparseEncoder.load(splade_folder)


@pytest.mark.parametrize("name", ["router_config.json", "query_0_SparseStaticEmbedding/config.json"])
def test_a_wrong_value_in_a_router_folder_is_explained(router_folder: Path, name: str) -> None:
    path = router_folder / name
    assert_loads_or_explains(lambda: InferenceFreeEncoder.from_folder(router_folder), path)
    path.write_text("[1]")
    with pytest.raises(FormatError, match=str(path)):
        SparseEncoder.load(router_folder)


@pytest.mark.parametrize("name", ["tokenizer_config.json", "tokenizer.json"])
def test_a_wrong_value_in_a_tokenizer_is_explained(
    make_language_model: MakeModel, tmp_path: Path, name: str
) -> None:
    shutil.copyfile(make_language_model() / "tokenizer.json", tmp_path / "tokenizer.json")
    described = {"model_max_length": 64, "tokenizer_class": "BertTokenizer", "do_lower_case": True}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(described))
    assert_loads_or_explains(lambda: read_tokenizer(tmp_path), tmp_path / name)
    (tmp_path / name).write_text("[1]")
    with pytest.raises(FormatError, match=str(tmp_path / name)):
        read_tokenizer(tmp_path)


def test_a_wrong_value_in_a_table_is_explained(make_language_model: MakeModel, tmp_path: Path) -> None:
    path = tmp_path / "idf.json"
    for wrong in (
        "[1]",
        "3",
        '{"virus": "x"}',
        '{"virus": [1]}',
        '{"virus": 1' + "0" * 400 + "}",
        "[" * 10**5,
    ):
        path.write_text(wrong)
        with pytest.raises(FormatError, match=str(path)):
            read_query_table(make_language_model(), path)


def test_a_wrong_value_in_a_saved_query_side_is_explained(router_folder: Path, tmp_path: Path) -> None:
    InferenceFreeEncoder.from_folder(router_folder).save_query_side(tmp_path / "query")
    own = next(path for path in (tmp_path / "query").glob("*.json") if "query_only" in path.read_text())
    assert_loads_or_explains(lambda: InferenceFreeEncoder.from_folder(tmp_path / "query"), own)


def test_a_length_that_is_no_number_is_refused_before_a_text_comes(
    make_language_model: MakeModel, tmp_path: Path
) -> None:
    shutil.copytree(make_language_model(), tmp_path / "model")
    path = tmp_path / "model" / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_max_length": "many"}))
    with pytest.raises(FormatError, match=r"model_max_length must be a number|cannot be loaded"):
        SparseEncoder.load(tmp_path / "model")
    with pytest.raises(NotFoundError, match="no encoder folder"):
        read_folder(tmp_path / "none")

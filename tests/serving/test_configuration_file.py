"""Configurations as files: what they may say, and what is said of wrong ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from typer.testing import CliRunner

from runtime.errors import FormatError, NotFoundError, UsageError
from serving.cli import configure
from serving.configuration import Limits, ServerConfiguration, Traces
from serving.configuration_file import read_configuration

EVERYTHING: dict[str, Any] = {
    "indexes": {"docs": "docs-index", "papers": "/srv/papers"},
    "writable": ["papers"],
    "shards": {"docs": {"replicas": 2}},
    "data": "data",
    "aliases": {"main": "docs"},
    "encoders": {"here": "encoder", "elsewhere": "org/name"},
    "models": {"stories": "stories"},
    "keys_file": "keys.yaml",
    "traces": {"file": "traces.jsonl", "share": 0.5},
    "commits": {"documents": 5, "bytes": 1000, "seconds": 0.5},
    "host": "0.0.0.0",
    "port": 9000,
    "proxy": "haproxy",
    "replicas": 2,
    "max_ongoing_requests": 128,
    "max_queued_requests": 64,
    "threads": 3,
    "limits": {"max_k": 50, "timeout_s": 5},
}


def write(folder: Path, settings: Any, name: str = "server.yaml") -> Path:
    path = folder / name
    dump = json.dumps if name.endswith(".json") else yaml.safe_dump
    path.write_text(settings if isinstance(settings, str) else dump(settings), "utf-8")
    return path


@pytest.mark.parametrize("name", ["server.yaml", "server.json"])
def test_a_file_may_set_everything(tmp_path: Path, name: str) -> None:
    assert EVERYTHING.keys() == ServerConfiguration.model_fields.keys() - {"keys"}
    (tmp_path / "encoder").mkdir()
    found = read_configuration(write(tmp_path, EVERYTHING, name))
    assert found.indexes == {"docs": tmp_path / "docs-index", "papers": Path("/srv/papers")}
    assert (found.data, found.keys_file) == (tmp_path / "data", tmp_path / "keys.yaml")
    assert found.traces == Traces(file=tmp_path / "traces.jsonl", share=0.5)
    assert found.models == {"stories": tmp_path / "stories"}
    assert found.encoders == {"here": str(tmp_path / "encoder"), "elsewhere": "org/name"}
    assert (found.limits.max_k, found.limits.timeout_s, found.limits.max_queries) == (50, 5, 256)
    assert (found.commits.documents, found.replicas, found.proxy) == (5, 2, "haproxy")


def test_a_file_and_the_options_say_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    said = {
        "indexes": {"docs": "i"},
        "models": {"m": "d"},
        "data": "x",
        "encoders": {"e": "org/e"},
        "keys_file": "k",
        "port": 0,
    }
    options = configure(["docs=i"], 0, Path("x"), ["e=org/e"], ["m=d"], Path("k"))
    assert read_configuration(write(tmp_path, said)) == options
    assert read_configuration(write(tmp_path, {"indexes": {"docs": "i"}})) == configure(["docs=i"])


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ("", "must hold settings by name"),
        ("- a", "must hold settings by name"),
        ("indexes: {docs", r"not YAML \(line 1\)"),
        ({}, "there is nothing to serve"),
        ({"index": {}}, "index: there is no such setting; did you mean indexes"),
        ({"colour": 1}, "colour: there is no such setting; there are indexes, writable, "),
        ({"limits": {"max_kk": 1}}, r"limits\.max_kk: there is no such setting; did you mean max_k\?"),
        ({"limits": {"max_k": 0}}, r"limits\.max_k: input should be greater than or equal to 1"),
        ({"limits": {"max_k": "many"}}, r"limits\.max_k: input should be a valid integer"),
        ({"limits": 5}, "limits: "),
        ({"commits": {"seconds": 0}}, r"commits\.seconds: input should be greater than 0"),
        ({"indexes": {"a/b": "x"}}, r"indexes\.a/b: a name must be 1 to 64 letters"),
        ({"indexes": {2024: "x"}}, r"indexes\.2024: a name .* in quotes if it is a number"),
        ({"indexes": {"docs": 5}}, r"indexes\.docs: "),
        ({"indexes": ["docs"]}, "indexes: input should be a valid dict"),
        ({"indexes": {"docs": "x"}, "writable": ["other"]}, "writable names 'other'"),
        ({"indexes": {"docs": "x"}, "shards": {"other": {}}}, "shards names 'other'"),
        ({"indexes": {"docs": "x"}, "shards": {"docs": {"replicas": 0}}}, "shards.docs.replicas: "),
        ({"indexes": {"docs": "x"}, "shards": {"docs": {"replica": 1}}}, "did you mean replicas"),
        ({"indexes": {"docs": "x"}, "aliases": {"docs": "docs"}}, "aliases names 'docs', which is an index"),
        ({"indexes": {"docs": "x"}, "aliases": {"main": "none"}}, "aliases leads to 'none'"),
        ({"indexes": {"docs": "x"}, "port": 70000}, "port: input should be less than or equal to 65535"),
        (
            {"indexes": {"docs": "x"}, "proxy": "nginx"},
            "proxy: input should be 'auto', 'haproxy' or 'python'",
        ),
        ({"indexes": {"docs": "x"}, "host": "localhost"}, "host: it must be an IPv4 address"),
        ({"indexes": {"docs": "x"}, "host": "0.0.0.0"}, "give keys_file too, or leave host out"),
        ({"indexes": {"docs": "x"}, "replicas": 0}, "replicas: input should be greater"),
    ],
)
def test_a_wrong_setting_is_one_sentence_with_its_path(tmp_path: Path, settings: Any, said: str) -> None:
    path = write(tmp_path, settings)
    with pytest.raises(FormatError, match=said) as caught:
        read_configuration(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_keys_have_a_file_of_their_own(tmp_path: Path) -> None:
    secret = "secret-0123456789abcdef"
    path = write(
        tmp_path, {"indexes": {"docs": "x"}, "keys": [{"name": "a", "key": secret, "scope": "read"}]}
    )
    with pytest.raises(FormatError, match="name it with keys_file") as caught:
        read_configuration(path)
    assert secret not in str(caught.value)


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="there is no file"):
        read_configuration(tmp_path / "none.yaml")
    with pytest.raises(UsageError, match="cannot be read: Is a directory"):
        read_configuration(tmp_path)


def test_the_command_takes_a_file_or_options(tmp_path: Path) -> None:
    import lexpert

    path = str(write(tmp_path, {"indexes": {"docs": "x"}}))
    for options in (["--index", "docs=x"], ["--port", "9000"], ["--data", "d"]):
        run = CliRunner().invoke(lexpert.app, ["serve", path, *options])
        assert isinstance(run.exception, UsageError), run.output
        assert "give either" in str(run.exception)


def test_an_api_with_a_file_of_keys_asks_for_them(
    index_folder: Path, tmp_path: Path, in_process: Any
) -> None:
    from serving.api import Api

    keys = write(tmp_path, {"keys": [{"name": "a", "key": "k" * 16, "scope": "read"}]}, "keys.yaml")
    keys.chmod(0o600)
    api = in_process(Api(ServerConfiguration(indexes={"docs": index_folder}, keys_file=keys)))
    assert api.get("/v1/indexes").status_code == 401
    assert api.get("/version", headers={"x-api-key": "k" * 16}).status_code == 200


def test_aliases_of_the_configuration_stand_for_indexes(
    index_folder: Path, tmp_path: Path, in_process: Any
) -> None:
    from serving.api import Api

    served = ServerConfiguration(
        indexes={"docs": index_folder}, data=tmp_path / "data", aliases={"main": "docs", "later": "news"}
    )
    api = in_process(Api(served))
    api.api.state.open()
    try:
        assert search(api, "main").json()["results"] == search(api, "docs").json()["results"]
        assert search(api, "later").status_code == 404
        assert api.get("/v1/aliases").json() == {"aliases": {"main": "docs", "later": "news"}}
        changed = api.request("POST", "/v1/aliases", json={"aliases": {"main": None}})
        assert (changed.status_code, changed.json()["error"]["code"]) == (409, "alias_exists")
        assert api.request("PUT", "/v1/indexes/main", json={"encoder": "bm25"}).status_code == 409
        assert api.request("PUT", "/v1/indexes/news", json={"encoder": "bm25"}).status_code == 201
        assert search(api, "later").status_code == 200
        deleted = api.request("DELETE", "/v1/indexes/news")
        assert deleted.json()["error"]["code"] == "index_has_alias"
        more = api.request("POST", "/v1/aliases", json={"aliases": {"new": "news"}})
        assert more.json() == {"aliases": {"new": "news", "main": "docs", "later": "news"}}
    finally:
        api.api.state.close()


def test_aliases_need_no_data_folder(index_folder: Path, in_process: Any) -> None:
    from serving.api import Api

    api = in_process(Api(ServerConfiguration(indexes={"docs": index_folder}, aliases={"main": "docs"})))
    api.api.state.open()
    try:
        assert search(api, "main").status_code == 200
    finally:
        api.api.state.close()


def search(api: Any, name: str) -> httpx.Response:
    found: httpx.Response = api.post(f"/v1/indexes/{name}/search", json={"query": "json file"})
    return found


def test_every_setting_is_in_the_documentation() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs/deploying.md").read_text("utf-8")
    for name in (ServerConfiguration.model_fields.keys() - {"keys"}) | Limits.model_fields.keys():
        assert f"`{name}`" in page, name

"""Files of keys, and what errors say of them."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from runtime.errors import FormatError, LexpertError, NotFoundError, UsageError
from serving.cli import configure, example_of
from serving.configuration import ServerConfiguration
from serving.key_file import read_keys, with_keys
from serving.keys import Key

SECRET = "secret-0123456789abcdef"
GOOD: dict[str, Any] = {"name": "a", "key": SECRET, "scope": "read"}


def write(path: Path, content: str, mode: int = 0o600) -> Path:
    path.write_text(content, "utf-8")
    path.chmod(mode)
    return path


@pytest.mark.parametrize(("name", "dump"), [("keys.yaml", yaml.safe_dump), ("keys.json", json.dumps)])
def test_keys_come_from_yaml_and_json(tmp_path: Path, name: str, dump: Any) -> None:
    second = {"name": "b", "sha256": "0" * 64, "scope": "admin", "rate": 5, "burst": 10}
    path = write(tmp_path / name, dump({"keys": [GOOD, second]}))
    first, other = read_keys(path)
    assert (first.name, first.scope, first.rate) == ("a", "read", None)
    assert first.sha256 == hashlib.sha256(SECRET.encode()).hexdigest()
    assert (other.sha256, other.rate, other.burst) == ("0" * 64, 5, 10)
    configuration = configure(["docs=x"], 0, keys=path)
    assert (configuration.keys, configuration.keys_file) == ((), path)
    assert with_keys(configuration).keys == (first, other)
    assert '"authorization: Bearer $KEY"' in example_of(configuration, "http://x")
    assert "authorization" not in example_of(configure(["docs=x"], 0), "http://x")


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o620, 0o601, 0o666])
def test_a_file_that_others_can_reach_is_refused(tmp_path: Path, mode: int) -> None:
    path = write(tmp_path / "keys.yaml", yaml.safe_dump({"keys": [GOOD]}), mode)
    with pytest.raises(UsageError, match=rf"read by others \(mode 0{mode:o}\); run: chmod 600 "):
        read_keys(path)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_a_file_of_another_user_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "keys.yaml", yaml.safe_dump({"keys": [GOOD]}))
    os.chown(path, 12345, -1)
    with pytest.raises(UsageError, match="another user"):
        read_keys(path)


def test_a_file_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="there is no file"):
        read_keys(tmp_path / "none.yaml")
    tmp_path.chmod(0o700)
    with pytest.raises(UsageError, match="cannot be read: Is a directory"):
        read_keys(tmp_path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "must be an object"),
        ("[]", "must be an object"),
        (SECRET, "must be an object"),
        ("keys: []", "keys: "),
        (f"keys: {SECRET}", "keys: "),
        (f"keys: [{SECRET}]", r"keys\.0: "),
        (f"keys:\n- name: a\n  key: {SECRET}\n  bad\n  scope: read", r"not YAML \(line 5\)"),
        (f"{{keys: [{{key: {SECRET}", "not YAML"),
        (f"keys: [{{name: a, scope: read, {SECRET}: 1}}]", "give either key or sha256"),
        (f"keys: [{{name: a, key: {SECRET}, scope: read, {SECRET}: 1}}]", r"keys\.0: there is an unknown"),
        (f"{{{SECRET}: 1, keys: [{{name: a, key: {SECRET}, scope: read}}]}}", "there is an unknown field"),
        (f"keys: [{{name: a, key: {SECRET}, sha256: '', scope: read}}]", "give either key or sha256"),
        (f"keys: [{{name: a, key: {SECRET}, scope: all}}]", r"keys\.0\.scope: .*'read', 'write' or 'admin'"),
        (f"keys: [{{name: a, key: {SECRET}}}]", r"keys\.0\.scope: "),
        (f"keys: [{{name: 'a b', key: {SECRET}, scope: read}}]", r"keys\.0\.name: "),
        (f"keys: [{{name: a, key: '{SECRET} ', scope: read}}]", "16 to 512 printable"),
        (f"keys: [{{name: a, key: [{SECRET}], scope: read}}]", "16 to 512 printable"),
        (f"keys: [{{name: a, key: {SECRET[:15]}, scope: read}}]", "16 to 512 printable"),
        ("keys: [{name: a, key: 1234567890123456, scope: read}]", "16 to 512 printable"),
        (f"keys: [{{name: a, sha256: {SECRET}, scope: read}}]", r"keys\.0\.sha256: "),
        (f"keys: [{{name: a, key: {SECRET}, scope: read, rate: 0}}]", r"keys\.0\.rate: "),
        (f"keys: [{{name: a, key: {SECRET}, scope: read, rate: .nan}}]", r"keys\.0\.rate: "),
        (f"keys: [{{name: a, key: {SECRET}, scope: read, rate: {SECRET}}}]", r"keys\.0\.rate: "),
        (f"keys: [{{name: a, key: {SECRET}, scope: read, burst: 5}}]", "burst goes with rate"),
        (
            f"keys: [{{name: a, key: {SECRET}, scope: read}}, {{name: a, key: {SECRET}x, scope: read}}]",
            "two keys are named 'a'",
        ),
        (
            f"keys: [{{name: a, key: {SECRET}, scope: read}}, {{name: b, key: {SECRET}, scope: read}}]",
            "'a' and 'b' are the same key",
        ),
        ("keys: " + " " * (1 << 20), "longer than"),
    ],
)
def test_a_fault_is_named_without_the_secret(tmp_path: Path, content: str, said: str) -> None:
    with pytest.raises(FormatError, match=said) as caught:
        read_keys(write(tmp_path / "keys.yaml", content))
    assert SECRET[:15] not in str(caught.value)
    assert caught.value.__cause__ is None


def test_broken_json_is_named_without_the_secret(tmp_path: Path) -> None:
    path = write(tmp_path / "keys.json", f'{{"keys":\n[{{"key": "{SECRET}"')
    with pytest.raises(LexpertError, match=r"is not JSON \(line 2\)") as caught:
        read_keys(path)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    "change", [{"scope": "all"}, {"key": SECRET + " "}, {"sha256": "x"}, {"rate": SECRET}]
)
def test_errors_of_the_configuration_do_not_show_keys(change: dict[str, Any]) -> None:
    for model, given in (
        (Key, GOOD | change),
        (ServerConfiguration, {"indexes": {"docs": "x"}, "keys": [GOOD | change]}),
    ):
        with pytest.raises(ValidationError) as caught:
            model.model_validate(given)
        assert SECRET not in str(caught.value)


def test_names_and_keys_are_given_once_in_a_configuration() -> None:
    with pytest.raises(ValidationError, match="two keys are named 'a'") as caught:
        ServerConfiguration.model_validate({"indexes": {"docs": "x"}, "keys": [GOOD, GOOD]})
    assert SECRET not in str(caught.value)

"""What Ray's own commands take: it fits Ray's schema, and Ray's loader makes the server of it."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from retrieval import SparseIndex
from retrieval.index.split import split_index
from runtime.errors import UsageError
from serving.configuration import ServerConfiguration
from serving.configuration_file import read_configuration
from serving.keys import Key
from serving.ray_config import ray_config, ray_config_text
from tests.serving.test_configuration_file import EVERYTHING, write

pytestmark = pytest.mark.skipif(find_spec("ray") is None, reason="needs the serving extra")

LOADED_BY_RAY = """
import json, sys, yaml
from ray.serve._private.api import call_user_app_builder_with_args_if_necessary as call
from ray.serve._private.build_app import build_app
from ray.serve.schema import ServeDeploySchema
from ray._common.utils import import_attr

config = ServeDeploySchema.model_validate(yaml.safe_load(sys.stdin))
(application,) = config.applications
built = build_app(call(import_attr(application.import_path), application.args), name=application.name)
print(json.dumps({
    "host": config.http_options.host,
    "port": config.http_options.port,
    "prefix": application.route_prefix,
    "ingress": built.ingress_deployment_name,
    "deployments": {each.name: {
        "replicas": each.num_replicas,
        "cores": each.ray_actor_options["num_cpus"],
        "ongoing": each.max_ongoing_requests,
        "queued": each._deployment_config.max_queued_requests,
    } for each in built.deployments},
}))
"""


def loaded_by_ray(text: str) -> Any:
    """In a process of its own, since Ray must not be imported here before a server does it."""
    ran = subprocess.run(
        [sys.executable, "-c", LOADED_BY_RAY], input=text, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    return json.loads(ran.stdout)


def test_ray_makes_the_application_of_what_is_printed(index: SparseIndex, tmp_path: Path) -> None:
    split_index(index, tmp_path / "docs-index", 2)
    configuration = read_configuration(write(tmp_path, EVERYTHING))
    shared = {"cores": 3, "ongoing": 128, "queued": 64}
    assert loaded_by_ray(ray_config_text(configuration)) == {
        "host": "0.0.0.0",
        "port": 9000,
        "prefix": "/",
        "ingress": "api",
        "deployments": {
            "api": {"replicas": 2, **shared},
            "writer": {"replicas": 1, **shared, "cores": 1},
            "generator-stories": {"replicas": 1, **shared},
            "shard-docs-0": {"replicas": 2, **shared},
            "shard-docs-1": {"replicas": 2, **shared},
        },
    }


def test_the_command_prints_it_and_ends(tmp_path: Path) -> None:
    import lexpert

    path = write(tmp_path, EVERYTHING)
    run = CliRunner().invoke(lexpert.app, ["serve", str(path), "--print-ray-config"])
    assert run.exit_code == 0, run.output
    printed = yaml.safe_load(run.stdout)
    assert printed == ray_config(read_configuration(path))
    (application,) = printed["applications"]
    assert ServerConfiguration.model_validate(application["args"]) == read_configuration(path)


def test_only_what_was_set_is_printed(tmp_path: Path) -> None:
    (application,) = ray_config(ServerConfiguration(indexes={"docs": tmp_path}))["applications"]
    assert application["args"] == {"indexes": {"docs": str(tmp_path)}}


def test_keys_and_ports_of_the_moment_do_not_go_into_it(tmp_path: Path) -> None:
    key = Key.model_validate({"name": "a", "sha256": "0" * 64, "scope": "read"})
    with pytest.raises(UsageError, match="give keys_file"):
        ray_config(ServerConfiguration(indexes={"docs": tmp_path}, keys=(key,)))
    with pytest.raises(UsageError, match="port: 0"):
        ray_config(ServerConfiguration(indexes={"docs": tmp_path}, port=0))

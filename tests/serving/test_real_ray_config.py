"""What is printed for Ray, deployed by Ray: the way that ``serve deploy`` and KubeRay go."""

from __future__ import annotations

import time
from importlib.util import find_spec
from pathlib import Path

import httpx
import pytest
import yaml

from serving.application import on_ray
from serving.configuration import ServerConfiguration
from serving.ports import choose_port
from serving.private_folder import private_folder
from serving.ray_config import ray_config_text
from serving.ray_environment import environment, ray_settings

# Not importorskip: Ray must be imported when its settings are made.
pytestmark = pytest.mark.skipif(find_spec("ray") is None, reason="needs the serving extra")

DEPLOYED_S = 120.0
KEY = {"x-api-key": "k" * 16}


def test_what_is_printed_is_a_server_when_ray_deploys_it(index_folder: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys.yaml"
    keys.write_text(yaml.safe_dump({"keys": [{"name": "a", "key": "k" * 16, "scope": "admin"}]}))
    keys.chmod(0o600)
    configuration = ServerConfiguration(
        indexes={"docs": index_folder},
        data=tmp_path / "data",
        aliases={"main": "docs"},
        keys_file=keys,
        port=choose_port(0),
        replicas=2,
    )
    printed = yaml.safe_load(ray_config_text(configuration))
    # As operators may: here the replicas would else ask for more cores than there may be.
    printed["applications"][0]["deployments"] = [
        {"name": name, "ray_actor_options": {"num_cpus": 0}} for name in ("api", "writer")
    ]
    with private_folder() as folder, environment(ray_settings(folder, configuration)), on_ray(folder):
        from ray import serve
        from ray.serve.schema import ApplicationStatus, ServeDeploySchema

        config = ServeDeploySchema.model_validate(printed)
        serve.start(http_options=config.http_options.model_dump())
        serve.context._get_global_client().deploy_apps(config)
        give_up = time.monotonic() + DEPLOYED_S
        while (status := serve.status().applications["lexpert"]).status != ApplicationStatus.RUNNING:
            assert status.status == ApplicationStatus.DEPLOYING, status.message
            assert time.monotonic() < give_up, status
            time.sleep(0.2)
        replicas = {name: sum(one.replica_states.values()) for name, one in status.deployments.items()}
        assert replicas == {"api": 2, "writer": 1}
        with httpx.Client(base_url=f"http://127.0.0.1:{configuration.port}", timeout=60) as client:
            while client.get("/health").status_code != 200:  # the proxy hears of it a little later
                assert time.monotonic() < give_up
                time.sleep(0.1)
            search = {"json": {"query": "json", "k": 1}}
            assert client.post("/v1/indexes/main/search", **search).status_code == 401
            client.headers.update(KEY)
            assert client.post("/v1/indexes/main/search", **search).json()["results"][0]["hits"]
            assert client.put("/v1/indexes/news", json={"encoder": "bm25"}).status_code == 201
            written = client.put("/v1/indexes/news/documents", json={"documents": [{"id": "a", "text": "b"}]})
            assert written.json()["upserted"] == 1

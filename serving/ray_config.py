"""A configuration in the form that ``serve deploy`` and KubeRay take."""

from __future__ import annotations

from typing import Any

from runtime.errors import UsageError
from serving.configuration import ServerConfiguration
from serving.deployments import APPLICATION

BUILDER = "serving.deployments:build"


def ray_config(configuration: ServerConfiguration) -> dict[str, Any]:
    """What Ray's ``ServeDeploySchema`` describes; only what was set is in it, so each node has its own defaults.

    Raises:
        UsageError: the configuration holds keys, or is for one machine only.
    """
    if configuration.keys:
        raise UsageError("keys must not stand in a configuration of Ray, which it shows; give keys_file")
    if configuration.port == 0:
        raise UsageError("port: 0 takes a free port of this machine; a cluster needs one, for example 8000")
    args = configuration.model_dump(mode="json", exclude_unset=True)
    if "writable" in args:
        args["writable"].sort()
    return {
        "proxy_location": "EveryNode",
        "http_options": {"host": configuration.host, "port": configuration.port},
        "logging_config": {"enable_access_log": False},
        "applications": [
            {
                "name": APPLICATION,
                "route_prefix": "/",
                "import_path": BUILDER,
                "args": args,
            }
        ],
    }


def ray_config_text(configuration: ServerConfiguration) -> str:
    """The same as YAML."""
    import yaml

    return str(yaml.safe_dump(ray_config(configuration), sort_keys=False, allow_unicode=True))

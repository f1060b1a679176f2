"""The server as one application of Ray Serve: the API, and the processes that write, hold models and shards."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from serving.asgi import Application
from serving.configuration import ServerConfiguration
from serving.ray_environment import Place

if TYPE_CHECKING:
    from retrieval.index.sharded_index import ShardedIndex

APPLICATION = "lexpert"
API = "api"

CORES_OF_A_REPLICA = 1
"""In a cluster, unless the configuration says how many threads work: Ray counts cores to place replicas."""


def build(args: Mapping[str, Any]) -> Any:
    """The application, for Ray's own commands: ``serve run serving.deployments:build …``, ``serve deploy`` and KubeRay.

    Args:
        args: of `ServerConfiguration`, as JSON has them.
    """
    return serve_application(ServerConfiguration.model_validate({"threads": CORES_OF_A_REPLICA, **args}))


def serve_application(configuration: ServerConfiguration, log_file: Path | None = None) -> Any:
    """What Ray Serve runs.

    Args:
        configuration: what to serve.
        log_file: of a server that has this machine for itself; None in a cluster, where Ray collects logs and places
            replicas.
    """
    from ray import serve
    from ray.serve.config import BackpressureConfig
    from ray.serve.schema import LoggingConfig

    from serving.generator_deployment import GeneratorReplica, deployment_of
    from serving.indexes.writer_deployment import WRITER, WriterReplica
    from serving.shard_deployment import ShardReplica, number_of_shards
    from serving.shard_deployment import deployment_of as deployment_of_shard

    deploy = serve.deployment(
        name=API,
        max_ongoing_requests=configuration.max_ongoing_requests,
        max_queued_requests=configuration.max_queued_requests,
        backpressure_config=BackpressureConfig(status_code=429, retry_after_s=1),
        graceful_shutdown_timeout_s=10,
        graceful_shutdown_wait_loop_s=0.2,
        logging_config=LoggingConfig(enable_access_log=False, log_level="ERROR"),
        **(ON_ONE_MACHINE if log_file is not None else {}),
    )
    place = Place.of(configuration, log_file)
    working = cores(configuration.threads, place)
    others = []
    if configuration.takes_writes:
        # There is no other writer, so it is missed, and started again, as soon as may be.
        writer = deploy(WriterReplica).options(
            name=WRITER, health_check_period_s=1, health_check_timeout_s=10, **cores(1, place)
        )
        others.append(writer.bind(configuration, place))
    for name, folder in configuration.models.items():
        model = deploy(GeneratorReplica).options(name=deployment_of(name), **working)
        others.append(model.bind(name, folder, place))
    for name, placement in configuration.shards.items():
        folder = configuration.indexes[name]
        for number in range(number_of_shards(folder)):
            shard = deploy(ShardReplica).options(
                name=deployment_of_shard(name, number),
                num_replicas=placement.replicas,
                health_check_period_s=1,
                health_check_timeout_s=10,
                **working,
            )
            others.append(shard.bind(folder, number, configuration.threads, place))
    api = deploy(serve.ingress(api_builder(configuration, place))())
    # The API asks the others by name; they are given to it so that Ray knows of them.
    return api.options(num_replicas=configuration.replicas, **NEVER_MISSED, **working).bind(*others)


NEVER_MISSED: dict[str, Any] = {
    "health_check_period_s": 1,
    "health_check_timeout_s": 10,
    "max_surge_percent": 100,
}
"""A replica that has died is noticed at once; an update starts new ones before it stops the old, and if they do not
start, none is lost."""

ON_ONE_MACHINE: dict[str, Any] = {"max_constructor_retry_count": 1}
"""A start that fails is told at once."""


def cores(threads: int, place: Place) -> dict[str, Any]:
    """What Ray counts for a replica: nothing where nobody else is, for there may be more replicas than cores."""
    return {"ray_actor_options": {"num_cpus": threads if place.log_file is None else 0}}


def api_builder(configuration: ServerConfiguration, place: Place) -> Callable[[], Application]:
    """What a replica calls to get its ASGI application."""

    def build_api() -> Application:
        from serving.api import Api
        from serving.generator_deployment import RemoteGenerator
        from serving.generators import Generators
        from serving.indexes.writer_deployment import RemoteWriting
        from serving.shard_deployment import RemoteShards
        from serving.shards import Shards, in_this_process

        def open_shards(name: str, index: ShardedIndex) -> Shards:
            if name in configuration.shards:
                return RemoteShards(name, len(index.shards))
            return in_this_process(configuration.threads)(name, index)

        place.prepare()
        return Api(
            configuration,
            RemoteWriting() if configuration.takes_writes else None,
            Generators(configuration.models, RemoteGenerator.open),
            open_shards,
        )

    return build_api

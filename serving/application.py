"""The Ray Serve deployment of the API: started, kept and stopped by a context manager."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from runtime.cores import available_cores
from runtime.errors import ConflictError, LexpertError
from serving.asgi import Application
from serving.catalogue import check_indexes
from serving.configuration import HOST, ServerConfiguration
from serving.generators import check_models
from serving.log import last_error, log_to_file, relayed
from serving.ports import choose_port
from serving.private_folder import private_folder
from serving.ray_environment import (
    environment,
    keep_replica_on_loopback,
    ray_settings,
    require_loopback_only,
    require_ray,
)

APPLICATION = "lexpert"

MAX_ONGOING_REQUESTS = 4096
MAX_QUEUED_REQUESTS = 1024
"""Ray's own limits, beyond which it answers 429 itself. The API refuses work earlier (`Limits.max_in_hand`), so that
a server with all the work that it can take still says how it is."""

OBJECT_STORE_BYTES = 96 << 20
"""Nearly the least that Ray takes; requests and answers never pass through its object store."""


@dataclass(frozen=True)
class RunningServer:
    """A server that answers at `url` (no slash at its end)."""

    url: str
    port: int


@contextmanager
def running(configuration: ServerConfiguration, log: TextIO | None = None) -> Iterator[RunningServer]:
    """Start a server on this machine and stop it, with every process it has, when the context is left.

    Args:
        configuration: what to serve.
        log: where the lines of the server's log go; standard error if None.

    Raises:
        NotFoundError, FormatError: an index or model folder is missing, or an index damaged, found before anything
            starts.
        ConflictError: the port is taken, or this process runs Ray already.
        LexpertError: the server did not start.
    """
    require_ray()
    check_indexes(configuration.indexes)
    check_models(configuration.models)
    port = choose_port(configuration.port)
    with private_folder() as folder, environment(ray_settings(folder, configuration.limits)):
        log_file = folder / "server.log"
        log_file.touch()
        with relayed(log_file, log or sys.stderr), _ray(folder):
            _deploy(configuration, port, log_file)
            yield RunningServer(f"http://{HOST}:{port}", port)


@contextmanager
def _ray(folder: Path) -> Iterator[None]:
    """A local Ray cluster of this process, gone with all its processes when the context is left."""
    import ray
    from ray import serve

    require_loopback_only()
    if ray.is_initialized():
        raise ConflictError("this process runs Ray already; start the server from a process that does not")
    quiet = [logging.getLogger(name) for name in ("ray", "ray.serve")]
    levels = [each.level for each in quiet]
    try:
        ray.init(
            address="local",
            num_cpus=available_cores(),
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            object_store_memory=OBJECT_STORE_BYTES,
            _temp_dir=str(folder / "ray"),
        )
        for each in quiet:
            each.setLevel(logging.ERROR)
        yield
    finally:
        if ray.is_initialized():
            serve.shutdown()
        ray.shutdown()
        for each, level in zip(quiet, levels, strict=True):
            each.setLevel(level)


def _deploy(configuration: ServerConfiguration, port: int, log_file: Path) -> None:
    """Start the HTTP proxy and one replica, and wait until it answers.

    Raises:
        LexpertError: it did not start; says why where the replica could say it.
    """
    from ray import serve
    from ray.serve.config import BackpressureConfig
    from ray.serve.schema import LoggingConfig

    from serving.generator_deployment import GENERATOR, GeneratorReplica, application_of
    from serving.indexes.writer_deployment import WRITER, WRITER_APPLICATION, WriterReplica

    logging_config = LoggingConfig(enable_access_log=False, log_level="ERROR")
    deploy = serve.deployment(
        name="api",
        max_ongoing_requests=MAX_ONGOING_REQUESTS,
        max_queued_requests=MAX_QUEUED_REQUESTS,
        backpressure_config=BackpressureConfig(status_code=429, retry_after_s=1),
        max_constructor_retry_count=1,
        graceful_shutdown_timeout_s=10,
        graceful_shutdown_wait_loop_s=0.2,
        logging_config=logging_config,
    )
    ingress = deploy(serve.ingress(application_builder(configuration, log_file))())
    # There is no other writer, so it is missed, and started again, as soon as may be.
    writer = deploy(WriterReplica).options(name=WRITER, health_check_period_s=1, health_check_timeout_s=10)
    try:
        serve.start(http_options={"host": HOST, "port": port}, logging_config=logging_config)
        if configuration.takes_writes:
            serve.run(
                writer.bind(configuration, log_file),
                name=WRITER_APPLICATION,
                route_prefix=None,
                logging_config=logging_config,
            )
        for name, folder in configuration.models.items():
            # A share of no core, because Ray counts the cores of the machine as taken by the other replicas.
            model = deploy(GeneratorReplica).options(name=GENERATOR, ray_actor_options={"num_cpus": 0})
            serve.run(
                model.bind(name, folder, available_cores(), log_file),
                name=application_of(name),
                route_prefix=None,
                logging_config=logging_config,
            )
        serve.run(ingress.bind(), name=APPLICATION, route_prefix="/", logging_config=logging_config)
    except Exception as error:  # Ray raises whatever its own parts raised, wrapped in several ways
        reason = last_error(log_file) or f"{type(error).__name__}: {last_words(str(error))}"
        raise LexpertError(f"the server did not start: {reason}") from error


def application_builder(configuration: ServerConfiguration, log_file: Path) -> Callable[[], Application]:
    """What a replica calls to get its ASGI application."""

    def build() -> Application:
        from serving.api import Api
        from serving.generator_deployment import RemoteGenerator
        from serving.generators import Generators
        from serving.indexes.writer_deployment import RemoteWriting

        log_to_file(log_file)
        keep_replica_on_loopback()
        return Api(
            configuration,
            RemoteWriting() if configuration.takes_writes else None,
            Generators(configuration.models, RemoteGenerator.open),
        )

    return build


def last_words(message: str) -> str:
    """The last line of a message that carries a trace."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    return lines[-1] if lines else "no reason given"

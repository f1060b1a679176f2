"""A server on this machine: started, kept and stopped by a context manager."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from runtime.cores import available_cores
from runtime.errors import ConflictError, LexpertError
from serving.catalogue import check_indexes
from serving.configuration import HOST, ServerConfiguration
from serving.deployments import APPLICATION, serve_application
from serving.generators import check_models
from serving.key_file import with_keys
from serving.log import last_error, relayed
from serving.ports import choose_port
from serving.private_folder import private_folder
from serving.ray_environment import environment, has_haproxy, ray_settings, require_loopback_only, require_ray
from serving.shard_deployment import check_shards
from serving.tracing import check_traces

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
        NotFoundError, FormatError, UsageError: an index or model folder is missing, an index damaged, or the file of
            keys none, found before anything starts.
        ConflictError: the port is taken, or this process runs Ray already.
        LexpertError: the server did not start.
    """
    require_ray()
    configuration = with_keys(configuration)
    check_indexes(configuration.indexes)
    check_shards(configuration)
    check_models(configuration.models)
    check_traces(configuration.traces)
    port = choose_port(configuration.port, configuration.host)
    with private_folder() as folder:
        settings = ray_settings(folder, configuration)
        # HAProxy alone listens elsewhere: Ray opens more at the address that it is told.
        host = HOST if has_haproxy(settings) else configuration.host
        log_file = folder / "server.log"
        log_file.touch()
        with environment(settings), relayed(log_file, log or sys.stderr), on_ray(folder):
            _deploy(configuration, host, port, log_file)
            yield RunningServer(f"http://{reached_at(configuration.host)}:{port}", port)


def reached_at(host: str) -> str:
    """An address by which this machine reaches a server that listens at `host`."""
    return HOST if host == "0.0.0.0" else host


@contextmanager
def on_ray(folder: Path) -> Iterator[None]:
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


def _deploy(configuration: ServerConfiguration, host: str, port: int, log_file: Path) -> None:
    """Start the HTTP proxy and all replicas, and wait until they answer.

    Raises:
        LexpertError: it did not start; says why where the replica could say it.
    """
    from ray import serve
    from ray.serve.schema import LoggingConfig

    logging_config = LoggingConfig(enable_access_log=False, log_level="ERROR")
    try:
        serve.start(http_options={"host": host, "port": port}, logging_config=logging_config)
        application = serve_application(configuration, log_file)
        serve.run(application, name=APPLICATION, route_prefix="/", logging_config=logging_config)
    except Exception as error:  # Ray raises whatever its own parts raised, wrapped in several ways
        reason = last_error(log_file) or f"{type(error).__name__}: {last_words(str(error))}"
        raise LexpertError(f"the server did not start: {reason}") from error


def last_words(message: str) -> str:
    """The last line of a message that carries a trace."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    return lines[-1] if lines else "no reason given"

"""`python -m server ray`: the application on a Ray cluster, one of its own or one that is there, until a signal."""

from __future__ import annotations

import logging
import signal
import socket
import sys
import threading
from io import TextIOWrapper

import ray
from ray import serve

from server.cores import available_cores
from server.door import policy_of
from server.log_format import set_up
from server.ray_serve.app import NAME, application
from server.ray_serve.settings import RaySettings

log = logging.getLogger("lorachat")


def run(settings: RaySettings) -> int:
    """Serve until SIGINT or SIGTERM, then let the running answers end. The exit code: 1 if it could not start.

    Raises StartupError for settings that cannot be secure.
    """
    set_up(settings.log_format, settings.log_level)
    # Ray prints the engines' lines there: where it is no terminal they would wait for a full buffer.
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)
    stop = threading.Event()
    settings = with_threads(settings, available_cores())
    # Here once for its errors and warnings; the gateway makes its own.
    policy_of(settings)
    host, port = settings.host, settings.port or _free_port(settings.host)
    _connect(settings)
    # After Ray's own, which print a stack and end the process in the middle of the drain.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    try:
        serve.start(proxy_location="EveryNode", http_options={"host": host, "port": port})
        # Not waiting here, so that a signal is seen while the engines load.
        serve.run_many(
            [serve.RunTarget(application(settings), name=NAME, route_prefix="/")],
            wait_for_ingress_deployment_creation=False,
            wait_for_applications_running=False,
        )
        if not _wait_until_running(stop):
            return 0 if stop.is_set() else 1
        log.info("ready: http://%s:%d/v1, %d engines", host, port, settings.replicas)
        stop.wait()
        return 0
    finally:
        log.info("stopping: running answers have %d s to end", settings.drain_seconds)
        serve.delete(NAME)
        if settings.ray_address is None:
            serve.shutdown()
        ray.shutdown()


def with_threads(settings: RaySettings, cores: int) -> RaySettings:
    """Each engine's threads: what is set, else an equal share of the cores for the most engines there may be."""
    if settings.threads is not None:
        return settings
    return settings.model_copy(update={"threads": max(1, cores // settings.most)})


def _connect(settings: RaySettings) -> None:
    if settings.ray_address is not None:
        ray.init(address=settings.ray_address, namespace=NAME)
        return
    ray.init(
        address="local",
        namespace=NAME,
        # Ray counts reservations, not cores: all engines must have room, and no accelerator is looked for.
        num_cpus=max(available_cores(), (settings.threads or 1) * settings.most),
        num_gpus=0,
        include_dashboard=False,
        object_store_memory=settings.object_store_mib * 2**20,
        _node_ip_address="127.0.0.1",
    )


def _wait_until_running(stop: threading.Event) -> bool:
    while not stop.wait(0.2):
        status = serve.status().applications.get(NAME)
        if status is None:
            continue
        if status.status == "RUNNING":
            return True
        if status.status in ("DEPLOY_FAILED", "UNHEALTHY"):
            log.critical("%s", status.message.strip())
            return False
    return False


def _free_port(host: str) -> int:
    with socket.socket() as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port

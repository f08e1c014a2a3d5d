"""Settings -> the Ray Serve application: how many engines, what each reserves, how they are scaled, routed and drained.

`build` is what `serve deploy` and KubeRay name as the import path: server.ray_serve.app:build.
"""

from __future__ import annotations

from typing import Any

from ray import serve

from server.ray_serve.engine_replica import EngineReplica
from server.ray_serve.gateway import Gateway
from server.ray_serve.settings import RaySettings

NAME = "lorachat"
ROUTER = "ray.serve.experimental.consistent_hash_router.ConsistentHashRouter"
# Requests that an engine takes beyond those it computes, so that a place that falls free is filled at once.
AHEAD = 0.25
HEAD = "node:__internal_head__"
HEALTH_SECONDS = 2.0
# The engines log each request already, with what it took.
QUIET = {"enable_access_log": False}


def build(arguments: dict[str, Any]) -> serve.Application:
    """The application. arguments: fields of RaySettings; what they leave open, LORACHAT_* of the cluster says.

    Raises ValueError if `threads` is missing: what an engine reserves on a cluster is not this machine's business.
    """
    settings = RaySettings(**arguments)
    if settings.threads is None:
        raise ValueError("threads is required on a cluster: the CPUs that each engine reserves")
    return application(settings)


def application(settings: RaySettings) -> serve.Application:
    engines = serve.deployment(EngineReplica).options(**engine_options(settings))
    gateway = serve.deployment(serve.ingress()(Gateway)).options(**gateway_options(settings))
    return gateway.bind(engines.bind(settings), settings)


def engine_options(settings: RaySettings) -> dict[str, Any]:
    places = settings.max_running + max(1, int(settings.max_running * AHEAD))
    options: dict[str, Any] = {
        "name": "Engine",
        "ray_actor_options": {"num_cpus": settings.threads or 1},
        "max_ongoing_requests": places,
        # Ray counts those it is just placing, too: a burst that the engines have room for must not be refused.
        "max_queued_requests": settings.max_waiting + settings.fewest * places,
        # To the engine that has the conversation; where that is full, to the next ones in the order of the hash.
        "request_router_config": {
            "request_router_class": ROUTER,
            "request_router_kwargs": {"num_fallback_replicas": settings.most - 1},
            # A waiting request looks for a place so often: the engine's queue bridges the time between two looks.
            "initial_backoff_s": 0.01,
            "max_backoff_s": 0.1,
        },
        "health_check_period_s": HEALTH_SECONDS,
        # An engine in its longest step must not be taken for dead.
        "health_check_timeout_s": 30.0,
        "max_constructor_retry_count": 3,
        **_drained(settings.drain_seconds),
        "logging_config": QUIET,
    }
    if settings.is_scaled:
        options["autoscaling_config"] = {
            "min_replicas": settings.fewest,
            "initial_replicas": settings.replicas,
            "max_replicas": settings.most,
            "target_ongoing_requests": settings.target_ongoing or settings.max_running,
            "upscale_delay_s": settings.upscale_delay,
            "downscale_delay_s": settings.downscale_delay,
        }
    else:
        options["num_replicas"] = settings.replicas
    return options


def gateway_options(settings: RaySettings) -> dict[str, Any]:
    return {
        "name": "Gateway",
        # One: what a key may use is counted here, once for all engines.
        "num_replicas": 1,
        # It waits more than it computes; a CPU of its own would be taken from an engine. On the head, which outlives
        # the nodes of engines: by Ray's own name for it.
        "ray_actor_options": {"num_cpus": 0, "resources": {HEAD: 0.001}},
        # What may wait is counted before the engines; here nothing is held back.
        "max_ongoing_requests": 100_000,
        "health_check_period_s": HEALTH_SECONDS,
        # It outlives the last stream that an engine may still be writing.
        **_drained(settings.drain_seconds + 5),
        "logging_config": QUIET,
    }


def _drained(seconds: float) -> dict[str, float]:
    """A replica that is to go gets no new requests, and ends when its last stream has, or after so many seconds."""
    return {"graceful_shutdown_timeout_s": float(seconds), "graceful_shutdown_wait_loop_s": 0.5}

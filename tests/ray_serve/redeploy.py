"""Runs in Ray's environment: deploys the application again with one setting changed, which replaces every replica.

usage: python -m tests.ray_serve.redeploy GCS_ADDRESS SETTINGS.json
"""

from __future__ import annotations

import json
import sys


def main(address: str, settings: str) -> None:
    import ray
    from ray import serve

    from server.ray_serve.app import NAME, application
    from server.ray_serve.settings import RaySettings

    ray.init(address=address, namespace=NAME, log_to_driver=False)
    given = json.loads(settings)
    serve.run(application(RaySettings(**given)), name=NAME, route_prefix="/")


if __name__ == "__main__":
    main(*sys.argv[1:])

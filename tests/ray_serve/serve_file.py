"""Runs in Ray's environment: reads deploy/ray/serve.yaml as `serve deploy` does, and builds its application."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path

import yaml
from ray._common.constants import HEAD_NODE_RESOURCE_NAME
from ray.serve.schema import ServeDeploySchema


def main() -> None:
    path = Path(__file__).resolve().parents[2] / "deploy" / "ray" / "serve.yaml"
    schema = ServeDeploySchema.model_validate(yaml.safe_load(path.read_text("utf-8")))
    (application,) = schema.applications
    module, _, name = application.import_path.partition(":")
    build = getattr(importlib.import_module(module), name)
    gateway = build(application.args)._bound_deployment
    # Where nodes of engines come and go, the door to them all must not be on one of these.
    assert HEAD_NODE_RESOURCE_NAME in gateway.ray_actor_options["resources"]
    without = {key: value for key, value in application.args.items() if key != "threads"}
    assert "threads is required" in message_of(lambda: build(without))


def message_of(action: Callable[[], object]) -> str:
    try:
        action()
    except ValueError as error:
        return str(error)
    raise AssertionError("what an engine reserves was guessed")


if __name__ == "__main__":
    main()

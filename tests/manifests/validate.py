"""Validates documents on standard input; prints one line for each and the errors. Exit code 1 if there are any.

Runs in the manifests' environment (requirements/manifests.txt), which carries Kubernetes' and Kubeflow's published
schemas. KubeRay publishes its schema only inside its operator: a RayService is held to ray_service.schema.json, which
is written after KubeRay's field reference and knows only what is used here; its pods are validated as Kubernetes' own.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import yaml
from kubeflow_trainer_api.models.trainer_v1alpha1_train_job import TrainerV1alpha1TrainJob

KUBERNETES = "1.37"
RAY_SERVICE = json.loads(Path(__file__).with_name("ray_service.schema.json").read_text())


def errors(document: dict[str, Any]) -> Iterator[str]:
    if document["apiVersion"].startswith("trainer.kubeflow.org/"):
        yield from train_job_errors(document)
    elif document["apiVersion"].startswith("ray.io/"):
        yield from ray_service_errors(document)
    else:
        yield from kubernetes_errors(document)


def kubernetes_errors(document: dict[str, Any]) -> Iterator[str]:
    try:
        kubernetes_validate.validate(document, KUBERNETES, strict=True)
    except kubernetes_validate.ValidationError as error:
        yield f"{'/'.join(map(str, error.path))}: {error.message}"


def train_job_errors(document: dict[str, Any]) -> Iterator[str]:
    """The models ignore what they do not know: what does not come back was not understood."""
    try:
        read = TrainerV1alpha1TrainJob.from_dict(document)
    except ValueError as error:
        yield str(error)
        return
    yield from lost(document, read.to_dict(), "")


def lost(given: Any, read: Any, path: str) -> Iterator[str]:
    if isinstance(given, dict) and isinstance(read, dict):
        for key, value in given.items():
            if key not in read:
                yield f"{path}/{key}: there is no such field"
            else:
                yield from lost(value, read[key], f"{path}/{key}")
    elif isinstance(given, list) and isinstance(read, list) and len(given) == len(read):
        for number, (value, other) in enumerate(zip(given, read, strict=True)):
            yield from lost(value, other, f"{path}/{number}")
    elif given != read:
        yield f"{path}: {given!r} is read as {read!r}"


def ray_service_errors(document: dict[str, Any]) -> Iterator[str]:
    for error in jsonschema.Draft202012Validator(RAY_SERVICE).iter_errors(document):
        yield f"{'/'.join(map(str, error.path))}: {error.message}"
        return
    cluster = document["spec"]["rayClusterConfig"]
    for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
        template = group["template"]
        pod = {"apiVersion": "v1", "kind": "Pod", **template}
        pod["metadata"] = {"name": "x", **template.get("metadata", {})}
        yield from kubernetes_errors(pod)


def main() -> int:
    failed = False
    for document in yaml.safe_load_all(sys.stdin):
        found = list(errors(document))
        failed = failed or bool(found)
        sys.stdout.write(f"{document['kind']}/{document['metadata']['name']}\n")
        sys.stdout.writelines(f"  ERROR {error}\n" for error in found)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())

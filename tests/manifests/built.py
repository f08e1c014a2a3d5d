"""What `kubectl apply -k` would send, and how to find one's way in it. No checks here."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import yaml

from tests.conftest import ROOT

KUBERNETES = ROOT / "deploy" / "kubernetes"
OVERLAYS = ["base", "overlays/ray", "overlays/kubeflow"]
ENVIRONMENT = os.environ.get("LORACHAT_MANIFESTS_ENV")
Document = dict[str, Any]


def kubectl() -> str | None:
    if ENVIRONMENT:
        return str(ROOT / ENVIRONMENT / "bin" / "kubectl")
    return shutil.which("kubectl")


@cache
def build(overlay: str, images: str = "") -> tuple[Document, ...]:
    """The documents of a base or overlay, made by kustomize, with the example's keys.

    images: what an operator's own overlay of it says under `images`, as YAML.
    """
    program = kubectl()
    if program is None:
        pytest.skip("kubectl is not installed here: make test-manifests brings its own")
    with TemporaryDirectory() as folder:
        copy = Path(folder) / "kubernetes"
        shutil.copytree(KUBERNETES, copy)
        (copy / "base" / "keys.env").write_bytes((copy / "base" / "keys.env.example").read_bytes())
        built = overlay
        if images:
            built = "own"
            (copy / built).mkdir()
            (copy / built / "kustomization.yaml").write_text(
                f"resources: [../{overlay}]\nimages:\n{images}"
            )
        result = subprocess.run(
            [program, "kustomize", str(copy / built)],
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return tuple(yaml.safe_load_all(result.stdout))


def of_kind(documents: tuple[Document, ...], kind: str) -> dict[str, Document]:
    return {d["metadata"]["name"]: d for d in documents if d["kind"] == kind}


@dataclass(frozen=True)
class Pod:
    """A pod template, wherever in a document it is. owner: KIND/NAME, with the group's name for a RayService."""

    owner: str
    labels: dict[str, str]
    spec: dict[str, Any]

    @property
    def container(self) -> dict[str, Any]:
        (container,) = self.spec["containers"]
        return dict(container)

    @property
    def image(self) -> str:
        return str(self.container["image"])

    @property
    def ports(self) -> dict[str, int]:
        return {port["name"]: port["containerPort"] for port in self.container.get("ports", ())}

    @property
    def mounts(self) -> dict[str, dict[str, Any]]:
        return {mount["mountPath"]: mount for mount in self.container.get("volumeMounts", ())}

    @property
    def env(self) -> dict[str, str | None]:
        """Values by name; None where a Secret gives it."""
        return {entry["name"]: entry.get("value") for entry in self.container.get("env", ())}


def pods(documents: tuple[Document, ...]) -> list[Pod]:
    return [pod for document in documents for pod in _pods(document)]


def _pods(document: Document) -> Iterator[Pod]:
    name, spec = f"{document['kind']}/{document['metadata']['name']}", document.get("spec", {})
    match document["kind"]:
        case "Deployment" | "Job":
            yield _pod(name, spec["template"])
        case "RayService":
            cluster = spec["rayClusterConfig"]
            yield _pod(f"{name}/head", cluster["headGroupSpec"]["template"])
            for group in cluster["workerGroupSpecs"]:
                yield _pod(f"{name}/{group['groupName']}", group["template"])


def _pod(owner: str, template: Document) -> Pod:
    return Pod(owner, template.get("metadata", {}).get("labels", {}), template["spec"])

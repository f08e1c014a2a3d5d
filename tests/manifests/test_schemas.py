"""The built manifests against the published schemas: `make test-manifests` makes the environment that has them."""

from __future__ import annotations

import copy
import subprocess
from collections.abc import Iterable
from typing import Any

import pytest
import yaml

from tests.conftest import ROOT
from tests.manifests.built import ENVIRONMENT, OVERLAYS, Document, build

pytestmark = pytest.mark.skipif(
    ENVIRONMENT is None, reason="needs Kubernetes' schemas: make test-manifests"
)
# What is written into them is no field: each kind of schema must be able to say so.
MISSPELT: list[tuple[str, str, tuple[str | int, ...]]] = [
    ("base", "Deployment", ("spec", "template", "spec", "containers", 0)),
    ("base", "NetworkPolicy", ("spec",)),
    ("overlays/ray", "RayService", ("spec", "rayClusterConfig")),
    ("overlays/ray", "RayService", ("spec", "rayClusterConfig", "headGroupSpec", "template", "spec", "containers", 0)),
    ("overlays/kubeflow", "TrainJob", ("spec", "trainer")),
]  # fmt: skip


def validate(documents: Iterable[Document]) -> subprocess.CompletedProcess[str]:
    assert ENVIRONMENT is not None
    return subprocess.run(
        [str(ROOT / ENVIRONMENT / "bin" / "python"), "-m", "tests.manifests.validate"],
        input=yaml.safe_dump_all(documents), cwd=ROOT, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_schemas_accept_every_document(overlay: str) -> None:
    documents = build(overlay)
    result = validate(documents)
    assert result.returncode == 0, result.stdout + result.stderr
    assert len(result.stdout.splitlines()) == len(documents)


@pytest.mark.parametrize(("overlay", "kind", "path"), MISSPELT)
def test_a_field_that_does_not_exist_is_refused(
    overlay: str, kind: str, path: tuple[str | int, ...]
) -> None:
    document = copy.deepcopy(next(d for d in build(overlay) if d["kind"] == kind))
    place: Any = document
    for step in path:
        place = place[step]
    place["misspelt"] = "x"
    result = validate([document])
    assert result.returncode == 1
    assert "misspelt" in result.stdout

"""The application for clusters that run already."""

from __future__ import annotations

import subprocess

from tests.conftest import ROOT
from tests.ray_serve.conftest import PYTHON


def test_ray_reads_the_serve_file_and_the_application_can_be_built() -> None:
    result = subprocess.run(
        [str(PYTHON), "-m", "tests.ray_serve.serve_file"],
        cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr

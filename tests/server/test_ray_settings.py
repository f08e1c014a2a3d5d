"""The settings of the server under Ray: one server's, and how many engines there are."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from pydantic import ValidationError

from server.ray_serve.settings import RaySettings
from server.settings import Settings
from tests.conftest import ROOT


def test_it_takes_every_setting_of_one_server() -> None:
    assert Settings.model_fields.keys() < RaySettings.model_fields.keys()


@pytest.mark.parametrize(
    ("given", "bounds"),
    [
        ({}, (2, 2, 2, False)),
        ({"replicas": 3}, (3, 3, 3, False)),
        ({"replicas": 2, "max_replicas": 8}, (2, 2, 8, True)),
        ({"replicas": 2, "min_replicas": 1}, (1, 2, 2, True)),
    ],
)
def test_the_number_of_engines_moves_only_where_it_is_told_to(
    given: dict[str, Any], bounds: tuple[int, int, int, bool]
) -> None:
    settings = RaySettings(model="x", **given)
    found = (settings.fewest, settings.replicas, settings.most, settings.is_scaled)
    assert found == bounds


@pytest.mark.parametrize(
    "given", [{"min_replicas": 3}, {"max_replicas": 1}, {"replicas": 0}, {"admin_port": 8001}]
)
def test_what_contradicts_itself_or_is_not_there_under_ray_is_refused(
    given: dict[str, Any],
) -> None:
    with pytest.raises(ValidationError):
        RaySettings(model="x", **given)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--model", "x", "--max-replicas", "1"], "min-replicas (2), replicas (2) and max-replicas (1)"),
        (["--replicas", "2"], "--model (or LORACHAT_MODEL) is required"),
        (["--model", "x", "--replicas", "none"], "--replicas (or LORACHAT_REPLICAS)"),
    ],
)  # fmt: skip
def test_the_command_says_what_is_wrong(arguments: list[str], told: str) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "server", "ray", *arguments],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert result.returncode == 2
    assert told in result.stderr
    assert "Traceback" not in result.stderr

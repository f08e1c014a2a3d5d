"""The GPU benchmark runs in miniature on any machine, to its table."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.train_figures import token_flops
from tests.conftest import ROOT
from trainer.shape import SHAPES


def test_it_runs_in_miniature(tmp_path: Path) -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "benchmarks.train_gpu", "--miniature"),
            *("--json", str(tmp_path / "figures.json"), "--variants", "trl", "ours-recommended"),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    variants = json.loads((tmp_path / "figures.json").read_text())["variants"]
    assert "| ours-recommended |" in done.stdout
    first, second = variants["trl"], variants["ours-recommended"]
    assert first["step_tokens"] == second["step_tokens"]
    assert second["losses"][0] == pytest.approx(first["losses"][0], rel=1e-3)


def test_operations_are_counted_as_the_formula_says() -> None:
    from types import SimpleNamespace

    config = SimpleNamespace(**SHAPES["llama-3.2-3b"])
    flops = token_flops(config, 24_313_856, [2048], recompute=True)
    # 2,818,572,288 in the linear layers and 394,002,432 in the output layer.
    assert flops.hardware / 1e9 == pytest.approx(
        6 * 2.8186 + 4 * 0.394 + 8 * 0.0243 + 1.41, rel=1e-2
    )
    assert flops.model < flops.hardware

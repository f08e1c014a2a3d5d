"""Runs the trainer's real command line in processes of its own, for tests that kill it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from trainer.config import Recipe
from trainer.recipe_file import dump_recipe

ROOT = Path(__file__).resolve().parents[2]


class Command:
    """`python -m trainer train` with one recipe, one output and one volume, as often as it is wanted."""

    def __init__(self, folder: Path, recipe: Recipe, *more: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.output = folder / "out"
        self.volume = folder / "adapters"
        self.recipe = folder / "recipe.yaml"
        self.recipe.write_text(dump_recipe(recipe), encoding="utf-8")
        self.arguments = ["train", "--recipe", str(self.recipe), "--output", str(self.output)]
        self.arguments += ["--adapters", str(self.volume), "--name", "tiny", *more]

    def start(
        self, *more: str, launcher: tuple[str, ...] = ("-m", "trainer")
    ) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, *launcher, *self.arguments, *more],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, *more: str, **how: Any) -> tuple[int, str]:
        """Exit code and all that was printed."""
        process = self.start(*more, **how)
        output, _ = process.communicate(timeout=300)
        return process.returncode, output

    def wait_for(self, name: str, process: subprocess.Popen[str]) -> None:
        """Until `name` is there, under the output folder."""
        while not (self.output / name).exists():
            assert process.poll() is None, process.communicate()[0]
            time.sleep(0.02)

    def losses(self) -> list[tuple[int, float | None, float | None, float | None]]:
        """(step, training loss, validation loss, gradient norm) of the complete run."""
        return losses(self.output)


def losses(output: Path) -> list[tuple[int, float | None, float | None, float | None]]:
    """The same of a run's folder."""
    record = json.loads((output / "report" / "run.json").read_bytes())
    return [
        (point["step"], point["train_loss"], point["eval_loss"], point["grad_norm"])
        for point in record["history"]
    ]

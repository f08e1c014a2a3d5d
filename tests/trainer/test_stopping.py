"""Early stopping, the best adapter, and smaller passes after a lack of memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.conftest import ROOT
from tests.trainer.command import Command
from tests.trainer.recipes import tiny_recipe
from trainer.auto_batch import halve_passes, with_smaller_passes
from trainer.errors import ConfigError
from trainer.request import RunRequest


def test_a_run_that_no_longer_improves_ends_and_keeps_its_best(
    tiny_model: Path, tmp_path: Path
) -> None:
    from trainer.run import run

    recipe = tiny_recipe(
        tiny_model,
        tmp_path,
        training={
            # So high that the loss soon rises again.
            "learning_rate": 0.3,
            "warmup_steps": 1,
            "max_steps": 40,
            "keep": "best",
            "early_stopping_patience": 2,
        },
        evaluation={"eval_steps": 2, "curve_rows": 64},
    )
    result = run(RunRequest(recipe, tmp_path / "out", "tiny", None))
    assert result is not None
    record = result.record
    curve = [(p.step, p.eval_loss) for p in record.history if p.eval_loss is not None]
    best = min(loss for _, loss in curve)
    assert record.steps < 40
    assert [loss for _, loss in curve].index(best) == len(curve) - 3
    # The curve is drawn on all held-out rows here, so the adapter kept must have just this loss.
    assert record.losses[-1].tuned == pytest.approx(best, rel=1e-4)


def test_passes_are_halved_with_the_rows_of_a_step_unchanged(
    tiny_model: Path, tmp_path: Path
) -> None:
    recipe = tiny_recipe(tiny_model, tmp_path)
    assert with_smaller_passes(recipe, tmp_path) is recipe
    said = halve_passes(recipe, tmp_path)
    assert said == "per_device_train_batch_size: 4 -> 2, gradient_accumulation_steps: 1 -> 2"
    halve_passes(recipe, tmp_path)
    training = with_smaller_passes(recipe, tmp_path).training
    assert training.per_device_train_batch_size == 1
    assert training.gradient_accumulation_steps == 4
    with pytest.raises(ConfigError, match=r"lower model\.max_seq_length"):
        halve_passes(recipe, tmp_path)


def test_what_an_earlier_halving_found_is_kept(tiny_model: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe(tiny_model, tmp_path, training={"padding_free": "always"})
    seen = []
    for _ in range(4):
        halve_passes(recipe, tmp_path)
        training = with_smaller_passes(recipe, tmp_path).training
        assert training.per_device_train_batch_size * training.gradient_accumulation_steps == 4
        seen.append((training.max_pass_tokens, training.per_device_train_batch_size))
    assert seen == [(4096, 2), (2048, 1), (1024, 1), (512, 1)]
    with pytest.raises(ConfigError, match=r"lower model\.max_seq_length"):
        halve_passes(recipe, tmp_path)


# A machine whose memory holds two rows at a time. What the second error hides is how a failed recording of a CUDA graph
# looks.
SMALL_MACHINE = """
import os, sys
import torch, trainer.fit
fit = trainer.fit.fit
def small(recipe, *arguments):
    if recipe.training.per_device_train_batch_size > 2:
        try:
            raise torch.cuda.OutOfMemoryError("a stand-in")
        finally:
            if "hidden" in os.environ.get("STAND_IN", ""):
                raise RuntimeError("another")
    return fit(recipe, *arguments)
trainer.fit.fit = small
from trainer.__main__ import main
os.execv = lambda path, words: sys.exit(main(words[3:]))  # on the same small machine
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("error", ["plain", "hidden"])
def test_a_lack_of_memory_is_retryable_and_auto_batch_mends_it(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: str
) -> None:
    monkeypatch.setenv("STAND_IN", error)
    command = Command(tmp_path, tiny_recipe(tiny_model, tmp_path))

    def start(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", SMALL_MACHINE, *arguments],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )

    done = start(*command.arguments)
    assert done.returncode == 75, done.stderr
    assert "Start again with --auto-batch" in done.stderr
    done = start(*command.arguments, "--auto-batch")
    assert done.returncode == 0, done.stderr
    assert "per_device_train_batch_size: 4 -> 2" in done.stderr
    record = json.loads((command.output / "report" / "run.json").read_bytes())
    assert record["recipe"]["training"]["gradient_accumulation_steps"] == 2
    assert record["epochs"] == pytest.approx(12 * 4 / record["sources"][0]["train_rows"])


def test_a_base_that_does_not_fit_is_told_and_not_tried_again(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trainer.backends.peft import PeftBackend
    from trainer.run import run

    def load(*_: object) -> None:
        raise torch.cuda.OutOfMemoryError("a stand-in")

    monkeypatch.setattr(PeftBackend, "load", load)
    with pytest.raises(ConfigError, match=r"base model does not fit .* take a larger GPU"):
        run(RunRequest(tiny_recipe(tiny_model, tmp_path), tmp_path / "out", "tiny", None))

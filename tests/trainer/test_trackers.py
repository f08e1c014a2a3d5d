"""Experiment trackers: TensorBoard gets every curve; one that is not installed is told before anything is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.trainer.recipes import tiny_recipe
from trainer.errors import ConfigError
from trainer.request import RunRequest


def test_tensorboard_reads_the_curves_of_a_run(tiny_model: Path, tmp_path: Path) -> None:
    reader = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator",
        reason="tensorboard is not installed",
    )
    from trainer.run import run

    recipe = tiny_recipe(tiny_model, tmp_path, training={"report_to": ["tensorboard"]})
    result = run(RunRequest(recipe, tmp_path / "out", "tiny", None))
    assert result is not None
    # Beside the report, not among the checkpoints, which go when the run is complete.
    events = reader.EventAccumulator(str(tmp_path / "out" / "tensorboard"))
    events.Reload()

    def curve(tag: str) -> dict[int, float]:
        return {point.step: point.value for point in events.Scalars(tag)}

    def measured(field: str) -> dict[int, float]:
        points = [(point.step, getattr(point, field)) for point in result.record.history]
        return {step: value for step, value in points if value is not None}

    assert curve("train/loss") == pytest.approx(measured("train_loss"), rel=1e-6)
    assert curve("train/grad_norm") == pytest.approx(measured("grad_norm"), rel=1e-6)
    assert curve("eval/loss") == pytest.approx(measured("eval_loss"), rel=1e-6)
    assert set(curve("train/learning_rate")) == set(measured("train_loss"))


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "mlflow", "trackio"])
def test_a_tracker_that_is_not_installed_is_told_at_once(
    name: str, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trainer.run import run

    monkeypatch.setattr("trainer.trackers.find_spec", lambda _: None)
    recipe = tiny_recipe(tiny_model, tmp_path, training={"report_to": [name]})
    with pytest.raises(
        ConfigError, match=f"{name}, which is not installed here; pip install {name}"
    ):
        run(RunRequest(recipe, tmp_path / "out", "tiny", None))
    assert not (tmp_path / "out" / "checkpoints").exists()

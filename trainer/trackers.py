"""Experiment trackers, through the training library's `report_to`: there or not, and where TensorBoard's events go."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from trainer.config import Recipe
from trainer.errors import ConfigError

# Any of a tracker's modules will do.
MODULES = {
    "tensorboard": ("tensorboard", "tensorboardX"),
    "wandb": ("wandb",),
    "mlflow": ("mlflow",),
    "trackio": ("trackio",),
}
EVENTS = "tensorboard"  # in the output folder


def check_trackers(recipe: Recipe) -> None:
    """Raise ConfigError if a tracker of the recipe is not installed: before anything is loaded, not after."""
    for name in recipe.training.report_to:
        if not any(find_spec(module) for module in MODULES[name]):
            raise ConfigError(
                f"training.report_to names {name}, which is not installed here; pip install {name}, or leave it out."
            )


def keep_events(trainer: Any, folder: Path) -> None:
    """Let TensorBoard's events lie in `folder`: their default place is among the checkpoints, which are removed.

    trainer: transformers' Trainer. $TENSORBOARD_LOGGING_DIR, where it is set, wins.
    """
    for callback in trainer.callback_handler.callbacks:
        if type(callback).__name__ == "TensorBoardCallback" and callback.logging_dir is None:
            callback.logging_dir = str(folder)

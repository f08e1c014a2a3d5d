"""Smaller forward passes after a lack of memory, with the rows of a step, and so what is learned, unchanged.

What was found to fit is kept in the run's folder, so that a restart does not run into the same wall.
"""

from __future__ import annotations

import json
from pathlib import Path

from trainer.config import Recipe
from trainer.errors import ConfigError

FILE = "auto_batch.json"
KEYS = ("max_pass_tokens", "per_device_train_batch_size", "gradient_accumulation_steps")
LEAST_TOKENS = 512


def pass_setting(recipe: Recipe) -> str:
    """The key that bounds a forward pass."""
    if recipe.training.padding_free == "never":
        return "training.per_device_train_batch_size (and raise training.gradient_accumulation_steps likewise)"
    return "training.max_pass_tokens"


def with_smaller_passes(recipe: Recipe, output: Path) -> Recipe:
    """The recipe with what `halve_passes` has found for this run; the same recipe if it never had to."""
    try:
        kept = json.loads((output / FILE).read_bytes())
    except (OSError, ValueError):
        return recipe
    return recipe.model_copy(update={"training": recipe.training.model_copy(update=kept)})


def halve_passes(recipe: Recipe, output: Path) -> str:
    """Write smaller passes for the next start; what changes, in words. Raises ConfigError if they cannot be smaller."""
    training = with_smaller_passes(recipe, output).training
    micro, accumulation = (
        training.per_device_train_batch_size,
        training.gradient_accumulation_steps,
    )
    new: dict[str, int] = {}
    if training.padding_free != "never":
        new["max_pass_tokens"] = training.max_pass_tokens // 2
    if micro % 2 == 0:
        new["per_device_train_batch_size"] = micro // 2
        new["gradient_accumulation_steps"] = accumulation * 2
    if not new or (micro == 1 and training.max_pass_tokens // 2 < LEAST_TOKENS):
        raise ConfigError(
            "One row at a time does not fit into this machine's memory; lower model.max_seq_length."
        )
    kept = {key: getattr(training, key) for key in KEYS}  # an earlier call's are not forgotten
    (output / FILE).write_text(json.dumps(kept | new) + "\n", encoding="utf-8")
    return ", ".join(f"{key}: {getattr(training, key)} -> {value}" for key, value in new.items())

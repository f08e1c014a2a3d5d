"""What the plan says of a run beforehand, for the report to hold against what happened."""

from __future__ import annotations

import re
from typing import Any

from trainer.config import Recipe
from trainer.dataset import PreparedData
from trainer.estimate import ALLOCATOR, PEAKS
from trainer.machine import Machine
from trainer.plan import plan_of
from trainer.processes import process_count
from trainer.record import Expectation


def expectation(
    recipe: Recipe, config: Any, data: PreparedData, machine: Machine, *, padding_free: bool
) -> Expectation | None:
    """config: the model's, of transformers. padding_free: whether rows are laid end to end on this machine.

    None for a model whose shape the plan cannot read: it trains all the same.
    """
    try:
        plan = plan_of(recipe, config, data)
    except AttributeError:
        return None
    steps = recipe.training.max_steps
    tokens = round(plan.step_tokens * steps)
    if not machine.has_cuda:
        return Expectation(steps, tokens)
    card = card_of(machine.name) if process_count() == 1 else None
    seconds = plan.seconds.get(card or "", (None, None))
    parts = plan.padded_memory
    if padding_free and plan.packed_memory is not None:
        parts = plan.packed_memory
    return Expectation(
        steps=steps,
        tokens=tokens,
        card=card,
        train_seconds=seconds[0],
        evaluation_seconds=seconds[1],
        step_gb=parts.training / ALLOCATOR,
        peak_gb=parts.peak,
    )


def card_of(name: str) -> str | None:
    """The plan's card that a device's name speaks of: "NVIDIA A100-SXM4-80GB" is an A100, an L40S no L4."""
    words = re.split(r"[^A-Za-z0-9]+", name)
    return next((card for card in PEAKS if card in words), None)

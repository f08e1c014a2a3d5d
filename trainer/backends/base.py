"""The interface between a run and the library that trains. It names no such library."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from trainer.config import Recipe
from trainer.machine import DType, Machine


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A base with a fresh adapter, as a PEFT model, on its device."""

    model: Any  # peft.PeftModel
    dtype: DType
    architecture: str
    trained_on_id: str
    trained_on_revision: str | None
    quantization: str | None
    float_folder: Path | None  # the float base's checkpoint, where it is at hand
    padding_free: bool = False  # rows are laid end to end, not padded


class Backend(Protocol):
    """One way to load a model and to run it."""

    name: str

    def activate(self) -> None:
        """Import what must be imported before transformers, TRL and PEFT. Raises ConfigError if it is not there."""

    def load(self, recipe: Recipe, machine: Machine) -> LoadedModel:
        """The base with a new adapter. Raises ConfigError if the base cannot be loaded."""

    def trainer_arguments(self, recipe: Recipe) -> dict[str, Any]:
        """Arguments of TRL's SFTConfig that differ between backends."""

    def logits(
        self, model: Any, input_ids: Tensor, attention_mask: Tensor, positions: Tensor
    ) -> Tensor:
        """Logits (batch, len(positions), vocabulary) after the tokens at `positions` of (batch, time) inputs."""

    def generating(self, model: Any) -> AbstractContextManager[None]:
        """A context in which `model.generate` is right; training can go on after it."""

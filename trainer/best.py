"""The adapter where the validation curve was lowest, kept in a file so that it survives the process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from peft import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file, save_file

from trainer.processes import is_main


class BestAdapter:
    """One file, replaced whole each time."""

    def __init__(self, model: Any, folder: Path) -> None:
        self._model = model
        self._file = folder / "best.safetensors"

    def save(self) -> None:
        """Keep the adapter as it is now. Raises OSError."""
        if not is_main():
            return
        self._file.parent.mkdir(parents=True, exist_ok=True)
        staging = self._file.with_name(f".tmp-{self._file.name}")
        state = get_peft_model_state_dict(self._model, save_embedding_layers=False)
        save_file({name: tensor.detach().cpu().clone() for name, tensor in state.items()}, staging)
        staging.replace(self._file)

    def load(self) -> None:
        """Put it back into the model. Raises OSError."""
        set_peft_model_state_dict(self._model, load_file(self._file))
